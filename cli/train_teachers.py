"""mtkd-cache train-teachers"""

from pathlib import Path

import click

from mtkd_cache.cli import common
from mtkd_cache.cli.common import load, reports, say


@click.command("train-teachers")
@common.store
@common.teachers
@common.from_recipe
@click.option("--arch", help="Override the recipe's architecture of the teachers.")
@click.option("--anatomy", "anatomies", multiple=True, help="Train only this one (repeatable), so that machines can share them.")
@common.compute
@common.resident
@common.compiled
@reports
def command(store, teachers: Path, recipe, overrides, seed, arch, anatomies, device, precision, resident, compiled) -> dict:
    """Train one network for each anatomy; finished ones are left alone, interrupted ones go on."""
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.runtime.accelerator import make_accelerator
    from mtkd_cache.training.teachers import train_teachers

    overrides += (f'teacher.arch="{arch}"',) if arch else ()
    settings = load(recipe, overrides, seed)
    opened = SampleStore.open(store)
    records = train_teachers(opened, teachers, settings, make_accelerator(device, precision), anatomies, resident, compiled)
    say("validation Dice\n" + common.dice_lines({anatomy: record["val_dice"] for anatomy, record in records.items()}))
    return {
        anatomy: {"val_dice": record["val_dice"], "epochs": len(record["history"]), "path": str(teachers / anatomy)}
        for anatomy, record in records.items()
    }
