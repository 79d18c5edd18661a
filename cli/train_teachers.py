"""mtkd-cache train-teachers"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("train-teachers")
@common.store
@common.teachers
@common.from_recipe
@click.option("--arch", help=f"Override the recipe's architecture of the teachers: {common.ARCHITECTURES}.")
@click.option("--anatomy", "anatomies", multiple=True, help="Train only this one (repeatable): lets machines share the work.")
@common.init_from
@common.training
@common.allow_overlap
@common.reports
def command(store: str, teachers: Path, arch: str | None, anatomies: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Train one network per anatomy. Finished ones are kept, interrupted ones resume."""
    from mtkd_cache.training.teachers import train_teachers

    recipe = common.recipe_of(options, {"teacher.arch": arch, "teacher.weights": options["init_from"]})
    opened, accelerator = mc.SampleStore.open(store), common.accelerator_of(options)
    settings = {key: options[key] for key in ("resident", "compiled", "allow_overlap")}
    records = train_teachers(opened, teachers, recipe, accelerator, anatomies, **settings)
    common.say("validation Dice (%)\n" + common.dice_table({anatomy: record.val_dice for anatomy, record in records.items()}))
    return {
        anatomy: {"val_dice": record.val_dice, "epochs": len(record.history), "path": str(teachers / anatomy)}
        for anatomy, record in records.items()
    }
