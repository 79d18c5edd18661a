"""A frame as it comes from a camera or a file: to the size of the training images, and the answer back at the frame's size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_cache.data.augment import to_float
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.network import upsample

Size = tuple[int, int]


@dataclass(frozen=True)
class Upsampling:
    """From logits before the networks' final upsampling to logits at a frame's size. Sizes are (height, width).

    Attributes:
        padded: of the image that the network saw.
        image: of that image without the padding.
        frame: of the frame that the image was made of.
    """

    padded: Size
    image: Size
    frame: Size

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (B, A, h, w) as float32 (B, A, H, W)."""
        logits = logits.float()
        if logits.shape[2:] != self.padded:
            logits = upsample(logits, self.padded)
        maps = logits[..., : self.image[0], : self.image[1]].flatten(0, 1)
        there: Tensor = to_frame(maps, self.frame).unflatten(0, logits.shape[:2])
        return there

    def above(self, logits: Tensor, thresholds: Tensor) -> Tensor:
        """bool (A, H, W): where logits (A, h, w), once upsampled, are above thresholds (A, 1, 1)."""
        if logits.device.type != "cpu":
            return self(logits[None])[0] > thresholds
        masks = torch.empty((len(logits), *self.frame), dtype=torch.bool)
        for head, mask in enumerate(masks):  # one by one: a map at the frame's size stays in the processor's cache
            torch.gt(self(logits[None, head : head + 1])[0, 0], thresholds[head], out=mask)
        return masks


@dataclass(frozen=True)
class Prediction:
    """What the heads say of one frame of H x W pixels.

    A head claims a pixel where its logit is above its threshold. Of a head that is silent in this frame, because its highest
    logit is not above its presence threshold, the threshold is infinite. Heads may overlap: `masks` and `probabilities` keep all
    of them; in `labels` and in pictures the head with the largest margin over its threshold lies on top.

    Attributes:
        anatomies: of the A maps, in order.
        maps: float (A, h, w), logits on the predictor's device.
        thresholds: float (A, 1, 1), in logits.
        upsampling: of the maps to the frame's size; None where they have it.
    """

    anatomies: Sequence[str]
    maps: Tensor
    thresholds: Tensor
    upsampling: Upsampling | None = None

    @cached_property
    def masks(self) -> np.ndarray:
        """bool (A, H, W): the pixels that each head claims."""
        above = torch.gt if self.upsampling is None else self.upsampling.above
        masks = above(self.maps, self.thresholds)
        array: np.ndarray = masks.cpu().numpy()
        return array

    @cached_property
    def logits(self) -> Tensor:
        """float (A, H, W), on the predictor's device."""
        return self.maps if self.upsampling is None else self.upsampling(self.maps[None])[0]

    @cached_property
    def margins(self) -> Tensor:
        """float (A, H, W), each head's logit minus its threshold, on the predictor's device."""
        return self.logits - self.thresholds

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 (A, H, W): the sigmoid of the logits."""
        array: np.ndarray = torch.sigmoid(self.logits).float().cpu().numpy()
        return array

    @cached_property
    def labels(self) -> np.ndarray:
        """uint8 (H, W): 0 where no head claims the pixel, else 1 + the number of the anatomy on top."""
        return topmost(self.margins, self.margins > 0).cpu().numpy()


def silenced(thresholds: Tensor, maps: Tensor, presence: Tensor) -> Tensor:
    """Thresholds (..., A, 1, 1), infinite for the heads whose highest logit is not above their presence threshold.

    thresholds, presence: (A, 1, 1). maps: native logits (..., A, h, w).
    """
    return torch.where(maps.amax((-2, -1), keepdim=True) > presence, thresholds, torch.inf)


def topmost(margins: Tensor, where: Tensor) -> Tensor:
    """The anatomy on top of each pixel: uint8 (H, W), 1 + the number of the one with the largest margin among those in `where`.

    margins: float (A, H, W). where: bool (A, H, W). 0 where there is none.
    """
    largest, anatomy = margins.masked_fill(~where, -torch.inf).max(0)
    return torch.where(largest > -torch.inf, anatomy + 1, 0).to(torch.uint8)


def to_network(frame: np.ndarray, size: Size, device: torch.device) -> Tensor:
    """A frame, uint8 RGB (H, W, 3), as images float (1, 3, height, width) in [0, 1] of size = (width, height).

    Like ingest it stretches to the size, bilinearly over the whole source area (antialiased), here without rounding.
    Raises MtkdError for another kind of array.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise MtkdError(f"a frame is a uint8 RGB array (H, W, 3), this one is {frame.dtype} {frame.shape}. Convert it first.")
    image = to_float(torch.tensor(np.ascontiguousarray(frame), device=device)[None])  # a flipped view has negative strides
    if frame.shape[1::-1] == tuple(size):
        return image
    return F.interpolate(image, size=size[::-1], mode="bilinear", antialias=True)


def to_frame(logits: Tensor, size: Size) -> Tensor:
    """Logits (A, h, w) at the network's size as (A, H, W) at a frame's size = (H, W): the geometry of `to_network` backward."""
    return logits if logits.shape[1:] == size else F.interpolate(logits[None].float(), size=size, mode="bilinear")[0]
