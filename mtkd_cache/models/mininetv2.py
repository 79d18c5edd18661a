"""MiniNetV2 (Alonso et al. 2020), written from its published architecture: encoder 0.4051 M parameters, decoder 0.1016 M.

The paper gives every layer's size, but not what dropout drops: here whole channels (inferred), as in ERFNet,
whose blocks MiniNetV2 builds on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_cache.models.parts import IMAGENET, Parts, channels_of

LAYOUTS = ("shared", "shared-refine", "joint")
DILATIONS = (1, 2, 1, 4, 1, 8, 1, 16, 1, 1, 1, 2, 1, 4, 1, 8)


class Down(nn.Module):
    """(B, inputs, h, w) -> (B, outputs, h/2, w/2): 3x3 stride-2 convolution beside 2x2 max pooling, then BN, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, pooled: Tensor | None = None) -> Tensor:
        """pooled: the max pooling of x, where it is known already."""
        return F.relu_(self.norm(torch.cat([self.conv(x), self.pool(x) if pooled is None else pooled], dim=1)))


def depthwise(channels: int, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3x3 convolution, BN, ReLU; the shape stays (B, channels, h, w)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def pointwise(channels: int) -> nn.Sequential:
    """1x1 convolution, BN; the shape stays (B, channels, h, w)."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


class Unit(nn.Module):
    """Residual unit: relu(x + pointwise(depthwise(x))); the shape stays (B, channels, h, w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = depthwise(channels)
        self.pointwise = pointwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(x + self.pointwise(self.depthwise(x)))


class DilatedUnit(nn.Module):
    """Residual unit with the sum of two depthwise convolutions, one of them dilated; the shape stays (B, channels, h, w)."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.near = depthwise(channels)
        self.far = depthwise(channels, dilation)
        self.pointwise = pointwise(channels)
        self.dropout = nn.Dropout2d(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(x + self.dropout(self.pointwise(self.near(x) + self.far(x))))


class Encoder(nn.Module):
    """Images (B, 3, H, W), normalized -> [the images, their max pooling (B, 3, H/2, W/2), features (B, 128, H/8, W/8)].

    The pooling is in the list because every decoder looks at the image too, and it is the same for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1 = Down(3, 16)
        self.down2 = Down(16, 64)
        self.shallow = nn.Sequential(*[Unit(64) for _ in range(10)])
        self.down3 = Down(64, 128)
        self.deep = nn.Sequential(*[DilatedUnit(128, dilation) for dilation in DILATIONS])

    def forward(self, images: Tensor) -> list[Tensor]:
        pooled = self.down1.pool(images)
        return [images, pooled, self.deep(self.down3(self.shallow(self.down2(self.down1(images, pooled)))))]


class Refine(nn.Sequential):
    """What `Encoder` returns -> a look at the image itself (B, 64, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__(Down(3, 16), Down(16, 64))

    def forward(self, features: list[Tensor]) -> Tensor:
        look: Tensor = self[1](self[0](features[0], features[1]))
        return look


class SharedRefine(nn.Module):
    """What `Encoder` returns -> [one look at the image for all decoders (B, 64, H/4, W/4), features (B, 128, H/8, W/8)]."""

    def __init__(self) -> None:
        super().__init__()
        self.refine = Refine()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [self.refine(features), features[-1]]


class Decoder(nn.Module):
    """What `Encoder` returns, or without a look of its own what `SharedRefine` does -> logits (B, channels, H/2, W/2)."""

    def __init__(self, channels: int = 1, own_look: bool = True):
        super().__init__()
        self.up1 = nn.ConvTranspose2d(128, 64, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.refine = Refine() if own_look else None
        self.units = nn.Sequential(*[Unit(64) for _ in range(4)])
        self.out = nn.ConvTranspose2d(64, channels, 3, stride=2, padding=1, output_padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        look = features[0] if self.refine is None else self.refine(features)
        logits: Tensor = self.out(self.units(F.relu_(self.norm(self.up1(features[-1]))) + look))
        return logits


def parts(layout: str, heads: int) -> Parts:
    """The network's parts in one of `LAYOUTS`."""
    encoder, shared_look = Encoder(), layout == "shared-refine"
    neck = SharedRefine() if shared_look else nn.Identity()
    decoders = [Decoder(channels, own_look=not shared_look) for channels in channels_of(layout, heads)]
    return Parts(encoder, decoders, IMAGENET, stride=2, multiple=8, neck=neck)
