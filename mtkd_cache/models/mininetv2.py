"""MiniNetV2 (Alonso et al. 2020), written from its published architecture: encoder 0.4051 M parameters, decoder 0.1016 M.

The paper gives every layer's size, but not what dropout drops: here whole channels with probability 0.25, as the public PyTorch
code does. Two things differ from it: eps of the batch norms is torch's 1e-5, not 1e-3, unless weights bring theirs
(`TENSORFLOW_EPS`); and the last layer is padded, so that logits are half the image's size (its has padding 0, one row and one
column more).
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.parts import IMAGENET, Parts, channels_of

LAYOUTS = ("shared", "shared-refine", "joint")
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
TENSORFLOW_EPS = 1e-3  # of the batch norms in the public code, which TensorFlow's checkpoints are of; torch's is 1e-5
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


def is_tensorflow(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors bear the names of a TensorFlow checkpoint's variables."""
    return "conv2d/kernel" in tensors


def from_tensorflow(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The variables of a public TensorFlow checkpoint of MiniNetV2 -> a state dict, `encoder.*` and `decoder.*`.

    TensorFlow numbers the layers of a kind in the order in which they were made: conv2d, conv2d_1, ... The public graph's
    separable units have no batch norm and no ReLU between their two convolutions, as the paper's have: those norms stay new. It
    also pads convolutions of stride 2 at the right and bottom alone. So this is a start for training, not the same network.

    variables: by name, without those of the optimizer or with them. Raises MtkdError for one that is missing.
    Reference: https://github.com/Shathe/MiniNet-v2, Mininet.py and weights/Mininetv2.
    """
    fresh = {"encoder": Encoder(), "decoder": Decoder()}
    state = {f"{part}.{key}": tensor for part, module in fresh.items() for key, tensor in module.state_dict().items()}
    made: Counter[str] = Counter()

    def take(kind: str) -> dict[str, Tensor]:
        name = f"{kind}_{made[kind]}" if made[kind] else kind
        made[kind] += 1
        found = {key.rpartition("/")[2]: value for key, value in variables.items() if key.rpartition("/")[0] == name}
        if not found:
            raise MtkdError(f"these variables are no MiniNetV2's: {name} is missing. Convert a checkpoint of weights/Mininetv2.")
        return found

    for kind, (*convolutions, norm) in _tensorflow_layers():
        layer = take(kind)
        kernels = [layer[key] for key in ("kernel", "depthwise_kernel", "pointwise_kernel") if key in layer]
        for name, kernel in zip(convolutions, kernels, strict=True):
            depthwise = kernel is layer.get("depthwise_kernel")  # (height, width, inputs, 1); else (height, width, ., .)
            state[f"{name}.weight"] = kernel.permute((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)).contiguous()
        if kind == "conv2d_transpose":
            state[f"{convolutions[0]}.bias"] = layer["bias"]
        if norm:
            normalized = take("batch_normalization")
            state |= {f"{norm}.{ours}": normalized[theirs] for ours, theirs in NORM.items()}
            if kind == "depthwise_conv2d":  # some of the checkpoints have a bias, which a batch norm takes away again
                state[f"{norm}.running_mean"] = normalized["moving_mean"] - layer.get("bias", 0.0)
    return state


def _tensorflow_layers() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The public graph's layers in the order of their making: kind, and the names of our convolutions and batch norm."""

    def down(name: str) -> tuple[str, tuple[str, ...]]:
        return "conv2d", (f"{name}.conv", f"{name}.norm")

    def unit(name: str) -> tuple[str, tuple[str, ...]]:
        return "separable_conv2d", (f"{name}.depthwise.0", f"{name}.pointwise.0", f"{name}.pointwise.1")

    yield from (down("encoder.down1"), down("encoder.down2"))
    yield from (unit(f"encoder.shallow.{number}") for number in range(10))
    yield down("encoder.down3")
    for number in range(len(DILATIONS)):
        for branch in ("near", "far"):
            yield "depthwise_conv2d", (f"encoder.deep.{number}.{branch}.0", f"encoder.deep.{number}.{branch}.1")
        yield "conv2d", (f"encoder.deep.{number}.pointwise.0", f"encoder.deep.{number}.pointwise.1")
    yield "conv2d_transpose", ("decoder.up1", "decoder.norm")
    yield from (down("decoder.refine.0"), down("decoder.refine.1"))
    yield from (unit(f"decoder.units.{number}") for number in range(4))
    yield "conv2d_transpose", ("decoder.out", "")
