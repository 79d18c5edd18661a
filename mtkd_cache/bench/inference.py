"""Inference time of one image for all anatomies: plain networks, their fast forms, and smp's SegFormer."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from mtkd_cache.bench.machine import Result, Size
from mtkd_cache.models.fast import FORMS, plain
from mtkd_cache.models.network import create_network
from mtkd_cache.models.own import is_own
from mtkd_cache.models.segformer import reference_smp
from mtkd_cache.runtime.timing import interleaved, medians, ratio, seconds, spreads


def bench_inference(
    archs: Sequence[str],
    size: Size,
    heads: int,
    rounds: int,
    device: torch.device,
    forms: Sequence[str],
    layouts: Sequence[str] = (),
) -> Iterator[Result]:
    """Time one image (batch 1, eval mode) through each architecture and layout, all forms interleaved.

    Separate networks run one after the other, as in the paper: one network is timed and counted `heads` times.

    Args:
        size: (width, height).
        forms: those of `mtkd_cache.models.fast.FORMS` to measure besides the plain network.
        layouts: "separate" or those of `create_network`; by default the paper's two, "separate" and "shared".

    Returns:
        A row for each architecture and layout. ms: median of the fastest form, which `form` names ("plain" if no other is
        faster). forms_ms: medians of all forms, for SegFormer also of smp's own modules. warm_up_s: the first call of each form,
        compilation included.
    """
    torch.manual_seed(0)
    images = torch.rand(1, 3, size[1], size[0], device=device)
    for arch in archs:
        for layout in layouts or (("joint",) if is_own(arch) else ("separate", "shared")):
            outputs, calls = (1, heads) if layout == "separate" else (heads, 1)
            network = create_network(arch, outputs, None if layout == "separate" else layout)
            networks = {name: FORMS[name](network, device) for name in ("plain", *forms)}
            if arch.startswith("segformer"):
                networks["smp"] = plain(reference_smp(network), device)
            actions = {name: partial(form, images) for name, form in networks.items()}
            warm_up = {name: seconds(action, device) for name, action in actions.items()}
            times = interleaved(actions, rounds, device)
            milliseconds = medians(times, 1e3 * calls)
            best = min(("plain", *forms), key=milliseconds.__getitem__)
            yield {
                "arch": arch,
                "layout": layout,
                "heads": heads,
                "size": list(size),
                "params_m": calls * network.params_m,
                "ms": milliseconds[best],
                "fps": 1e3 / milliseconds[best],
                "form": best,
                "plain_ms": milliseconds["plain"],
                "plain_over_fast": ratio(times, "plain", best),
                "forms_ms": milliseconds,
                "warm_up_s": warm_up,
                "spread_ms": spreads(times, 1e3 * calls),
            }
