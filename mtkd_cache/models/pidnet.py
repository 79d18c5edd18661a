"""PIDNet-S (Xu et al. 2023, CVPR), written from the paper and the layout of its public checkpoints: 7.6 M parameters.

Three branches over one stem: P keeps detail at 1/8 of the image, I gathers context down to 1/64, D follows boundaries. They feed
each other on the way (`Gate`, and D's differences of I), so the encoder is all of them, and the decoder is what fuses their ends
(the paper's Light-Bag) with the segmentation head. The paper's two auxiliary heads, on P (classes) and on D (boundaries), only
serve its own training losses and are left out. Modules are named as in the public state dict, so that its keys fit.

Reference: https://arxiv.org/abs/2206.02066; public code under MIT at https://github.com/XuJiacong/PIDNet.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_cache.models.parts import IMAGENET, Parts, channels_of

WIDTH, CONTEXT_WIDTH, HEAD_WIDTH = 32, 96, 128  # of PIDNet-S: planes, ppm_planes and head_planes of the public code
NOT_USED = ("seghead_p.", "seghead_d.", "sem_loss.", "bd_loss.")  # of a public checkpoint: auxiliary heads, buffers of losses

LAST_LAYERS = ("final_layer.conv2.",)  # of a decoder, for the classes it was trained on


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public state dict, trained (keys `model.*`) or not -> `encoder.*` and `decoder.*`; unknown keys stay in the encoder."""
    bare = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    return {
        f"{'decoder' if key.startswith(('dfm.', 'final_layer.')) else 'encoder'}.{key}": tensor
        for key, tensor in bare.items()
        if not key.startswith(NOT_USED)
    }


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution without a bias, BN: (B, inputs, h, w) -> (B, outputs, h/stride, w/stride)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs))


def norm_conv(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> list[nn.Module]:
    """BN, ReLU, convolution without a bias, as layers of a sequence: (B, inputs, h, w) -> (B, outputs, h, w)."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(), conv]


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Bilinear, without aligned corners, to the height and width of `like`."""
    return F.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)


class Basic(nn.Module):
    """Residual block of two 3x3 convolutions: (B, inputs, h, w) -> (B, outputs, h/stride, w/stride), then ReLU if `relu`."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, relu: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = conv_norm(inputs, outputs, stride=stride) if (inputs, stride) != (outputs, 1) else nn.Identity()
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        total: Tensor = inner + self.downsample(x)
        return F.relu(total) if self.relu else total


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3, 1x1 of width `width`: (B, inputs, h, w) -> (B, 2 width, h/stride, w/stride), no last ReLU."""

    def __init__(self, inputs: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        same = (inputs, stride) == (2 * width, 1)
        self.downsample = nn.Identity() if same else conv_norm(inputs, 2 * width, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)))))
        total: Tensor = inner + self.downsample(x)
        return total


def basics(inputs: int, outputs: int, count: int, stride: int = 1) -> nn.Sequential:
    """`count` basic blocks, the first with the stride; a ReLU follows all but the last."""
    first = Basic(inputs, outputs, stride, relu=count > 1)
    return nn.Sequential(first, *(Basic(outputs, outputs, relu=place < count - 1) for place in range(1, count)))


class Gate(nn.Module):
    """The paper's Pag: where P and I agree, P takes over what I says.

    (P (B, channels, h, w), I (B, channels, h', w')) -> (B, channels, h, w): (1 - s) P + s I with s = sigmoid(f_x(P) . f_y(I)).
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.f_x = conv_norm(channels, width)
        self.f_y = conv_norm(channels, width)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        likeness = (self.f_x(detail) * resize(self.f_y(context), detail)).sum(1, keepdim=True).sigmoid()
        gated: Tensor = (1 - likeness) * detail + likeness * resize(context, detail)
        return gated


class Context(nn.Module):
    """The paper's PAPPM: features (B, inputs, h, w) pooled over four scales in parallel -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.scale0 = nn.Sequential(*norm_conv(inputs, width))
        self.scale1 = nn.Sequential(nn.AvgPool2d(5, 2, 2), *norm_conv(inputs, width))
        self.scale2 = nn.Sequential(nn.AvgPool2d(9, 4, 4), *norm_conv(inputs, width))
        self.scale3 = nn.Sequential(nn.AvgPool2d(17, 8, 8), *norm_conv(inputs, width))
        self.scale4 = nn.Sequential(nn.AdaptiveAvgPool2d(1), *norm_conv(inputs, width))
        self.scale_process = nn.Sequential(*norm_conv(4 * width, 4 * width, 3, groups=4))
        self.compression = nn.Sequential(*norm_conv(5 * width, outputs))
        self.shortcut = nn.Sequential(*norm_conv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        own = self.scale0(x)
        scales = [resize(scale(x), own) + own for scale in (self.scale1, self.scale2, self.scale3, self.scale4)]
        pooled = self.scale_process(torch.cat(scales, dim=1))
        context: Tensor = self.compression(torch.cat([own, pooled], dim=1)) + self.shortcut(x)
        return context


class Encoder(nn.Module):
    """Images (B, 3, H, W), normalized -> the ends of the branches [P, I, D], each (B, 128, H/8, W/8)."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        stem = [nn.Conv2d(3, width, 3, 2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.conv1 = nn.Sequential(*stem, nn.Conv2d(width, width, 3, 2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = basics(width, width, 2)
        self.layer2 = basics(width, 2 * width, 2, stride=2)
        self.layer3 = basics(2 * width, 4 * width, 3, stride=2)
        self.layer4 = basics(4 * width, 8 * width, 3, stride=2)
        self.layer5 = nn.Sequential(Bottleneck(8 * width, 8 * width, stride=2), Bottleneck(16 * width, 8 * width))
        self.spp = Context(16 * width, CONTEXT_WIDTH, 4 * width)

        self.compression3, self.compression4 = conv_norm(4 * width, 2 * width), conv_norm(8 * width, 2 * width)
        self.pag3, self.pag4 = Gate(2 * width, width), Gate(2 * width, width)
        self.layer3_, self.layer4_ = basics(2 * width, 2 * width, 2), basics(2 * width, 2 * width, 2)
        self.layer5_ = nn.Sequential(Bottleneck(2 * width, 2 * width))

        self.layer3_d = Basic(2 * width, width)
        self.layer4_d = nn.Sequential(Bottleneck(width, width))
        self.layer5_d = nn.Sequential(Bottleneck(2 * width, 2 * width))
        self.diff3, self.diff4 = conv_norm(4 * width, width, 3), conv_norm(8 * width, 2 * width, 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.layer2(F.relu(self.layer1(self.conv1(images)))))
        p, d = self.layer3_(x), self.layer3_d(x)
        x = F.relu(self.layer3(x))
        p = self.layer4_(F.relu(self.pag3(p, self.compression3(x))))
        d = self.layer4_d(F.relu(d + resize(self.diff3(x), d)))
        x = F.relu(self.layer4(x))
        p = self.layer5_(F.relu(self.pag4(p, self.compression4(x))))
        d = self.layer5_d(F.relu(d + resize(self.diff4(x), d)))
        return [p, resize(self.spp(self.layer5(x)), p), d]


class LightBag(nn.Module):
    """[P, I, D], each (B, C, h, w) -> (B, C, h, w): at boundaries (sigmoid(D) near 1) P's detail, elsewhere I's context."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_p = conv_norm(channels, channels)
        self.conv_i = conv_norm(channels, channels)

    def forward(self, branches: list[Tensor]) -> Tensor:
        p, i, d = branches
        boundary = d.sigmoid()
        fused: Tensor = self.conv_p((1 - boundary) * i + p) + self.conv_i(i + boundary * p)
        return fused


class Head(nn.Module):
    """Features (B, inputs, h, w) -> logits (B, channels, h, w)."""

    def __init__(self, inputs: int, width: int, channels: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return logits


class Decoder(nn.Module):
    """What `Encoder` returns -> logits (B, channels, H/8, W/8)."""

    def __init__(self, channels: int = 1, width: int = WIDTH):
        super().__init__()
        self.dfm = LightBag(4 * width)
        self.final_layer = Head(4 * width, HEAD_WIDTH, channels)

    def forward(self, branches: list[Tensor]) -> Tensor:
        logits: Tensor = self.final_layer(self.dfm(branches))
        return logits


def parts(layout: str, heads: int) -> Parts:
    """The network's parts in the layout "shared" or "joint", with the public code's random weights."""
    encoder, decoders = Encoder(), [Decoder(channels) for channels in channels_of(layout, heads)]
    for module in (module for part in (encoder, *decoders) for module in part.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Parts(encoder, decoders, IMAGENET, stride=8, multiple=8)
