"""Parameters of the paper's seven architectures in both layouts, beside the paper's Table 1."""

from typing import TypedDict

from accelerate import init_empty_weights
from torch import nn

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
    with init_empty_weights():
        network = create_network(arch, heads=1)
    return _count_m(network.encoder), _count_m(network.decoders[0])


def _count_m(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6
