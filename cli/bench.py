"""mtkd-cache bench"""

import click

from . import bench_codecs, common
from .common import NUMBERS, SIZE, reports, say

size = click.option("--size", type=SIZE, default="640x512", show_default=True, help="Width x height of the pictures.")
rounds = click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns each form is given.")
batch = click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Samples in a step.")
arch = click.option("--arch", default="mininetv2", show_default=True, help="The student's architecture.")
teacher = click.option("--teacher", default="segformer-mit_b3", show_default=True, help="The teachers' architecture.")


@click.group("bench")
def command() -> None:
    """Measure: every step against what limits it. But for codecs, everything is synthetic and made on the spot."""


command.add_command(bench_codecs.command)


@command.command("stage2")
@arch
@teacher
@size
@batch
@rounds
@common.compute
@common.resident
@common.compiled
@reports
def stage2(arch, teacher, size, batch, rounds, device, precision, resident, compiled) -> dict:
    """The student's step without distillation, from the cache, and with eleven teachers run live, in turn."""
    from mtkd_cache.bench.stage2 import bench_stage2
    from mtkd_cache.recipe import load_recipe
    from mtkd_cache.runtime.accelerator import make_accelerator

    overrides = [f"student.arch={arch}", f"teacher.arch={teacher}", f"student.batch={batch}", "student.weights=none"]
    recipe = load_recipe("paper", overrides)
    result = bench_stage2(recipe, size, rounds, make_accelerator(device, precision), resident, compiled)
    say(
        f"a step: no KD {result['none_s']:.3f} s, cached {result['cached_s']:.3f} s ({result['kd_overhead']:.3f} x), "
        f"online {result['online_s']:.2f} s ({result['online_over_cached']:.1f} x cached); "
        f"waiting for data {100 * result['loader_share']:.1f} %"
    )
    return result


@command.command("cache")
@teacher
@size
@batch
@rounds
@common.compute
@reports
def cache(teacher, size, batch, rounds, device, precision) -> dict:
    """Reading a random batch against the codec's own time and a memory copy, and against what people do today."""
    from mtkd_cache.bench.cache import bench_cache
    from mtkd_cache.recipe import load_recipe
    from mtkd_cache.runtime.accelerator import make_accelerator

    recipe = load_recipe("paper", [f"teacher.arch={teacher}"])
    result = bench_cache(recipe, size, batch, rounds, make_accelerator(device, precision))
    say(
        f"a batch of {batch}: read {result['read_ms']:.2f} ms (decoding alone {result['decode_limit_ms']:.2f}), "
        f"resident {result['resident_ms']:.2f} ms (a copy {result['copy_ms']:.2f}); "
        f"writing costs {100 * result['write_over_forward']:.2f} % of the teachers' passes"
    )
    for way in result["ways"]:
        say(f"  {way['way']:40}{way['bytes_per_sample'] / 1e3:12.1f} kB a sample {way['read_ms']:10.2f} ms a batch")
    return result


@command.command("inference")
@click.option("--arch", "archs", multiple=True, help="Only these architectures.  [default: the paper's]")
@click.option("--size", type=SIZE, default="1280x720", show_default=True, help="Width x height of the pictures.")
@click.option("--heads", type=click.IntRange(1), default=11, show_default=True, help="Anatomies.")
@rounds
@click.option(
    "--form",
    "forms",
    multiple=True,
    type=click.Choice(["folded", "compiled"]),
    default=["folded", "compiled"],
    help="Only these beside the plain one.  [default: both]",
)
@common.device
@reports
def inference(archs, size, heads, rounds, forms, device) -> dict:
    """One picture through every architecture in both layouts, plain and in the forms that may be faster."""
    from mtkd_cache.bench.inference import bench_inference
    from mtkd_cache.bench.machine import machine
    from mtkd_cache.models.network import PAPER_ARCHITECTURES
    from mtkd_cache.runtime.accelerator import make_accelerator

    where = make_accelerator(device).device
    rows = []
    for row in bench_inference(archs or PAPER_ARCHITECTURES, size, heads, rounds, where, forms):
        say(
            f"{row['arch']:28}{row['layout']:10}{row['params_m']:8.2f} M   plain {row['plain_ms']:9.1f} ms   "
            f"{row['form']} {row['ms']:9.1f} ms ({row['fps']:.2f} a second)   {row['plain_over_fast']:.2f} x"
        )
        rows.append(row)
    return {"rows": rows, "machine": machine(where)}


@command.command("build")
@teacher
@size
@batch
@click.option("--samples", type=click.IntRange(1), default=11, show_default=True, help="Samples built.")
@click.option("--stacked", is_flag=True, help="All teachers as one batched call too.")
@rounds
@common.compute
@common.compiled
@reports
def build(teacher, size, batch, samples, stacked, rounds, device, precision, compiled) -> dict:
    """A build of eleven teachers' maps against their bare forward passes."""
    from mtkd_cache.bench.build import bench_build
    from mtkd_cache.recipe import load_recipe
    from mtkd_cache.runtime.accelerator import make_accelerator

    recipe = load_recipe("paper", [f"teacher.arch={teacher}"])
    result = bench_build(recipe, size, samples, batch, rounds, make_accelerator(device, precision), compiled, stacked)
    say(
        f"{result['samples']} samples: built in {result['build_s']:.2f} s, forward passes alone {result['bare_s']:.2f} s: "
        f"{100 * result['throughput']:.1f} % of their throughput"
        + (f"; not compiled {result['plain_s']:.2f} s" if compiled else "")
        + (f"; one batched call {result['stacked_s']:.2f} s" if stacked else "")
    )
    return result


@command.command("stage1")
@click.option("--arch", default="segformer-mit_b3", show_default=True, help="The teacher's architecture.")
@size
@batch
@rounds
@common.compute
@common.resident
@reports
def stage1(arch, size, batch, rounds, device, precision, resident) -> dict:
    """A teacher's step, and how much of it is spent waiting for data."""
    from mtkd_cache.bench.stage1 import bench_stage1
    from mtkd_cache.recipe import load_recipe
    from mtkd_cache.runtime.accelerator import make_accelerator

    recipe = load_recipe("paper", [f"teacher.arch={arch}", f"teacher.batch={batch}", "teacher.weights=none"])
    result = bench_stage1(recipe, size, rounds, make_accelerator(device, precision), resident)
    say(f"a step {result['step_s']:.3f} s, waiting for data {100 * result['loader_share']:.2f} %")
    return result


@command.command("ingest")
@click.option("--source", type=SIZE, default="1920x1080", show_default=True, help="Width x height of the dataset's pictures.")
@size
@click.option("--samples", type=click.IntRange(1), default=22, show_default=True, help="Training samples of the dataset.")
@rounds
@reports
def ingest(source, size, samples, rounds) -> dict:
    """Ingest in one process against decoding and resizing alone."""
    from mtkd_cache.bench.stage1 import bench_ingest
    from mtkd_cache.runtime.accelerator import make_accelerator

    result = bench_ingest(size, source, samples, rounds, make_accelerator("cpu"))
    say(
        f"{result['images_per_second']:.1f} images a second, decoding and resizing alone "
        f"{result['bare_images_per_second']:.1f} ({result['ingest_over_bare']:.2f} x the time)"
    )
    return result


@command.command("scale")
@click.option(
    "--samples", type=NUMBERS, default="100,1000,13195", show_default=True, help="Numbers of training samples to measure at."
)
@click.option("--size", type=SIZE, default="64x64", show_default=True, help="Width x height of the pictures.")
@click.option("--stride", type=click.IntRange(1), default=4, show_default=True, help="Pixels for one logit.")
@reports
def scale(samples, size, stride) -> dict:
    """Time, bytes and memory of ingest, build, verify and an epoch against the number of samples."""
    from mtkd_cache.bench.scale import bench_scale
    from mtkd_cache.recipe import load_recipe
    from mtkd_cache.runtime.accelerator import make_accelerator

    result = bench_scale(load_recipe("paper"), samples, size, stride, make_accelerator("cpu"))
    for row in result["rows"]:
        each = ", ".join(f"{key} {value:.4g}" for key, value in row["a_sample"].items())
        peak = ", ".join(f"{key} {value:.0f}" for key, value in row["peak_mb"].items())
        say(f"{row['samples']} samples, of each: {each}; peak MB: {peak}")
    return result
