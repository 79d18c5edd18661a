"""A frame as it comes from a camera or a file: to the size of the training images, and the answer back at the frame's size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_cache.errors import MtkdError


@dataclass(frozen=True)
class Prediction:
    """What the heads say of one frame of H x W pixels.

    A head claims a pixel where its logit is above its threshold. Heads may overlap: `masks` and `probabilities` keep all of them;
    in `labels` and in pictures the head with the largest margin over its threshold lies on top.

    Attributes:
        anatomies: of the A maps, in order.
        margins: float (A, H, W), each head's logit minus its threshold, on the predictor's device.
        thresholds: float (A, 1, 1), in logits.
    """

    anatomies: Sequence[str]
    margins: Tensor
    thresholds: Tensor

    @cached_property
    def masks(self) -> np.ndarray:
        """bool (A, H, W): the pixels that each head claims."""
        array: np.ndarray = (self.margins > 0).cpu().numpy()
        return array

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 (A, H, W): the sigmoid of the logits."""
        array: np.ndarray = torch.sigmoid(self.margins + self.thresholds).float().cpu().numpy()
        return array

    @cached_property
    def labels(self) -> np.ndarray:
        """uint8 (H, W): 0 where no head claims the pixel, else 1 + the number of the anatomy on top."""
        return topmost(self.margins, self.margins > 0).cpu().numpy()


def topmost(margins: Tensor, where: Tensor) -> Tensor:
    """The anatomy on top of each pixel: uint8 (H, W), 1 + the number of the one with the largest margin among those in `where`.

    margins: float (A, H, W). where: bool (A, H, W). 0 where there is none.
    """
    largest, anatomy = margins.masked_fill(~where, -torch.inf).max(0)
    return torch.where(largest > -torch.inf, anatomy + 1, 0).to(torch.uint8)


def to_network(frame: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
    """A frame, uint8 RGB (H, W, 3), as images float (1, 3, height, width) in [0, 1] of size = (width, height).

    Like ingest it stretches to the size, bilinearly over the whole source area (antialiased), here without rounding.
    Raises MtkdError for another kind of array.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise MtkdError(f"a frame is a uint8 RGB array (H, W, 3), this one is {frame.dtype} {frame.shape}. Convert it first.")
    image = torch.tensor(frame, device=device).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(image, size=size[::-1], mode="bilinear", antialias=True)


def to_frame(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (A, h, w) at the network's size as (A, H, W) at a frame's size = (H, W): the geometry of `to_network` backward."""
    return F.interpolate(logits[None].float(), size=size, mode="bilinear")[0]
