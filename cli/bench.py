"""mtkd-cache bench"""

import click

from mtkd_cache.cli import bench_codecs, common
from mtkd_cache.cli.common import SIZE, reports, say

size = click.option("--size", type=SIZE, default="640x512", show_default=True, help="Width x height of the pictures.")
rounds = click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns each form is given.")
batch = click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Samples in a step.")
arch = click.option("--arch", default="mininetv2", show_default=True, help="The student's architecture.")


@click.group("bench")
def command() -> None:
    """Measure: inference, a step of stage 2, the cache. Everything is synthetic and made on the spot."""


command.add_command(bench_codecs.command)


@command.command("stage2")
@arch
@click.option("--teacher", default="segformer-mit_b3", show_default=True, help="The teachers' architecture.")
@size
@batch
@rounds
@common.compute
@common.resident
@reports
def stage2(arch, teacher, size, batch, rounds, device, precision, resident) -> dict:
    """The student's step without distillation, from the cache, and with eleven teachers run live, in turn."""
    from mtkd_cache.bench.stage2 import bench_stage2
    from mtkd_cache.recipe import load_recipe
    from mtkd_cache.runs import make_accelerator

    overrides = [f"student.arch={arch}", f"teacher.arch={teacher}", f"student.batch={batch}", "student.weights=none"]
    recipe = load_recipe("paper", overrides)
    result = bench_stage2(recipe, size, rounds, make_accelerator(device, precision), resident)
    say(
        f"a step: no KD {result['none_s']:.3f} s, cached {result['cached_s']:.3f} s ({result['kd_overhead']:.3f} x), "
        f"online {result['online_s']:.2f} s ({result['online_over_cached']:.1f} x cached); "
        f"waiting for data {100 * result['loader_share']:.1f} %"
    )
    return result


@command.command("cache")
@click.option("--teacher", default="segformer-mit_b3", show_default=True, help="The teachers' architecture.")
@size
@batch
@rounds
@common.compute
@reports
def cache(teacher, size, batch, rounds, device, precision) -> dict:
    """Reading a random batch against the codec's own time and a memory copy, and against what people do today."""
    from mtkd_cache.bench.cache import bench_cache
    from mtkd_cache.recipe import load_recipe
    from mtkd_cache.runs import make_accelerator

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
@click.option("--compile", "compiled", is_flag=True, default=None, help="Compile on the CPU too.")
@common.device
@reports
def inference(archs, size, heads, rounds, compiled, device) -> dict:
    """One picture through every architecture in both layouts, plain and in the fast form."""
    from mtkd_cache.bench.inference import bench_inference
    from mtkd_cache.models import PAPER_ARCHITECTURES
    from mtkd_cache.runs import make_accelerator

    where = make_accelerator(device).device
    rows = []
    for row in bench_inference(archs or PAPER_ARCHITECTURES, size, heads, rounds, where, compiled):
        say(
            f"{row['arch']:28}{row['layout']:10}{row['params_m']:8.2f} M   plain {row['plain_ms']:9.1f} ms   "
            f"fast {row['ms']:9.1f} ms ({row['fps']:.2f} a second)   {row['plain_over_fast']:.2f} x"
        )
        rows.append(row)
    from mtkd_cache.bench.machine import machine

    return {"rows": rows, "machine": machine(where)}
