"""Encoders of segmentation_models_pytorch (smp): created by name, with the input statistics each was trained on."""

import difflib
import warnings

import timm
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names
from torch import nn

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.segformer import use_fused_attention

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN: Statistics = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)


def make_encoder(name: str, output_stride: int = 32) -> nn.Module:
    """smp's encoder `name` with random weights, without a download.

    It maps images (B, 3, H, W), normalized, to a list of features at strides 1, 2, 4, ... up to `output_stride`.
    Raises MtkdError for an unknown encoder, and for one that cannot be dilated to `output_stride`.
    """
    if not (name in get_encoder_names() or (name.startswith("tu-") and timm.is_model(name.removeprefix("tu-")))):
        near = difflib.get_close_matches(name, get_encoder_names(), n=6, cutoff=0.3)
        raise MtkdError(
            f"unknown encoder {name!r}. Similar names: {', '.join(near or get_encoder_names()[:6])}; "
            "all are in segmentation_models_pytorch.encoders.get_encoder_names(), and tu-NAME takes any timm model."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            encoder: nn.Module = get_encoder(name, weights=None, output_stride=output_stride)
            return use_fused_attention(encoder)
    except Exception as error:  # each encoder family refuses in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".!")
        raise MtkdError(
            f"encoder {name} cannot be created with output stride {output_stride}: {reason}. Use another encoder, "
            "for instance resnet18, resnet50, efficientnet-b0 or efficientnet-b3."
        ) from error


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
