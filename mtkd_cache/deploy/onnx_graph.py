"""What is exported: one function from a decoded frame to masks and probabilities at the frame's size.

Bilinear resizing is a product with one matrix along each axis. Each matrix is found by resizing the unit matrix with the
functions that `Predictor` uses; the network's own upsampling and that to the frame are one matrix.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_cache.evaluation.frames import to_frame
from mtkd_cache.models.fast import folded
from mtkd_cache.models.network import Network, upsample

BLOCKS = range(48, 15, -1)  # rows of the small products that a resampling consists of, the preferred first


class Resampling(nn.Module):
    """(..., inputs, columns) -> (..., outputs, columns): the product with a matrix (outputs, inputs) that is zero off a band.

    Rows are computed in blocks, each from the few inputs that its weights reach.
    """

    def __init__(self, matrix: Tensor):
        super().__init__()
        outputs, inputs = matrix.shape
        block = next((length for length in BLOCKS if outputs % length == 0), min(outputs, 32))
        blocks = F.pad(matrix, (0, 0, 0, -outputs % block)).unflatten(0, (-1, block))
        reached = (blocks != 0).any(1).int()
        first, last = reached.argmax(1), inputs - 1 - reached.flip(1).argmax(1)
        width = int((last - first).max()) + 1
        rows = first.clamp(max=inputs - width)[:, None] + torch.arange(width)
        self.outputs, self.windows = outputs, rows.shape
        self.rows = nn.Buffer(rows.flatten())
        self.weights = nn.Buffer(blocks.gather(2, rows[:, None].expand(-1, block, -1)))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weights @ x.index_select(-2, self.rows).unflatten(-2, self.windows)
        return rows.flatten(-3, -2)[..., : self.outputs, :]


class FrameToMasks(nn.Module):
    """A frame uint8 (H, W, 3) -> masks uint8 (N, H, W), 1 where a logit is above its threshold, and probabilities float32.

    The same as `Predictor` computes, up to rounding, with the networks' batch norms folded.

    Args:
        networks: one with all N heads, or one a head.
        thresholds: of the heads, in logits.
        frame, size: (height, width) of the frame, and of the images that the networks see.
    """

    def __init__(self, networks: Sequence[Network], thresholds: Sequence[float], frame: tuple[int, int], size: tuple[int, int]):
        super().__init__()
        self.frame, self.size = frame, size
        self.thresholds = nn.Buffer(torch.tensor(thresholds)[:, None, None])
        self.down = nn.ModuleList(_down(*lengths) for lengths in zip(frame, size, strict=True))
        cpu, image = torch.device("cpu"), torch.zeros(1, 3, *size)
        self.networks = nn.ModuleList(
            folded(network, cpu).network.to(memory_format=torch.contiguous_format) for network in networks
        )
        self.up = nn.ModuleList(self._upsamplings(network, image) for network in self.networks)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        image = self._image(frame)
        logits = torch.cat([self._logits(image, *pair) for pair in zip(self.networks, self.up, strict=True)])
        return (logits > self.thresholds).to(torch.uint8), torch.sigmoid(logits)

    def _image(self, frame: Tensor) -> Tensor:
        """The frame as the image (1, 3, height, width) in [0, 1] that the networks see."""
        vertical, horizontal = self.down
        columns = vertical(frame.float().flatten(1) / 255).unflatten(1, (-1, 3)).permute(1, 2, 0)
        image: Tensor = horizontal(columns.flatten(1)).unflatten(1, (3, -1)).permute(1, 2, 0)[None]
        return image

    def _logits(self, image: Tensor, network: nn.Module, up: nn.Module) -> Tensor:
        """A network's logits (heads, H, W) at the frame's size."""
        vertical, horizontal = up.children()
        columns = network.native(self._padded(image, network))[0].permute(2, 0, 1)
        logits: Tensor = vertical(horizontal(columns.flatten(1)).unflatten(1, columns.shape[1:]).permute(1, 2, 0))
        return logits

    def _padded(self, image: Tensor, network: nn.Module) -> Tensor:
        right, bottom = (-length % network.multiple for length in self.size[::-1])
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if right or bottom else image

    def _upsamplings(self, network: Network, image: Tensor) -> nn.ModuleList:
        """From a network's native logits to the frame, along each axis."""
        padded = self._padded(image, network)
        with torch.no_grad():
            native = network.native(padded)
        lengths = zip(native.shape[2:], padded.shape[2:], self.size, self.frame, strict=True)
        return nn.ModuleList(_up(*each) for each in lengths)


def _down(frame: int, size: int) -> Resampling:
    """From a frame to an image along one axis, as `to_network`."""
    return Resampling(F.interpolate(torch.eye(frame)[None, None], size=(size, frame), mode="bilinear", antialias=True)[0, 0])


def _up(native: int, padded: int, size: int, frame: int) -> Resampling:
    """From native logits to a frame along one axis, as `Network` and `to_frame`."""
    logits = upsample(torch.eye(native)[None, None], (padded, native))[0, :, :size]
    return Resampling(to_frame(logits, (frame, native))[0])
