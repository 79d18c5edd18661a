"""mtkd-cache bench"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mtkd_cache as mc
from mtkd_cache.recipe import load_recipe

from . import common

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMS = click.Choice(["folded", "compiled"])
FRAME_FORMS = click.Choice(["plain", "fastest", "onnxruntime", "openvino"])
Action = Callable[..., dict[str, Any]]

size = click.option("--size", type=common.SIZE, default="640x512", help="Image size, width x height.")
batch = click.option("--batch", type=click.IntRange(1), default=8, help="Batch size.")
rounds = click.option("--rounds", type=click.IntRange(1), default=5, help="Number of measurements of each action.")
teacher = click.option("--teacher", default="segformer-mit_b3", help="The teachers' architecture.")


@click.group("bench")
def command() -> None:
    """Measure each step against its limit, on synthetic data (except codecs)."""


def measures(*options: Callable[[Any], Any]) -> Callable[[Action], None]:
    """Add a command whose function takes an `accelerator`, of --device and --precision where it has them, else the CPU."""

    def add(function: Action) -> None:
        @functools.wraps(function)
        def run(*, device: str | None = "cpu", precision: str = "no", **values: Any) -> dict[str, Any]:
            return function(accelerator=common.accelerator_of({"device": device, "precision": precision}), **values)

        command.command()(common.stack(*options)(common.reports(run)))

    return add


def show(result: dict[str, Any]) -> dict[str, Any]:
    """Print the main figures of a result, which is returned as it is."""
    from mtkd_cache.bench.table import rows

    for measured, figures in rows(result):
        common.say(f"{measured}: {figures}")
    return result


@measures(
    click.option("--arch", default="mininetv2", help="The student's architecture."),
    *(teacher, size, batch, rounds, common.compute, common.resident, common.compiled),
)
def stage2(arch: str, teacher: str, batch: int, **options: Any) -> dict[str, Any]:
    """A student's step without distillation, with the cache, and with eleven live teachers."""
    from mtkd_cache.bench.training import bench_stage2

    values = {"student.arch": arch, "teacher.arch": teacher, "student.batch": batch, "student.weights": "none"}
    return show(bench_stage2(load_recipe("paper", values=values), **options))


@measures(teacher, size, batch, rounds, common.compute)
def cache(teacher: str, **options: Any) -> dict[str, Any]:
    """Reading a random batch against decoding alone, a copy in memory, and common ways to store logits."""
    from mtkd_cache.bench.cache import bench_cache

    return show(bench_cache(load_recipe("paper", values={"teacher.arch": teacher}), **options))


@measures(
    click.option("--arch", "archs", multiple=True, help="Only this architecture (repeatable).  [default: the paper's]"),
    click.option(
        "--layout",
        "layouts",
        multiple=True,
        type=click.Choice(["separate", *common.LAYOUTS]),
        help="Only this layout (repeatable).  [default: separate and shared; of your own network joint]",
    ),
    click.option("--size", type=common.SIZE, default="1280x720", help="Image size, width x height."),
    click.option("--heads", type=click.IntRange(1), default=11, help="Number of anatomies."),
    rounds,
    click.option("--form", "forms", multiple=True, type=FORMS, default=FORMS.choices, help="Compare with plain (repeatable)."),
    common.device,
)
def inference(accelerator: "Accelerator", archs: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """One image through every architecture and layout: plain, folded and compiled."""
    from mtkd_cache.bench.inference import bench_inference
    from mtkd_cache.bench.machine import machine
    from mtkd_cache.models.network import PAPER_ARCHITECTURES

    rows = []
    for row in bench_inference(archs or PAPER_ARCHITECTURES, device=accelerator.device, **options):
        show({"rows": [row]})
        rows.append(row)
    return {"rows": rows, "machine": machine(accelerator.device)}


@measures(
    click.option("--arch", default="mininetv2", help="The architecture."),
    click.option(
        "--layout",
        "layouts",
        multiple=True,
        type=click.Choice(["separate", *common.LAYOUTS]),
        help="Only this layout (repeatable).  [default: all of the architecture, without separate]",
    ),
    click.option(
        "--frame", "sizes", multiple=True, type=common.SIZE, default=["1280x720", "1920x1080"], help="Frame size (repeatable)."
    ),
    click.option("--size", type=common.SIZE, help="Size of the images that the network sees.  [default: the frame's]"),
    click.option("--heads", type=click.IntRange(1), default=11, help="Number of anatomies."),
    click.option("--frames", type=click.IntRange(1), default=300, help="Frames timed in each layout and form."),
    click.option("--form", "forms", multiple=True, type=FRAME_FORMS, default=FRAME_FORMS.choices, help="Only this (repeatable)."),
    common.device,
)
def frame(accelerator: "Accelerator", arch: str, layouts: tuple[str, ...], sizes: Any, **options: Any) -> dict[str, Any]:
    """A whole frame, decoded picture to masks, in torch and exported; percentiles, and the share of each part."""
    from mtkd_cache.bench.frame import bench_frame
    from mtkd_cache.bench.machine import machine
    from mtkd_cache.models.network import layouts_of

    rows = []
    for size in sizes:
        for row in bench_frame(arch, layouts or layouts_of(arch), size, device=accelerator.device, **options):
            show({"rows": [row]})
            rows.append(row)
    return {"rows": rows, "machine": machine(accelerator.device)}


@measures(
    *(teacher, size, batch, rounds, common.compute),
    click.option("--samples", type=click.IntRange(1), default=11, help="Number of samples."),
    click.option("--views", type=click.IntRange(1), default=1, help="Recorded views of each sample."),
    click.option("--stacked", is_flag=True, help="Also run all teachers as one batched call."),
    common.compiled,
)
def build(teacher: str, views: int, **options: Any) -> dict[str, Any]:
    """A build of eleven teachers' maps against their forward passes alone."""
    from mtkd_cache.bench.build import bench_build

    return show(bench_build(load_recipe("paper", values={"teacher.arch": teacher, "cache.views": views}), **options))


@measures(
    click.option("--arch", default="segformer-mit_b3", help="The teacher's architecture."),
    *(size, batch, rounds, common.compute, common.resident),
)
def stage1(arch: str, batch: int, **options: Any) -> dict[str, Any]:
    """A teacher's step, and the share of it spent waiting for data."""
    from mtkd_cache.bench.training import bench_stage1

    values = {"teacher.arch": arch, "teacher.batch": batch, "teacher.weights": "none"}
    return show(bench_stage1(load_recipe("paper", values=values), **options))


@measures(
    click.option("--source", type=common.SIZE, default="1920x1080", help="Image size in the dataset, width x height."),
    size,
    click.option("--samples", type=click.IntRange(1), default=22, help="Number of training samples in the dataset."),
    rounds,
)
def ingest(**options: Any) -> dict[str, Any]:
    """Ingest in one process against decoding and resizing alone."""
    from mtkd_cache.bench.build import bench_ingest

    return show(bench_ingest(**options))


@measures(
    *(common.store, common.teachers, common.teacher),
    click.option("--samples", type=click.IntRange(1), default=16, help="Number of training samples, drawn at random."),
    common.compute,
)
def codecs(store: str, teachers: Path, named: tuple[Any, ...], **options: Any) -> dict[str, Any]:
    """Size and time of trained teachers' logits under standard Zarr codecs, at steps of 1/16 to 1."""
    from mtkd_cache.bench.codecs import bench_codecs, table

    samples = mc.SampleStore.open(store)
    result = bench_codecs(samples, mc.Teachers.gather(named, samples, teachers), **options)
    common.say("\n".join(table(result["rows"])))
    return result


@measures(
    click.option(
        "--samples", "counts", type=common.NUMBERS, default="100,1000,13195", help="Numbers of training samples to measure at."
    ),
    click.option("--size", type=common.SIZE, default="64x64", help="Image size, width x height."),
    click.option("--stride", type=click.IntRange(1), default=4, help="Pixels for one logit."),
)
def scale(**options: Any) -> dict[str, Any]:
    """Time, bytes and memory of ingest, build, verify and an epoch against the number of samples."""
    from mtkd_cache.bench.scale import bench_scale

    return show(bench_scale(load_recipe("paper"), **options))


@measures(
    *(common.store, common.teachers, common.teacher),
    click.option("--out", type=common.FOLDER, default="runs/parity", help="The folder of the trainings and their result."),
    click.option("--arm", "arms", multiple=True, metavar="NAME", help="Only this arm (repeatable).  [default: all]"),
    click.option("--arch", help="The student's architecture.  [default: the recipe's]"),
    common.layout,
    click.option(
        "--length",
        "lengths",
        multiple=True,
        type=click.Choice(["short", "long"]),
        default=["short"],
        help="Epochs: the recipe's, or 4 times (repeatable).",
    ),
    click.option("--seeds", type=common.NUMBERS, default="0,1,2", help="Seeds of the students."),
    click.option("--split", type=click.Choice(["validation", "test"]), default="test", help="Where they are judged."),
    *(common.joined, common.recipe, common.overrides, common.compute, common.resident),
)
def parity(accelerator: "Accelerator", out: Path, joined: tuple[Path, ...], **options: Any) -> dict[str, Any]:
    """Students of cached maps, recorded views and live teachers, paired by seed. Resumes after an interruption.

    Trains on --store with --teachers. Start the same command as often as processes should share the work.
    """
    from mtkd_cache.bench.parity import ARMS, ParityStudy, plan
    from mtkd_cache.bench.parity_report import write_parity
    from mtkd_cache.study.gain.arms import LENGTHS

    if joined:
        return common.say_report(write_parity(joined, out))
    recipe, lengths = common.recipe_of(options, {"student.arch": options["arch"]}), options["lengths"]
    store, named, teachers = mc.SampleStore.open(options["store"]), options["named"], options["teachers"]
    study = ParityStudy(
        out,
        store,
        recipe,
        options["resident"],
        recipe_of=lambda values: common.recipe_of(options, {"student.arch": options["arch"], **values}),
        load=lambda: mc.Teachers.gather(named, store, teachers),
        views=max(LENGTHS[length] for length in lengths) * recipe.student.epochs,
        layout=options["layout"],
    )
    place = recipe.student.arch, options["seeds"], options["split"], options["layout"]
    jobs = plan(options["arms"] or list(ARMS), lengths, *place)
    result = common.run_study(study, jobs, accelerator)
    return {**result, **result.pop("report")}
