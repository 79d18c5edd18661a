"""Decoders of segmentation_models_pytorch (smp) over its encoders, with smp's own defaults, before the final upsampling."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError, first_line
from mtkd_cache.models import segformer
from mtkd_cache.models.encoders import check_name, input_statistics, make_encoder, make_vision_transformer
from mtkd_cache.models.parts import Parts, channels_of

UNET_WIDTHS = (256, 128, 64, 32, 16)
NO_HALF = "it has no features at half the size of the image"
Made = tuple[nn.Module, int]  # a decoder and the channels of what it returns


@dataclass(frozen=True)
class Kind:
    """One of smp's decoders.

    stride, multiple: see `Parts`. make(encoder, name of the encoder): the decoder. kernel: size of the last convolution's.
    encoder: makes the encoder of a name. smp_weights: random weights are smp's, else torch's; as in smp's own model.
    """

    stride: int
    multiple: int
    make: Callable[[Any, str], Made]
    kernel: int = 1
    encoder: Callable[[str], nn.Module] = make_encoder
    smp_weights: bool = True


class DptDecoder(DPTDecoder):  # type: ignore[misc]  # smp is untyped
    """A vision transformer's (features, class tokens) -> (B, 256, H/2, W/2)."""

    def forward(self, features: tuple[list[Tensor], list[Tensor | None]]) -> Tensor:
        decoded: Tensor = super().forward(*features)
        return decoded


def _deeplabv3(encoder: Any, _: str) -> Made:
    rates = (12, 24, 36)
    return DeepLabV3Decoder(encoder.out_channels[-1], 256, rates, aspp_separable=False, aspp_dropout=0.5), 256


def _deeplabv3plus(encoder: Any, _: str) -> Made:
    settings = {"output_stride": 16, "aspp_separable": True, "aspp_dropout": 0.5}
    return DeepLabV3PlusDecoder(encoder.out_channels, 5, 256, (12, 24, 36), **settings), 256


def _dpt(encoder: Any, _: str) -> Made:
    return DptDecoder(encoder.out_channels, encoder.output_strides, encoder.has_prefix_tokens), 256


def _fpn(encoder: Any, _: str) -> Made:
    return FPNDecoder(encoder.out_channels), 128


def _linknet(encoder: Any, name: str) -> Made:
    if name.startswith("mit_"):
        raise ValueError(NO_HALF)
    return LinknetDecoder(encoder.out_channels), 32


def _manet(encoder: Any, _: str) -> Made:
    return MAnetDecoder(encoder.out_channels, UNET_WIDTHS), UNET_WIDTHS[-1]


def _pan(encoder: Any, _: str) -> Made:
    return PANDecoder(encoder.out_channels, 5, 32), 32


def _pspnet(encoder: Any, _: str) -> Made:
    return PSPDecoder(encoder.out_channels), 512


def _segformer(encoder: Any, name: str) -> Made:
    width = 768 if name in {"mit_b2", "mit_b3", "mit_b4", "mit_b5"} else 256
    return segformer.Decoder(encoder.out_channels, segmentation_channels=width), width


def _unet(encoder: Any, name: str) -> Made:
    return UnetDecoder(encoder.out_channels, UNET_WIDTHS, add_center_block=name.startswith("vgg")), UNET_WIDTHS[-1]


def _unetplusplus(encoder: Any, name: str) -> Made:
    if name.startswith("mit_"):
        raise ValueError(NO_HALF)
    return UnetPlusPlusDecoder(encoder.out_channels, UNET_WIDTHS, center=name.startswith("vgg")), UNET_WIDTHS[-1]


def _upernet(encoder: Any, _: str) -> Made:
    return UPerNetDecoder(encoder.out_channels), 256


DECODERS = {
    "deeplabv3": Kind(8, 8, _deeplabv3, encoder=partial(make_encoder, output_stride=8), smp_weights=False),
    "deeplabv3plus": Kind(4, 16, _deeplabv3plus, encoder=partial(make_encoder, output_stride=16), smp_weights=False),
    "dpt": Kind(2, 32, _dpt, encoder=make_vision_transformer),
    "fpn": Kind(4, 32, _fpn),
    "linknet": Kind(1, 32, _linknet),
    "manet": Kind(1, 32, _manet, kernel=3),
    "pan": Kind(4, 128, _pan, kernel=3, encoder=partial(make_encoder, output_stride=16)),  # pools features of stride 16 by 8
    "pspnet": Kind(8, 8, _pspnet, kernel=3, encoder=partial(make_encoder, depth=3)),
    "segformer": Kind(4, 32, _segformer),
    "unet": Kind(1, 32, _unet, kernel=3),
    "unetplusplus": Kind(1, 32, _unetplusplus, kernel=3),
    "upernet": Kind(4, 32, _upernet),
}


class SmpDecoder(nn.Module):
    """smp's decoder and segmentation head without the head's upsampling: features -> logits (B, channels, h, w)."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.decoder = decoder
        self.head = head

    def forward(self, features: Any) -> Tensor:
        logits: Tensor = self.head(self.decoder(features))
        return logits


def smp_parts(decoder_name: str, encoder_name: str, layout: str, heads: int) -> Parts:
    """One of `DECODERS` over one of smp's or timm's encoders.

    Raises MtkdError for an unknown encoder, and for one that does not fit the decoder.
    """
    kind = DECODERS[decoder_name]
    check_name(encoder_name)
    try:
        encoder = kind.encoder(encoder_name)
        decoders = [_decoder(kind, encoder, encoder_name, channels) for channels in channels_of(layout, heads)]
        if (decoder_name, encoder_name) not in TRIED:
            _try_out(kind, encoder, decoders[0])
            TRIED.add((decoder_name, encoder_name))
    except Exception as error:  # encoders and decoders refuse each other in many ways
        reason = first_line(error).rstrip(".!")
        raise MtkdError(
            f"{decoder_name} cannot be put over the encoder {encoder_name}: {reason}. Use another encoder, for instance "
            f"{'tu-vit_small_patch16_224' if decoder_name == 'dpt' else 'resnet18, resnet50 or efficientnet-b0'}."
        ) from error
    return Parts(encoder, decoders, input_statistics(encoder_name), kind.stride, kind.multiple)


def _decoder(kind: Kind, encoder: nn.Module, encoder_name: str, channels: int) -> SmpDecoder:
    """One decoder with smp's own defaults and random weights."""
    decoder, width = kind.make(encoder, encoder_name)
    head: nn.Module = nn.Conv2d(width, channels, kind.kernel, padding=kind.kernel // 2)
    if isinstance(decoder, DptDecoder):
        head = DPTSegmentationHead(width, channels).head
    if kind.smp_weights:
        initialize_decoder(decoder)
        initialize_head(head)
    return SmpDecoder(decoder, head)


TRIED: set[tuple[str, str]] = set()  # decoders over encoders that were tried out


def _try_out(kind: Kind, encoder: nn.Module, decoder: nn.Module) -> None:
    """Raises where the logits of a small image are not those of the decoder's stride; nothing is tried on the meta device."""
    device = next(encoder.parameters()).device
    if device.type == "meta":
        return
    side = max(64, kind.multiple)
    with torch.no_grad():
        logits = decoder.eval()(encoder.eval()(torch.zeros(1, 3, side, 2 * side, device=device)))
    decoder.train()
    encoder.train()
    if logits.shape[2:] != (side // kind.stride, 2 * side // kind.stride):
        raise ValueError(f"of {2 * side}x{side} images it makes {logits.shape[3]}x{logits.shape[2]} logits")
