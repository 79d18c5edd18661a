"""Growth of time, bytes and memory with the number of samples, measured on small images."""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mtkd_cache.bench.machine import Result, Size, conditions, peak_mb
from mtkd_cache.bench.synthetic import make_cache, make_store
from mtkd_cache.cache.loader import BatchReader, epoch_batches, prefetch
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import CPU


def bench_scale(recipe: Recipe, accelerator: Accelerator, size: Size, counts: Sequence[int], stride: int) -> Result:
    """Seconds, peak memory and bytes of ingest, build, verify and one streamed epoch for each number of samples.

    The time of ingest includes writing the synthetic dataset. growth: time and bytes a sample at the largest number, over those
    at the number before it.
    """
    rows = [_measure(recipe, accelerator, size, samples, stride) for samples in counts]
    last, before = rows[-1]["a_sample"], rows[-2:][0]["a_sample"]
    return {
        "rows": rows,
        "growth": {key: last[key] / before[key] for key in last},
        **conditions(accelerator, size, stride=stride),
    }


def _measure(recipe: Recipe, accelerator: Accelerator, size: Size, samples: int, stride: int) -> Result:
    seconds, peak, results = {}, {}, {}

    def measured(step: str, action: Callable[[], Any]) -> Any:
        def run() -> None:
            start = time.perf_counter()
            results[step] = action()
            seconds[step] = time.perf_counter() - start

        peak[step] = peak_mb(run, CPU)
        return results[step]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = measured("ingest", lambda: make_store(folder, size, samples))
        cache = measured("build", lambda: make_cache(folder, store, recipe, stride, accelerator))
        measured("verify", lambda: verify_cache(cache.url, store=store))
        epoch = ((rows,) for rows in epoch_batches(store.rows("train"), recipe.student.batch, 0, 0))
        measured("epoch", lambda: deque(prefetch(epoch, BatchReader(store, cache).read), maxlen=0))
        count = len(cache.row_of)
        a_sample = {f"{step}_ms": 1e3 * taken / count for step, taken in seconds.items()}
        a_sample |= {"store_bytes": _bytes(store.url) / count, "cache_bytes": _bytes(cache.url) / count}
    return {"samples": count, "seconds": seconds, "peak_mb": peak, "a_sample": a_sample}


def _bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
