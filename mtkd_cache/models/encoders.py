"""Encoders of segmentation_models_pytorch (smp): created by name, with the input statistics each was trained on."""

import difflib
import warnings

import timm
from segmentation_models_pytorch.encoders import TimmViTEncoder, get_encoder, get_encoder_names
from timm.models.metaformer import StarReLU
from torch import nn

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.parts import IMAGENET, Statistics
from mtkd_cache.models.segformer import use_fused_attention

SURGENET_CAFORMER = "surgenet-caformer_s18"  # timm's caformer_s18 with ReLU for StarReLU, as SurgeNet trained it
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN: Statistics = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)


def check_name(name: str) -> None:
    """Raises MtkdError for an unknown encoder, with similar names."""
    if not (
        name in (*get_encoder_names(), SURGENET_CAFORMER) or (name.startswith("tu-") and timm.is_model(name.removeprefix("tu-")))
    ):
        near = difflib.get_close_matches(name, get_encoder_names(), n=6, cutoff=0.3)
        raise MtkdError(
            f"unknown encoder {name!r}. Similar names: {', '.join(near or get_encoder_names()[:6])}; "
            "all are in segmentation_models_pytorch.encoders.get_encoder_names(), and tu-NAME takes any timm model."
        )


def make_encoder(name: str, output_stride: int = 32, depth: int = 5) -> nn.Module:
    """smp's encoder `name` with random weights, without a download.

    It maps images (B, 3, H, W), normalized, to a list of `depth` + 1 features at strides 1, 2, 4, ... up to `output_stride`.
    Raises whatever smp raises for an encoder that cannot be dilated to `output_stride`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if name == SURGENET_CAFORMER:
            return with_relu(get_encoder("tu-caformer_s18", weights=None, output_stride=output_stride, depth=depth))
        encoder: nn.Module = get_encoder(name, weights=None, output_stride=output_stride, depth=depth)
        return use_fused_attention(encoder)


def make_vision_transformer(name: str) -> nn.Module:
    """timm's vision transformer, tu-NAME, with random weights, for images of any size; it returns features and class tokens.

    Patches of 14 pixels, as DINOv2's, become patches of 16, of which DPT's strides are multiples.
    """
    if not name.startswith("tu-"):
        raise ValueError("it is no vision transformer of timm")
    patches = {"patch_size": 16} if "_patch14_" in name else {}
    encoder: nn.Module = TimmViTEncoder(name.removeprefix("tu-"), pretrained=False, dynamic_img_size=True, **patches)
    return encoder


def with_relu(network: nn.Module) -> nn.Module:
    """The network, with each of timm's StarReLU, which has a scale and a bias, replaced by a ReLU."""
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, StarReLU):
                setattr(parent, name, nn.ReLU())
    return network


def input_statistics(name: str) -> Statistics:
    """Mean and standard deviation (R, G, B; images in [0, 1]) that encoder `name` was pretrained with on ImageNet.

    smp keeps them on its hub beside the weights; they are repeated here so that creating a network needs no download.
    """
    if name.startswith("tu-"):
        settings = timm.models.get_pretrained_cfg(name.removeprefix("tu-"))
        return (tuple(settings.mean), tuple(settings.std)) if settings else IMAGENET
    if name.startswith(("timm-tf_efficientnet_lite", "inception", "xception")):
        return HALF
    return DPN if name.startswith("dpn") else IMAGENET
