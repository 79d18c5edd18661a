"""mtkd-cache train-student"""

from pathlib import Path

import click

from mtkd_cache.cli import common
from mtkd_cache.cli.common import load, reports, say


@click.command("train-student")
@common.store
@common.cache
@click.option("--run", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/ARCH-(no-)kd-seedN]")
@common.from_recipe
@click.option("--arch", help="Override the recipe's architecture of the student.")
@click.option("--no-kd", is_flag=True, help="The paper's baseline: the masks alone, everything else equal.")
@common.compute
@common.resident
@common.compiled
@reports
def command(store, cache, run: Path | None, recipe, overrides, seed, arch, no_kd, device, precision, resident, compiled) -> dict:
    """Train the student on image, mask and cached logits. No teacher is run."""
    from mtkd_cache.cache.reader import LogitCache
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.runtime.accelerator import make_accelerator
    from mtkd_cache.training.student import train_student

    overrides += (f'student.arch="{arch}"',) if arch else ()
    settings = load(recipe, overrides, seed)
    run = run or Path("runs", f"{settings.student.arch}-{'no-kd' if no_kd else 'kd'}-seed{settings.seed}")
    opened = None if no_kd else LogitCache.open(cache)
    accelerator = make_accelerator(device, precision)
    record = train_student(SampleStore.open(store), run, settings, accelerator, opened, resident, compiled)
    say(f"{run}: validation Dice {100 * record['val_dice']:.1f} in epoch {record['best_epoch']}")
    if compiled and record.get("warm_up_seconds"):
        say(f"the first step, with its compilation, took {record['warm_up_seconds']:.0f} s")
    keys = ("best_epoch", "val_dice", "seconds_per_epoch", "warm_up_seconds", "cache_fingerprint", "seed")
    return {"run": str(run), **{key: record.get(key) for key in keys}}
