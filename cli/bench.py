"""mtkd-cache bench"""

from pathlib import Path
from typing import Any

import click

from mtkd_cache.recipe import load_recipe

from . import common
from .common import NUMBERS, SIZE, accelerator_of, reports, say

Size = tuple[int, int]  # width, height
CPU = {"device": "cpu", "precision": "no"}
FORMS = ["folded", "compiled"]

size = click.option("--size", type=SIZE, default="640x512", help="Image size, width x height.")
batch = click.option("--batch", type=click.IntRange(1), default=8, help="Batch size.")
rounds = click.option("--rounds", type=click.IntRange(1), default=5, help="Number of measurements of each action.")
teacher = click.option("--teacher", default="segformer-mit_b3", help="The teachers' architecture.")
workload = common.stack(size, batch, rounds, common.compute)


@click.group("bench")
def command() -> None:
    """Measure each step against its limit, on synthetic data (except codecs)."""


def show(result: dict[str, Any]) -> dict[str, Any]:
    """Print the main figures of a result, which is returned as it is."""
    from mtkd_cache.bench.table import rows

    for measured, figures in rows(result):
        say(f"{measured}: {figures}")
    return result


@command.command("stage2")
@click.option("--arch", default="mininetv2", help="The student's architecture.")
@teacher
@workload
@common.resident
@common.compiled
@reports
def stage2(
    arch: str, teacher: str, size: Size, batch: int, rounds: int, resident: str, compiled: bool, **options: Any
) -> dict[str, Any]:
    """A student's step without distillation, with the cache, and with eleven live teachers."""
    from mtkd_cache.bench.stage2 import bench_stage2

    values = {"student.arch": arch, "teacher.arch": teacher, "student.batch": batch, "student.weights": "none"}
    recipe = load_recipe("paper", values=values)
    return show(bench_stage2(recipe, accelerator_of(options), size, rounds, resident, compiled))


@command.command("cache")
@teacher
@workload
@reports
def cache(teacher: str, size: Size, batch: int, rounds: int, **options: Any) -> dict[str, Any]:
    """Reading a random batch against decoding alone, a copy in memory, and common ways to store logits."""
    from mtkd_cache.bench.cache import bench_cache

    recipe = load_recipe("paper", values={"teacher.arch": teacher})
    return show(bench_cache(recipe, accelerator_of(options), size, batch, rounds))


@command.command("inference")
@click.option("--arch", "archs", multiple=True, help="Only this architecture (repeatable).  [default: the paper's]")
@click.option("--size", type=SIZE, default="1280x720", help="Image size, width x height.")
@click.option("--heads", type=click.IntRange(1), default=11, help="Number of anatomies.")
@rounds
@click.option("--form", "forms", multiple=True, type=click.Choice(FORMS), default=FORMS, help="Compare with plain (repeatable).")
@common.device
@reports
def inference(
    archs: tuple[str, ...], size: Size, heads: int, rounds: int, forms: tuple[str, ...], device: str | None
) -> dict[str, Any]:
    """One image through every architecture in both layouts: plain, folded and compiled."""
    from mtkd_cache.bench.inference import bench_inference
    from mtkd_cache.bench.machine import machine
    from mtkd_cache.models.network import PAPER_ARCHITECTURES

    where = accelerator_of({**CPU, "device": device}).device
    rows = []
    for row in bench_inference(archs or PAPER_ARCHITECTURES, size, heads, rounds, where, forms):
        show({"rows": [row]})
        rows.append(row)
    return {"rows": rows, "machine": machine(where)}


@command.command("build")
@teacher
@workload
@click.option("--samples", type=click.IntRange(1), default=11, help="Number of samples.")
@click.option("--stacked", is_flag=True, help="Also run all teachers as one batched call.")
@common.compiled
@reports
def build(
    teacher: str, size: Size, batch: int, rounds: int, samples: int, stacked: bool, compiled: bool, **options: Any
) -> dict[str, Any]:
    """A build of eleven teachers' maps against their forward passes alone."""
    from mtkd_cache.bench.build import bench_build

    recipe = load_recipe("paper", values={"teacher.arch": teacher})
    return show(bench_build(recipe, accelerator_of(options), size, batch, rounds, samples, compiled, stacked))


@command.command("stage1")
@click.option("--arch", default="segformer-mit_b3", help="The teacher's architecture.")
@workload
@common.resident
@reports
def stage1(arch: str, size: Size, batch: int, rounds: int, resident: str, **options: Any) -> dict[str, Any]:
    """A teacher's step, and the share of it spent waiting for data."""
    from mtkd_cache.bench.stage1 import bench_stage1

    recipe = load_recipe("paper", values={"teacher.arch": arch, "teacher.batch": batch, "teacher.weights": "none"})
    return show(bench_stage1(recipe, accelerator_of(options), size, rounds, resident))


@command.command("ingest")
@click.option("--source", type=SIZE, default="1920x1080", help="Image size in the dataset, width x height.")
@size
@click.option("--samples", type=click.IntRange(1), default=22, help="Number of training samples in the dataset.")
@rounds
@reports
def ingest(source: Size, size: Size, samples: int, rounds: int) -> dict[str, Any]:
    """Ingest in one process against decoding and resizing alone."""
    from mtkd_cache.bench.stage1 import bench_ingest

    return show(bench_ingest(accelerator_of(CPU), size, source, samples, rounds))


@command.command("codecs")
@common.store
@common.teachers
@click.option("--samples", type=click.IntRange(1), default=16, help="Number of training samples, drawn at random.")
@common.compute
@reports
def codecs(store: str, teachers: Path, samples: int, **options: Any) -> dict[str, Any]:
    """Size and time of trained teachers' logits under standard Zarr codecs, at steps of 1/16 to 1/2."""
    from mtkd_cache.bench.codecs import bench_codecs, table
    from mtkd_cache.data.sample_store import SampleStore

    result = bench_codecs(SampleStore.open(store), teachers, samples, accelerator_of(options))
    for line in table(result["rows"]):
        say(line)
    return result


@command.command("scale")
@click.option("--samples", type=NUMBERS, default="100,1000,13195", help="Numbers of training samples to measure at.")
@click.option("--size", type=SIZE, default="64x64", help="Image size, width x height.")
@click.option("--stride", type=click.IntRange(1), default=4, help="Pixels for one logit.")
@reports
def scale(samples: tuple[int, ...], size: Size, stride: int) -> dict[str, Any]:
    """Time, bytes and memory of ingest, build, verify and an epoch against the number of samples."""
    from mtkd_cache.bench.scale import bench_scale

    return show(bench_scale(load_recipe("paper"), accelerator_of(CPU), size, samples, stride))
