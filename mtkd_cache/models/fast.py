"""Fast forms of a network for inference: the same weights, and the same logits up to rounding."""

import copy
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from mtkd_cache.models.decoders import SmpDecoder
from mtkd_cache.models.network import Network
from mtkd_cache.models.segformer import Decoder, FoldedDecoder
from mtkd_cache.runtime.timing import interleaved

ROUNDS = 5  # timed calls of each form before one is chosen


class Fast(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> logits (B, heads, H, W), for inference only.

    layout: memory format of its tensors.
    """

    def __init__(self, network: Network, layout: torch.memory_format = torch.channels_last):
        super().__init__()
        self.network, self.layout = network.to(memory_format=layout), layout

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.network(images.contiguous(memory_format=self.layout))
            return logits


def plain(network: Network, device: torch.device) -> Fast:
    """A copy of a network on a device, unchanged."""
    return Fast(_copy(network, device), torch.contiguous_format)


def folded(network: Network, device: torch.device) -> Fast:
    """A copy of a network on a device, channels-last, its batch norms folded into the convolutions before them."""
    copied = _copy(network, device)
    copied.encoder, copied.neck = _folded(copied.encoder), _folded(copied.neck)
    copied.decoders = nn.ModuleList(_folded(decoder) for decoder in copied.decoders)
    return Fast(copied)


def compiled(network: Network, device: torch.device) -> Fast:
    """The folded form, compiled at the first call for each image size, which takes a minute or two and needs a C++ compiler.

    On a GPU its kernels are replayed as one CUDA graph: what `native` of its network returns is overwritten by the next call.
    """
    form = folded(network, device)
    if device.type == "cuda":
        native: Any = torch.compile(form.network.native, mode="reduce-overhead")
        form.network.native = native  # type: ignore[method-assign]
    else:
        compile_parts(form.network)
    return form


def compile_parts(network: Network) -> None:
    """Compile the encoder, the neck and each decoder at their first call; state-dict keys stay as they are.

    A module without operations is left out: torch.compile would give up on it, and then on all modules called after it.
    """
    for part in (network.encoder, network.neck, *network.decoders):
        if not isinstance(part, nn.Identity):
            part.compile()


FORMS = {"plain": plain, "folded": folded, "compiled": compiled}


def fastest(network: Network, images: Tensor) -> Fast:
    """The form that is fastest for images of this shape on their device, found by timing each; the network stays as it is.

    A form that torch cannot make here (without a compiler, say) takes no part.
    """
    forms: dict[str, Fast] = {}
    for name, make in FORMS.items():
        form = make(network, images.device)
        try:
            form(images)
        except Exception:  # torch.compile fails in many ways
            continue
        forms[name] = form
    times = interleaved({name: partial(form, images) for name, form in forms.items()}, ROUNDS, images.device)
    return forms[min(times, key=lambda name: statistics.median(times[name]))]


def _copy(network: Network, device: torch.device) -> Network:
    return copy.deepcopy(network).eval().to(device)


def _folded(part: nn.Module) -> nn.Module:
    """The part with its batch norms folded, or unchanged where torch cannot trace it."""
    if isinstance(part, SmpDecoder) and isinstance(part.decoder, Decoder):
        part.decoder = FoldedDecoder(part.decoder)
        return part
    try:
        fused: nn.Module = fuse(part, inplace=True)
        return fused
    except Exception:  # torch.fx refuses in many ways
        return part
