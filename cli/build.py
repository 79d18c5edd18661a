"""mtkd-cache build"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common
from .common import file_size, plural, reports, say


@click.command("build")
@common.store
@common.teachers
@common.teacher
@common.own_arch
@common.cache
@common.from_recipe
@click.option("--step", type=float, help="Override the recipe's quantization step, in logits (a power of two).")
@click.option(
    "--kl",
    type=common.FiniteRange(0, min_open=True),
    metavar="NATS",
    help="Choose the largest step whose mean KL to the exact logits is within NATS, e.g. 1e-3.",
)
@click.option(
    "--codec",
    type=click.Choice(["blosc", "pcodec"]),
    help="Override the recipe's codec: blosc, which any Zarr reader has, or pcodec, smaller for smooth maps.",
)
@click.option("--views", type=int, help="Override the recipe's number of recorded views per sample.")
@common.splits
@click.option("--batch", type=click.IntRange(1), default=8, help="Images per forward pass.")
@common.compute
@common.compiled
@common.allow_overlap
@reports
def command(store: str, teachers: Path, named: tuple[str, ...], arch: str | None, cache: str, **options: Any) -> dict[str, Any]:
    """Run the teachers once over the samples and cache their logits. Resumes after an interruption."""
    from mtkd_cache.cache.budget import step_within

    if options["kl"] and options["step"]:
        raise click.UsageError("Give either --kl or --step.")
    recipe = common.recipe_of(options, {f"cache.{key}": options[key] for key in ("step", "views", "codec")})
    accelerator = common.accelerator_of(options)
    samples = mc.SampleStore.open(store)
    loaded = mc.Teachers.gather(named, samples, teachers, arch)
    spec = mc.CacheSpec.of(samples, loaded.stride, recipe, accelerator.mixed_precision)
    temperature = recipe.distillation.temperature
    if options["kl"]:
        step = step_within(options["kl"], spec, cache, samples, loaded, accelerator, temperature, options["splits"])
        spec = replace(spec, step=step)
    settings = {key: options[key] for key in ("splits", "batch", "compiled", "allow_overlap")}
    settings["augmentation"] = recipe.augmentation
    result = mc.build_cache(samples, loaded, spec, cache, accelerator, temperature=temperature, **settings)
    say(
        f"{cache}: {result['samples']} samples x {plural(result['views'], 'view')} x {len(result['anatomies'])} anatomies, "
        f"{file_size(result['bytes'])}; largest error {result['max_abs_error']:.4g} of {result['step'] / 2:g} allowed, "
        f"mean KL {result['mean_kl_nats']:.2g} nats"
    )
    common.say_view_gap(result["view_gap_kl_nats"])
    for anatomy, spread in (result["spread"] or {}).items():
        say(f"  {anatomy}: the teachers' logits are {spread:.2f} apart, by their mean standard deviation")
    common.say_overlap(result["overlap"])
    return result
