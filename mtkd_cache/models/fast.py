"""The form of a network in which it segments fastest; its weights are the plain network's, and so are its logits, to rounding."""

import copy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from mtkd_cache.models.network import Network


class Fast(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> logits (B, heads, H, W), for evaluation alone.

    replayed: the network is a CUDA graph, which writes its logits to the same memory again and again.
    """

    def __init__(self, network: Network, replayed: bool = False):
        super().__init__()
        self.network, self.replayed = network, replayed

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
            return logits.clone() if self.replayed else logits


def fast(network: Network, device: torch.device, compiled: bool | None = None) -> Fast:
    """A network for evaluation on a device; the network given stays as it is.

    Tensors are channels-last, and batch norms are folded into the convolutions before them. compiled: compile the network at the
    first call for each picture size instead, which takes minutes; on a GPU, where it is the default, its launches are then
    replayed as a CUDA graph.
    """
    copied = copy.deepcopy(network).eval().to(device)
    if compiled is None:
        compiled = device.type == "cuda"
    if compiled:
        copied = copied.to(memory_format=torch.channels_last)
        if device.type == "cuda":
            copied.compile(mode="reduce-overhead")
        else:
            for part in (copied.encoder, *copied.decoders):  # one compilation serves all decoders
                part.compile()
        return Fast(copied, replayed=device.type == "cuda")
    copied.encoder = _folded(copied.encoder)
    copied.decoders = nn.ModuleList(_folded(decoder) for decoder in copied.decoders)
    return Fast(copied.to(memory_format=torch.channels_last))


def _folded(part: nn.Module) -> nn.Module:
    """A part with its batch norms folded, or the part itself where torch cannot trace it."""
    try:
        return fuse(part, inplace=True)
    except Exception:  # torch.fx refuses in many ways
        return part
