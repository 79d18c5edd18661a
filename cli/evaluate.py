"""mtkd-cache evaluate"""

from pathlib import Path

import click

from mtkd_cache.cli import common
from mtkd_cache.cli.common import SPLIT, reports, say


@click.command("evaluate")
@click.option("--run", type=click.Path(path_type=Path), help="A student's run.")
@click.option("--teachers", type=click.Path(path_type=Path), help="A folder of teachers, instead of a run.")
@common.store
@click.option("--split", type=SPLIT, default="test", show_default=True, help="Part of the samples.")
@click.option(
    "--multilabel",
    type=click.Path(path_type=Path),
    metavar="DATASET",
    help="The images with several annotations in this dataset's multilabel folder instead, into multilabel-SPLIT.json.",
)
@common.compute
@reports
def command(run: Path | None, teachers: Path | None, store: str, split: str, multilabel: Path | None, device, precision) -> dict:
    """Dice by anatomy, on each anatomy's own subset, written beside the weights as evaluation-SPLIT.json."""
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.evaluation.dice import evaluate_student, evaluate_teachers
    from mtkd_cache.evaluation.multilabel import evaluate_multilabel
    from mtkd_cache.runtime.accelerator import make_accelerator

    if (run is None) == (teachers is None):
        raise click.UsageError("Name either --run or --teachers.")
    accelerator, opened = make_accelerator(device, precision), SampleStore.open(store)
    if multilabel is not None:
        result = evaluate_multilabel(run or teachers, multilabel, opened, split, accelerator)
        say(f"{100 * result['claimed_twice']:.1f}% of the pixels are claimed by two heads or more")
    elif run is not None:
        result = evaluate_student(run, opened, split, accelerator)
    else:
        result = evaluate_teachers(teachers, opened, split, accelerator)
    say(f"Dice on {split}\n{common.dice_lines(result['dice'])}\n  {'mean':28}{100 * result['mean_dice']:5.1f}")
    return result
