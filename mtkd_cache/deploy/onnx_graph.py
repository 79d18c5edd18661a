"""What is exported: one function from a decoded frame to masks and probabilities at the frame's size.

Bilinear resizing is a product with one matrix along each axis. Each matrix is found by resizing the unit matrix with the
functions that `Predictor` uses; the network's own upsampling and that to the frame are one matrix.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
        rows: Tensor = self.weights @ x.index_select(-2, self.rows).unflatten(-2, self.windows)
        return rows.flatten(-3, -2)[..., : self.outputs, :]


class Branch(nn.Module):
    """A network and what is around it: an image (1, 3, height, width) in [0, 1] -> logits (heads, H, W), and the highest native
    logit of each head (heads,).

    image: for its size. frame: (H, W).
    """

    def __init__(self, network: Network, image: Tensor, frame: tuple[int, int]):
        super().__init__()
        self.network = _for_export(folded(network, torch.device("cpu")).network)
        padded = self.network.padded(image)
        with torch.no_grad():
            native = self.network.native(padded)
        self.vertical, self.horizontal = (
            _up(*lengths) for lengths in zip(native.shape[2:], padded.shape[2:], image.shape[2:], frame, strict=True)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        native = self.network.native(self.network.padded(image))[0]
        columns = native.permute(2, 0, 1)
        rows = self.horizontal(columns.flatten(1)).unflatten(1, columns.shape[1:]).permute(1, 2, 0)
        return self.vertical(rows), native.amax((1, 2))


class FrameToMasks(nn.Module):
    """A frame uint8 (H, W, 3) -> masks uint8 (N, H, W), 1 where a head claims a pixel, and probabilities float32.

    The same as `Predictor` computes, up to rounding, with the networks' batch norms folded.

    Args:
        networks: one with all N heads, or one a head.
        thresholds, presence: of the heads, in logits, see `mtkd_cache.evaluation.frames.Prediction`; presence -inf for none.
        frame, size: (height, width) of the frame, and of the images that the networks see.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        thresholds: Sequence[float],
        presence: Sequence[float],
        frame: tuple[int, int],
        size: tuple[int, int],
    ):
        super().__init__()
        self.thresholds = nn.Buffer(torch.tensor(thresholds)[:, None, None])
        self.presence = nn.Buffer(torch.tensor(presence)) if max(presence) > -torch.inf else None
        self.vertical, self.horizontal = (_down(*lengths) for lengths in zip(frame, size, strict=True))
        self.branches = nn.ModuleList(Branch(network, torch.zeros(1, 3, *size), frame) for network in networks)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        columns = self.vertical(frame.float().flatten(1) / 255).unflatten(1, (-1, 3)).permute(1, 2, 0)
        image = self.horizontal(columns.flatten(1)).unflatten(1, (3, -1)).permute(1, 2, 0)[None]
        parts = [branch(image) for branch in self.branches]
        logits = torch.cat([each for each, _ in parts])
        thresholds: Tensor = self.thresholds
        if self.presence is not None:
            silent = ~(torch.cat([highest for _, highest in parts]) > self.presence)
            thresholds = thresholds.masked_fill(silent[:, None, None], torch.inf)
        return (logits > thresholds).to(torch.uint8), torch.sigmoid(logits)


def _for_export(network: Network) -> Network:
    """The network with batch norms that were folded into no convolution as 1x1 convolutions of each channel.

    ONNX Runtime computes convolutions in a layout of its own and would leave it for each batch norm, and stay out of it.
    """
    network.to(memory_format=torch.contiguous_format)
    traced = (part for part in (network.encoder, network.neck, *network.decoders) if isinstance(part, fx.GraphModule))
    for part in traced:
        for name, module in list(part.named_modules()):
            if type(module) is nn.BatchNorm2d:
                part.set_submodule(name, _as_convolution(module))
    return network


def _as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    channels = norm.num_features
    identity = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
    nn.init.ones_(identity.weight)
    fused: nn.Conv2d = fuse_conv_bn_eval(identity.eval(), norm)
    return fused


def _down(frame: int, size: int) -> Resampling:
    """From a frame to an image along one axis, as `to_network`."""
    return Resampling(F.interpolate(torch.eye(frame)[None, None], size=(size, frame), mode="bilinear", antialias=True)[0, 0])


def _up(native: int, padded: int, size: int, frame: int) -> Resampling:
    """From native logits to a frame along one axis, as `Network` and `to_frame`."""
    logits = upsample(torch.eye(native)[None, None], (padded, native))[0, :, :size]
    return Resampling(to_frame(logits, (frame, native))[0])
