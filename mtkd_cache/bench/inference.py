"""One picture, all anatomies: the plain loop over the decoders beside the fast form, separate networks one after the other."""

import statistics
from collections.abc import Iterator, Sequence

import torch

from mtkd_cache.bench.machine import in_turn, ratio, spread
from mtkd_cache.models import build
from mtkd_cache.models.fast import fast


def bench_inference(
    archs: Sequence[str], size: tuple[int, int], heads: int, rounds: int, device: torch.device, compiled: bool | None = None
) -> Iterator[dict]:
    """A row for each architecture and layout: medians in milliseconds a picture of batch 1, in eval mode, plain and fast in turn.

    size: (width, height). Separate networks have the weights of one, run `heads` times, which takes the same time.
    """
    torch.manual_seed(0)
    images = torch.rand(1, 3, size[1], size[0], device=device)
    for arch in archs:
        for layout, outputs, calls in (("separate", 1, heads), ("shared", heads, 1)):
            network = build(arch, outputs).eval().to(device)
            quick = fast(network, device, compiled)

            @torch.inference_mode()
            def plain_pass(network=network, calls=calls) -> None:
                for _ in range(calls):
                    network(images)

            def fast_pass(quick=quick, calls=calls) -> None:
                for _ in range(calls):
                    quick(images)

            times = in_turn({"plain": plain_pass, "fast": fast_pass}, rounds, device)
            milliseconds = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
            yield {
                "arch": arch,
                "layout": layout,
                "size": list(size),
                "params_m": calls * network.params_m,
                "ms": milliseconds["fast"],
                "fps": 1e3 / milliseconds["fast"],
                "plain_ms": milliseconds["plain"],
                "plain_over_fast": ratio(times, "plain", "fast"),
                "spread_ms": {name: [1e3 * one for one in spread(taken)] for name, taken in times.items()},
            }
