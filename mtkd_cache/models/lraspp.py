"""LR-ASPP over MobileNetV3-Large (Howard et al. 2019, section 6.4), from torchvision's own parts: 3.2 M parameters.

The encoder is torchvision's backbone, dilated to 1/16 of the image; a decoder is its whole segmentation head, which weighs the
deep features by their pooled context and adds what the shallow ones (1/8) say. Modules and keys are torchvision's, so that its
checkpoints fit: `lraspp_mobilenet_v3_large`, trained on the part of COCO with the classes of Pascal VOC.
"""

from collections.abc import Mapping

from torch import Tensor
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.models.segmentation.lraspp import LRASPPHead

from mtkd_cache.models.parts import IMAGENET, Parts, channels_of

LAST_LAYERS = ("low_classifier.", "high_classifier.")  # of a decoder, for the classes it was trained on


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's state dict -> `encoder.*` and `decoder.*`; unknown keys stay in the encoder."""
    bare = {key: key.removeprefix("backbone.").removeprefix("classifier.") for key in tensors}
    return {f"{'decoder' if key.startswith('classifier.') else 'encoder'}.{bare[key]}": tensors[key] for key in tensors}


def parts(layout: str, heads: int) -> Parts:
    """The network's parts in the layout "shared" or "joint", with torchvision's random weights."""
    channels, *others = channels_of(layout, heads)
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=channels)
    first: LRASPPHead = network.classifier
    shallow, deep = first.low_classifier.in_channels, first.cbr[0].in_channels
    decoders = [first, *(LRASPPHead(shallow, deep, each, first.cbr[0].out_channels) for each in others)]
    return Parts(network.backbone, decoders, IMAGENET, stride=8, multiple=8)
