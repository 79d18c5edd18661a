"""Do time and bytes grow with the number of samples as a straight line, and does memory stay where it is? On small pictures."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from mtkd_cache.bench.machine import machine, peak_mb, start_peak
from mtkd_cache.bench.synthetic import make_cache, make_store
from mtkd_cache.cache.loader import BatchReader, epoch_batches, prefetch
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import CPU


def bench_scale(recipe: Recipe, counts: Sequence[int], size: tuple[int, int], stride: int, accelerator: Accelerator) -> dict:
    """Of each number of samples: seconds, peak memory and bytes of ingest, build, verify and one streamed epoch.

    The pictures of a dataset are made beside their ingest and counted with it. growth: time and bytes a sample of the largest
    number over those of the one before.
    """
    rows = [_measure(recipe, samples, size, stride, accelerator) for samples in counts]
    before, last = rows[-2:] if len(rows) > 1 else (rows[0], rows[0])
    return {
        "rows": rows,
        "growth": {key: last["a_sample"][key] / before["a_sample"][key] for key in last["a_sample"]},
        "size": list(size),
        "stride": stride,
        "machine": machine(accelerator.device),
    }


def _measure(recipe: Recipe, samples: int, size: tuple[int, int], stride: int, accelerator: Accelerator) -> dict:
    seconds, peak, made = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def epoch(store: SampleStore, cache: LogitCache) -> None:
            stream = BatchReader(store, cache)
            batches = epoch_batches(store.rows("train"), recipe.student.batch, 0, 0)
            for _ in prefetch(((rows,) for rows in batches), stream.read):
                pass

        for what, action in {
            "ingest": lambda: make_store(folder, size, samples),
            "build": lambda: make_cache(folder, made["ingest"], recipe, stride, accelerator),
            "verify": lambda: verify(made["build"].url, store=made["ingest"]),
            "epoch": lambda: epoch(made["ingest"], made["build"]),
        }.items():
            start_peak(CPU)
            start = time.perf_counter()
            made[what] = action()
            seconds[what], peak[what] = time.perf_counter() - start, peak_mb(CPU)
        count = len(made["build"].row_of)
        size_of = {what: _bytes(Path(made[what].url)) for what in ("ingest", "build")}
    a_sample = {f"{what}_ms": 1e3 * taken / count for what, taken in seconds.items()}
    a_sample |= {"store_bytes": size_of["ingest"] / count, "cache_bytes": size_of["build"] / count}
    return {"samples": count, "seconds": seconds, "peak_mb": peak, "a_sample": a_sample}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
