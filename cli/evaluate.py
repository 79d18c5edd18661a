"""mtkd-cache evaluate"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import mtkd_cache as mc

from . import common

if TYPE_CHECKING:
    from mtkd_cache.models.records import Evaluation


@click.command("evaluate")
@click.option("--run", type=common.FOLDER, help="Folder of a student's run.")
@click.option("--teachers", type=common.FOLDER, help="Folder of teachers, instead of --run.")
@common.store
@click.option("--split", type=common.SPLIT, default="test", help="Split to evaluate on.")
@click.option("--multilabel", type=common.FOLDER, metavar="DATASET", help="Evaluate on this dataset's multilabel subset instead.")
@click.option("--video", type=common.FOLDER, metavar="CLIP", help="Evaluate on the frames of this clip folder instead.")
@click.option("--smooth", type=common.FiniteRange(0), default=0, metavar="FRAMES", help="With --video: as mtkd-cache predict.")
@click.option(
    "--surface",
    type=common.FiniteRange(0),
    metavar="PIXELS",
    help="Add normalized surface Dice at this tolerance and the 95 % Hausdorff distance to the CSV files (extra 'surface').",
)
@common.allow_overlap
@common.own_arch
@common.compute
@common.reports
def command(run: Path | None, teachers: Path | None, store: str, split: str, **options: Any) -> dict[str, Any]:
    """Compute Dice per anatomy, each on its own subset, and write it beside the weights.

    The file is evaluation-SPLIT.json; with --multilabel multilabel-SPLIT.json, or multilabel-DATASET.json of other patients; with
    --video video-CLIP.json.
    Beside evaluation-SPLIT.json stand the figures of each picture (evaluation-SPLIT.csv), their means by anatomy and patient
    with 95 % intervals (evaluation-SPLIT-summary.csv), and a page of the pictures with the lowest Dice (worst-SPLIT.html).
    """
    from mtkd_cache.evaluation.dice import evaluate, without_operating_points
    from mtkd_cache.evaluation.multilabel import evaluate_multilabel
    from mtkd_cache.evaluation.tables import PICTURES, SUMMARY
    from mtkd_cache.evaluation.worst_cases import FILE

    folder = run or teachers
    if folder is None or (run and teachers):
        raise click.UsageError("Name either --run or --teachers.")
    _refuse_ignored(options)
    accelerator = common.accelerator_of(options)
    if (clip := options["video"]) is not None:
        return _on_video(mc.Predictor.load(folder, accelerator.device, arch=options["arch"]), clip, options["smooth"])
    opened = mc.SampleStore.open(store)
    predictor = mc.Predictor.load(folder, accelerator.device, opened.anatomies, options["arch"])
    if (multilabel := options["multilabel"]) is None:
        evaluation = evaluate(predictor, opened, split, accelerator, options["surface"], options["allow_overlap"])
    else:
        evaluation = several = evaluate_multilabel(predictor, multilabel, opened, split, accelerator, options["allow_overlap"])
        common.say(f"{100 * several.claimed_twice:.1f} % of the pixels are predicted by two heads or more")
        elsewhere = common.dice_table(several.claimed_elsewhere or {})
        common.say(f"predicted of the pixels that are annotated as another structure (%)\n{elsewhere}")
    intervals = ", with 95 % intervals over patients" if (evaluation.patients or 0) > 1 else ""
    if evaluation.dice:
        common.say(f"Dice on {evaluation.split} (%){intervals}\n{_dice_table(evaluation)}")
    if undecided := evaluation.undecided:
        told = ", ".join(f"{anatomy} ({100 * share:.0f} %)" for anatomy, share in undecided.items())
        common.say(f"at their operating points these heads claim more than 90 % of the pixels, most of them wrongly: {told}")
    if evaluation.thresholds is None:
        common.say(f"only at probability 0.5: {without_operating_points(predictor, opened)}")
    result = evaluation.to_json()
    common.say_overlap(result.get("overlap"))
    files = [type(evaluation).FILE] if multilabel else [type(evaluation).FILE, PICTURES, SUMMARY, FILE]
    common.say(f"written to {folder}: {', '.join(name.format(evaluation.split) for name in files)}")
    return result


def _refuse_ignored(options: Mapping[str, Any]) -> None:
    """Refuse options that do not apply to the kind of evaluation."""
    on_video, on_multilabel = options["video"] is not None, options["multilabel"] is not None
    if on_video and on_multilabel:
        raise click.UsageError("Give either --video or --multilabel.")
    if options["smooth"] and not on_video:
        raise click.UsageError("--smooth goes with --video.")
    if options["surface"] is not None and (on_video or on_multilabel):
        raise click.UsageError("--surface does not go with --video or --multilabel.")


def _dice_table(evaluation: "Evaluation") -> str:
    """Dice at probability 0.5, Dice at the operating points and average precision by anatomy, with intervals, in percent."""
    from mtkd_cache.models.records import MultilabelEvaluation

    columns = {"dice": ("at 0.5, as in the paper", evaluation.dice, evaluation.mean_dice)}
    if (dice := evaluation.dice_at_operating_point) is not None:
        columns["dice_at_operating_point"] = ("at operating point", dice, evaluation.mean_dice_at_operating_point or 0.0)
    if isinstance(evaluation, MultilabelEvaluation) and (dice := evaluation.dice_with_presence) is not None:
        columns["dice_with_presence"] = ("with presence", dice, evaluation.mean_dice_with_presence or 0.0)
    if (precision := evaluation.average_precision) is not None:
        columns["average_precision"] = ("average precision", precision, evaluation.mean_average_precision or 0.0)
    rows = [["", *(title for title, _, _ in columns.values())]]
    for anatomy in (*evaluation.dice, "mean"):
        cells = []
        for figure, (_, dice, mean) in columns.items():
            bounds = (evaluation.intervals or {}).get(figure, {"mean": None, "by_anatomy": {}})
            value, interval = (mean, bounds["mean"]) if anatomy == "mean" else (dice[anatomy], bounds["by_anatomy"].get(anatomy))
            cells.append(_with_interval(value, interval))
        rows.append([f"  {anatomy}", *cells])
    return common.table(rows)


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def _on_video(predictor: mc.Predictor, clip: Path, smooth: float) -> dict[str, Any]:
    from mtkd_cache.evaluation.video import evaluate_video

    evaluation = evaluate_video(predictor, clip, smooth)
    dice = {**(evaluation.dice_at_operating_point or {}), "mean": evaluation.mean_dice_at_operating_point}
    common.say(f"Dice on {clip} (%)\n" + common.dice_table(dice))
    common.say("video consistency (%)\n" + common.dice_table({f"over {n} frames": value for n, value in evaluation.mvc.items()}))
    return evaluation.to_json()
