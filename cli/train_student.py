"""mtkd-cache train-student"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("train-student")
@common.store
@common.cache
@click.option("--run", type=common.FOLDER, help="Folder of the run.  [default: runs/ARCH-(LAYOUT-)(no-)kd-seedN]")
@common.from_recipe
@click.option("--arch", help=f"Override the recipe's architecture of the student: {common.ARCHITECTURES}.")
@common.layout
@click.option("--no-kd", is_flag=True, help="Train the baseline: the same without distillation, on the masks alone.")
@common.init_from
@common.training
@common.allow_overlap
@common.reports
def command(store: str, cache: str, run: Path | None, arch: str | None, no_kd: bool, **options: Any) -> dict[str, Any]:
    """Train the student on images, masks and cached logits, without running a teacher. Resumes after an interruption."""
    from mtkd_cache.study.jobs import network_name
    from mtkd_cache.training.student import train_student

    recipe = common.recipe_of(options, {"student.arch": arch, "student.weights": options["init_from"]})
    network = network_name(recipe.student.arch, None if options["layout"] == "shared" else options["layout"])
    run = run or Path("runs", f"{network}-{'no-kd' if no_kd else 'kd'}-seed{recipe.seed}")
    opened = None if no_kd else mc.LogitCache.open(cache)
    samples, accelerator = mc.SampleStore.open(store), common.accelerator_of(options)
    settings = {key: options[key] for key in ("resident", "compiled", "layout", "allow_overlap")}
    record = train_student(samples, run, recipe, accelerator, opened, **settings)
    common.say(f"{run}: validation Dice {100 * record.val_dice:.1f} % in epoch {record.best_epoch + 1} of {len(record.history)}")
    common.say_overlap(record.to_json().get("overlap"))
    if options["compiled"] and record.warm_up_seconds:
        common.say(f"the first step took {record.warm_up_seconds:.0f} s, compilation included")
    keys = ("best_epoch", "val_dice", "seconds_per_epoch", "warm_up_seconds", "cache_fingerprint", "seed")
    return {"run": str(run), **{key: getattr(record, key) for key in keys}}
