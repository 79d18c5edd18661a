"""mtkd-cache build"""

from pathlib import Path

import click

from mtkd_cache.cli import common
from mtkd_cache.cli.common import load, reports, say


@click.command("build")
@common.store
@common.teachers
@common.cache
@common.from_recipe
@click.option("--step", type=float, help="Override the recipe's step of the quantiser (a power of two).")
@click.option("--views", type=int, help="Override the recipe's number of recorded views.")
@common.splits
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images in one forward pass.")
@common.compute
@common.compiled
@reports
def command(
    store, teachers: Path, cache, recipe, overrides, seed, step, views, splits, batch, device, precision, compiled
) -> dict:
    """Run the teachers once over the samples and write their logits; the same command resumes after an interruption."""
    from mtkd_cache.cache.build import build
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.runtime.accelerator import make_accelerator

    overrides += (f"cache.step={step}",) if step is not None else ()
    overrides += (f"cache.views={views}",) if views is not None else ()
    settings = load(recipe, overrides, seed)
    accelerator = make_accelerator(device, precision)
    result = build(SampleStore.open(store), teachers, cache, settings, accelerator, splits, batch, compiled)
    say(
        f"{result['samples']} samples x {result['views']} views x {len(result['anatomies'])} anatomies in {cache}: "
        f"{result['bytes'] / 1e6:.1f} MB, largest error {result['max_abs_error']:.4g} of {result['step'] / 2:g} allowed, "
        f"mean KL {result['mean_kl_nats']:.2g} nats"
    )
    return result
