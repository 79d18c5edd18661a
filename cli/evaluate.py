"""mtkd-cache evaluate"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("evaluate")
@click.option("--run", type=common.FOLDER, help="Folder of a student's run.")
@click.option("--teachers", type=common.FOLDER, help="Folder of teachers, instead of --run.")
@common.store
@click.option("--split", type=common.SPLIT, default="test", help="Split to evaluate on.")
@click.option("--multilabel", type=common.FOLDER, metavar="DATASET", help="Evaluate on this dataset's multilabel subset instead.")
@common.compute
@common.reports
def command(run: Path | None, teachers: Path | None, store: str, split: str, **options: Any) -> dict[str, Any]:
    """Compute Dice per anatomy, each on its own subset, and write it beside the weights.

    The file is evaluation-SPLIT.json, with --multilabel multilabel-SPLIT.json.
    """
    from mtkd_cache.evaluation.dice import evaluate
    from mtkd_cache.evaluation.multilabel import evaluate_multilabel

    folder = run or teachers
    if folder is None or (run and teachers):
        raise click.UsageError("Name either --run or --teachers.")
    accelerator, opened = common.accelerator_of(options), mc.SampleStore.open(store)
    predictor = mc.Predictor.load(folder, accelerator.device, opened.anatomies)
    if (multilabel := options["multilabel"]) is None:
        evaluation = evaluate(predictor, opened, split, accelerator)
    else:
        evaluation = several = evaluate_multilabel(predictor, multilabel, opened, split, accelerator)
        common.say(f"{100 * several.claimed_twice:.1f} % of the pixels are predicted by two heads or more")
    common.say(f"Dice on {split} (%)\n" + common.dice_table({**evaluation.dice, "mean": evaluation.mean_dice}))
    return evaluation.to_json()
