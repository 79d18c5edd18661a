"""What a network is assembled from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of R, G, B in [0, 1]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Parts:
    """The parts of a `Network`, which runs encoder, neck and decoders in turn.

    Attributes:
        encoder: normalized images (B, 3, H, W) -> what the neck reads.
        decoders: each maps what the neck returns to logits (B, C, H/stride, W/stride), one channel or all anatomies'.
        statistics: with which images are normalized.
        stride: pixels of the image for each native logit, along each axis.
        multiple: height and width of images are multiples of it.
        neck: what all decoders share besides the encoder.
        source_sha256: of the file that holds the code, where it is the user's own.
    """

    encoder: nn.Module
    decoders: Sequence[nn.Module]
    statistics: Statistics
    stride: int
    multiple: int
    neck: nn.Module = field(default_factory=nn.Identity)
    source_sha256: str | None = None


def channels_of(layout: str, heads: int) -> list[int]:
    """The channels of each decoder: one decoder for all anatomies ("joint"), or one for each."""
    return [heads] if layout == "joint" else [1] * heads
