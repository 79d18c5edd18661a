"""Ingest against decoding and resizing alone, and a teacher's training step."""

import statistics
import tempfile
from itertools import count, islice
from pathlib import Path

from accelerate import Accelerator

from mtkd_cache.bench.machine import Result, Size, conditions
from mtkd_cache.bench.stage2 import WARM_UP_STEPS, training_steps
from mtkd_cache.bench.synthetic import SPLIT, make_store, write_dataset
from mtkd_cache.data.dresden import ANATOMIES, find_samples, read_image, read_mask
from mtkd_cache.data.ingest import ingest
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import interleaved, ratio
from mtkd_cache.training.teachers import teacher_task


def bench_ingest(accelerator: Accelerator, size: Size, source: Size, samples: int, rounds: int) -> Result:
    """Time ingest in one process, and decoding and resizing of the same images alone, interleaved.

    source: (width, height) of the dataset's images, size: of the store's. Rates are images, each with its mask, per second.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        write_dataset(folder / "dataset", source, samples)
        sources, _ = find_samples(folder / "dataset")

        def decode_all() -> None:
            for sample in sources:
                read_image(sample.image, size)
                read_mask(sample.mask, size)

        def ingest_all() -> None:
            ingest(folder / "dataset", str(folder / f"{next(numbers)}.zarr"), size=size, split=SPLIT)

        times = interleaved({"bare": decode_all, "ingest": ingest_all}, rounds)
    return {
        "images_per_second": len(sources) / statistics.median(times["ingest"]),
        "bare_images_per_second": len(sources) / statistics.median(times["bare"]),
        "ingest_over_bare": ratio(times, "ingest", "bare"),
        "images": len(sources),
        **conditions(accelerator, size, source=list(source), rounds=rounds),
    }


def bench_stage1(recipe: Recipe, accelerator: Accelerator, size: Size, rounds: int, resident: str) -> Result:
    """The median of a teacher's step in seconds, and the share of it spent waiting for data."""
    teacher = recipe.teacher
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), size, 2 * teacher.batch * len(ANATOMIES))
        steps = training_steps(teacher_task(store, store.anatomies[0], recipe, accelerator, resident), accelerator)
        times, waited = zip(*islice(steps, WARM_UP_STEPS, WARM_UP_STEPS + rounds), strict=True)
        steps.close()
    return {
        "step_s": statistics.median(times),
        "spread_s": [min(times), max(times)],
        "loader_share": sum(waited) / sum(times),
        **conditions(accelerator, size, arch=teacher.arch, batch=teacher.batch, resident=resident, rounds=rounds),
    }
