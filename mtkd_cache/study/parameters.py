"""Parameters of the paper's seven architectures in both layouts, beside the paper's Table 1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.models.network import PAPER_ARCHITECTURES, create_network
from mtkd_cache.study.published import published

NOTES = {
    ("mininetv2", "separate"): "5.57 truncated, not rounded, is the table's 5.5",
    ("mininetv2", "shared"): "no contiguous split gives the table's 1.1; this is the official encoder and decoder",
}


class ParameterRow(TypedDict):
    """One row; params in millions, `note` empty where ours and the paper's agree within 1 %."""

    arch: str
    encoder: str
    layout: str
    params_m: float
    paper_params_m: float
    note: str


def parameter_table() -> list[ParameterRow]:
    """Rows for PAPER_ARCHITECTURES: all separate (11 whole networks), then all shared (one encoder, 11 decoders)."""
    paper, count = published(), len(ANATOMIES)
    parts = {arch: _parts_m(arch) for arch in PAPER_ARCHITECTURES}
    return [
        ParameterRow(
            arch=arch,
            encoder=paper[arch, layout, False].encoder,
            layout=layout,
            params_m=count * decoder + encoders * encoder,
            paper_params_m=paper[arch, layout, False].params_m,
            note=NOTES.get((arch, layout), ""),
        )
        for layout, encoders in (("separate", count), ("shared", 1))
        for arch, (encoder, decoder) in parts.items()
    ]


def _parts_m(arch: str) -> tuple[float, float]:
    """Parameters of the encoder and of one decoder of `arch`, in millions."""
    with _without_memory():
        network = create_network(arch, heads=1)
    return _count_m(network.encoder), _count_m(network.decoders[0])


def _count_m(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


class _MetaInitialization(TorchFunctionMode):
    """Lets a network be created on the meta device: torch.linspace has values, and initialization is skipped.

    The mit encoders read their drop-path rates out of torch.linspace; filling tensors that have no values takes time.
    """

    FILLING = frozenset({"normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_"})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs = {**kwargs, "device": "cpu"}
        if getattr(func, "__name__", "") in self.FILLING and args and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def _without_memory() -> Iterator[None]:
    """Modules created inside have shapes and no values."""
    with torch.device("meta"), _MetaInitialization():
        yield
