"""What comes before stage 2: ingest against bare decoding and resizing, and a teacher's step against its wait for data."""

import statistics
import tempfile
from itertools import count
from pathlib import Path

from accelerate import Accelerator

from mtkd_cache.bench.machine import machine
from mtkd_cache.bench.stage2 import Way
from mtkd_cache.bench.synthetic import SPLIT, make_store, write_dataset
from mtkd_cache.data.dresden import find_samples, read_image, read_mask
from mtkd_cache.data.ingest import ingest
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import interleaved, ratio, spread
from mtkd_cache.training.teachers import teacher_task


def bench_ingest(size: tuple[int, int], source: tuple[int, int], samples: int, rounds: int, accelerator: Accelerator) -> dict:
    """Ingest in one process against decoding and resizing the same pictures and nothing else, taken in turn.

    source: (width, height) of the dataset's pictures, size: of the store's. Rates are images, each with its mask, a second.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        write_dataset(folder / "dataset", source, samples)
        sources, _ = find_samples(folder / "dataset")

        def bare() -> None:
            for one in sources:
                read_image(one.image, size)
                read_mask(one.mask, size)

        def ingested() -> None:
            ingest(folder / "dataset", str(folder / f"{next(numbers)}.zarr"), size=size, split=SPLIT)

        times = interleaved({"bare": bare, "ingest": ingested}, rounds)
    return {
        "images_per_second": len(sources) / statistics.median(times["ingest"]),
        "bare_images_per_second": len(sources) / statistics.median(times["bare"]),
        "ingest_over_bare": ratio(times, "ingest", "bare"),
        "images": len(sources),
        "source": list(source),
        "size": list(size),
        "machine": machine(accelerator.device),
    }


def bench_stage1(recipe: Recipe, size: tuple[int, int], rounds: int, accelerator: Accelerator, resident: str = "off") -> dict:
    """The median of a teacher's step in seconds, and the share of it spent waiting for data."""
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), size, 2 * recipe.teacher.batch * 11)
        way = Way(teacher_task(store, store.anatomies[0], recipe, accelerator, resident), accelerator)
        way.warm_up()
        for _ in range(rounds):
            way.step()
        way.close()
    return {
        "step_s": statistics.median(way.times),
        "spread_s": spread(way.times),
        "loader_share": sum(way.waited) / sum(way.times),
        "arch": recipe.teacher.arch,
        "size": list(size),
        "batch": recipe.teacher.batch,
        "resident": resident,
        "precision": accelerator.mixed_precision,
        "machine": machine(accelerator.device),
    }
