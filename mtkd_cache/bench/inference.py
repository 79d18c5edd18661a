"""One picture, all anatomies: the plain loop over the decoders beside its fast forms, separate networks one after the other."""

import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from mtkd_cache.models.fast import FORMS, plain
from mtkd_cache.models.network import create_network
from mtkd_cache.models.segformer import reference_smp
from mtkd_cache.runtime.timing import interleaved, ratio, seconds, spread


def bench_inference(
    archs: Sequence[str], size: tuple[int, int], heads: int, rounds: int, device: torch.device, forms: Sequence[str]
) -> Iterator[dict]:
    """A row for each architecture and layout: medians in milliseconds a picture of batch 1, in eval mode, all forms in turn.

    size: (width, height). forms: those of `mtkd_cache.models.fast.FORMS` to try beside the plain network. Separate networks run
    one after the other, as in the paper: one is timed and counted `heads` times. ms is that of the fastest, named by `form`
    ("plain" where no other is faster). forms_ms: of each, and for SegFormer of smp's own modules. warm_up_s: the first call of
    each, compilation included.
    """
    torch.manual_seed(0)
    images = torch.rand(1, 3, size[1], size[0], device=device)
    for arch in archs:
        for layout, outputs, calls in (("separate", 1, heads), ("shared", heads, 1)):
            network = create_network(arch, outputs)
            ways = {name: FORMS[name](network, device) for name in ("plain", *forms)}
            if arch.startswith("segformer"):
                ways["smp"] = plain(reference_smp(network), device)
            actions = {name: partial(way, images) for name, way in ways.items()}
            warm_up = {name: seconds(action, device) for name, action in actions.items()}
            times = interleaved(actions, rounds, device)
            milliseconds = {name: 1e3 * calls * statistics.median(taken) for name, taken in times.items()}
            best = min(("plain", *forms), key=milliseconds.get)
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
                "spread_ms": {name: [1e3 * calls * one for one in spread(taken)] for name, taken in times.items()},
            }
