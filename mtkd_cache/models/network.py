"""One class for all networks of the paper: an encoder with one decoder (teacher) or a decoder for each anatomy (student)."""

import copy
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError
from mtkd_cache.models import mininetv2, segformer
from mtkd_cache.models.encoders import IMAGENET, Statistics, input_statistics, make_encoder

PAPER_ARCHITECTURES = (
    "deeplabv3-resnet18",
    "deeplabv3-resnet50",
    "deeplabv3-efficientnet-b0",
    "deeplabv3-efficientnet-b3",
    "segformer-mit_b0",
    "segformer-mit_b3",
    "mininetv2",
)
GRIDS = {"deeplabv3": (8, 8), "segformer": (4, 32), "fpn": (4, 32), "mininetv2": (2, 8)}  # stride and multiple, see `Network`


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of native logits (B, N, h, w) to `size` = (H, W) with aligned corners, as in smp's heads."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


class SmpDecoder(nn.Module):
    """smp's decoder and 1x1 segmentation head without the head's upsampling: features -> logits (B, 1, h, w)."""

    def __init__(self, decoder: nn.Module, channels: int):
        super().__init__()
        self.decoder = decoder
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(self.decoder(features))
        return logits


class Network(nn.Module):
    """An encoder and `heads` decoders over it. State-dict keys: `encoder.*` and `decoders.K.*`.

    Images are float RGB in [0, 1]; the network normalizes them with the statistics its encoder was pretrained with.

    arch: "mininetv2" or "<decoder>-<smp encoder>", as given to `create_network`
    heads: number of decoders, one for each anatomy
    stride: pixels of the image for each native logit, along each axis (SegFormer 4, DeepLabV3 8, MiniNetV2 2)
    multiple: `native` takes images whose height and width are multiples of it
    mean, std: (1, 3, 1, 1), subtracted from and dividing the images
    """

    mean: Tensor
    std: Tensor

    def __init__(self, arch: str, encoder: nn.Module, decoders: Iterable[nn.Module], statistics: Statistics):
        super().__init__()
        self.arch = arch
        self.encoder = encoder
        self.decoders = nn.ModuleList(decoders)
        self.heads = len(self.decoders)
        self.stride, self.multiple = GRIDS[arch.partition("-")[0]]
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @property
    def params_m(self) -> float:
        """Number of parameters in millions."""
        return sum(parameter.numel() for parameter in self.parameters()) / 1e6

    def native(self, images: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> logits (B, heads, H/stride, W/stride), before the final upsampling.

        heads: run these decoders only, in this order. Raises MtkdError where H or W is not a multiple of `multiple`.
        """
        _check(images)
        self.check_size((images.shape[3], images.shape[2]))
        features = self.encoder((images - self.mean) / self.std)
        decoders = self.decoders if heads is None else [self.decoders[head] for head in heads]
        return torch.cat([decoder(features) for decoder in decoders], dim=1)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises MtkdError where images of size = (width, height) have no native logits."""
        width, height = size
        if height % self.multiple or width % self.multiple:
            raise MtkdError(
                f"{self.arch} has no native logits of {width}x{height} images: "
                f"width and height must be multiples of {self.multiple}. Resize or pad the images (mtkd-cache ingest --size)."
            )

    def trains_on_one(self, size: tuple[int, int]) -> bool:
        """Whether a batch may be a single image of size = (width, height): not where a batch norm gets one value a channel."""
        values: list[int] = []
        copied = copy.deepcopy(self).eval()
        for module in copied.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0][0, 0].numel()))
        with torch.no_grad():
            copied(torch.zeros(1, 3, size[1], size[0], device=self.mean.device))
        return min(values, default=2) > 1

    def forward(self, images: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], of any size -> logits (B, heads, H, W), of all heads or of those named.

        Where H and W are multiples of `multiple`, this is upsample(native(images), (H, W)). Other images are padded on
        the right and at the bottom by repeating the edge, and the logits are cropped again.
        """
        _check(images)
        height, width = images.shape[-2:]
        right, bottom = -width % self.multiple, -height % self.multiple
        if right or bottom:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        padded = (images.shape[2], images.shape[3])
        return upsample(self.native(images, heads), padded)[..., :height, :width]


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise MtkdError(
            f"images must be floating-point RGB in [0, 1] of shape (B, 3, H, W), these are {images.dtype} "
            f"{tuple(images.shape)}. Convert them first (uint8: images.float() / 255)."
        )


def create_network(arch: str, heads: int) -> Network:
    """Create a network with random weights, drawn from torch's global generator.

    Args:
        arch: "mininetv2", or a decoder ("deeplabv3", "segformer", "fpn"), a hyphen and the name of any smp encoder, as
            "segformer-mit_b3". SegFormer's decoder has 768 channels on mit_b2 to mit_b5 and 256 otherwise, which are the
            paper's parameter counts.
        heads: number of decoders, one for each anatomy.

    Returns:
        a module that maps images float (B, 3, H, W) in [0, 1] to logits (B, heads, H, W); its method `native` returns them
        before the upsampling, (B, heads, H/stride, W/stride).

    Raises:
        MtkdError: the decoder or encoder is unknown, they do not fit each other, or heads < 1.

    Reference: Maack et al. 2024, section 3.2; Alonso et al. 2020 for MiniNetV2.
    """
    if heads < 1:
        raise MtkdError(f"a network needs at least one head, not {heads}. Give the number of anatomies.")
    if arch == "mininetv2":
        return Network(arch, mininetv2.Encoder(), [mininetv2.Decoder() for _ in range(heads)], IMAGENET)
    decoder_name, _, encoder_name = arch.partition("-")
    if decoder_name not in GRIDS or decoder_name == "mininetv2" or not encoder_name:
        raise MtkdError(
            f"unknown architecture {arch!r}. The paper's are {', '.join(PAPER_ARCHITECTURES)}; "
            "any other is deeplabv3-, segformer- or fpn- and the name of an smp encoder."
        )
    encoder = make_encoder(encoder_name, output_stride=8 if decoder_name == "deeplabv3" else 32)
    decoders = [_decoder(decoder_name, encoder_name, list(cast(Sequence[int], encoder.out_channels))) for _ in range(heads)]
    return Network(arch, encoder, decoders, input_statistics(encoder_name))


def _decoder(decoder_name: str, encoder_name: str, channels: list[int]) -> SmpDecoder:
    """One decoder with smp's own defaults and initialization (torch's for DeepLabV3)."""
    if decoder_name == "deeplabv3":
        decoder = DeepLabV3Decoder(channels[-1], 256, atrous_rates=(12, 24, 36), aspp_separable=False, aspp_dropout=0.5)
        return SmpDecoder(decoder, 256)
    if decoder_name == "segformer":
        width = 768 if encoder_name in {"mit_b2", "mit_b3", "mit_b4", "mit_b5"} else 256
        module = SmpDecoder(segformer.Decoder(channels, segmentation_channels=width), width)
    else:
        decoder = FPNDecoder(channels)
        module = SmpDecoder(decoder, decoder.out_channels)
    initialize_decoder(module.decoder)
    initialize_head(module.head)
    return module
