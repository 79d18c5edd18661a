"""The model card of a run folder or a teachers folder: README.md, rewritten after every evaluation from model_card.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mtkd_cache.cache.view_gap import told
from mtkd_cache.models.pretrained import paper_source
from mtkd_cache.models.records import (
    Evaluation,
    MultilabelEvaluation,
    OperatingPoint,
    RunRecord,
    TeacherRecord,
    Training,
    read_as,
    read_operating_points,
    read_training_records,
)
from mtkd_cache.runtime.markdown import plain, templates
from mtkd_cache.storage.folder import write_durably

CARD = "README.md"
MARK = "<!-- Written by mtkd-cache evaluate, which writes it anew unless this line is gone. -->"
Kind = TypeVar("Kind", bound=Evaluation)


def write_card(folder: Path) -> Path | None:
    """Write the model card of a student's run folder, or of a teachers folder, as README.md in it, and return its path.

    None for a folder that does not record how its networks were trained. A README.md without the mark in its first line is
    somebody else's, and is left as it is.
    """
    folder = Path(folder)
    path = folder / CARD
    text = card_text(folder)
    if text is not None and not (path.exists() and not path.read_text(encoding="utf-8").startswith(MARK)):
        write_durably(path, text.encode())
    return path if text is not None else None


def card_text(folder: Path) -> str | None:
    """The card in Markdown, from the records in the folder alone (the same records, the same text); None without any."""
    trainings = read_training_records(folder)
    if not trainings:
        return None
    first = trainings[0]
    run = first if isinstance(first, RunRecord) else None
    evaluations = _current(Evaluation, folder, trainings)
    environment = templates("mtkd_cache", "evaluation", finalize=lambda value: plain(str(value)), keep_trailing_newline=True)
    environment.filters |= {"percent": _percent, "json": json.dumps}
    return environment.get_template("model_card.md").render(
        first=first,
        run=run,
        trainings=trainings,
        dataset=next(filter(None, [run and run.dataset, *(evaluation.dataset for evaluation in evaluations)]), None),
        size="x".join(map(str, first.size)),
        weights=_weights(first),
        teachers=sorted(set(map(_teacher, ((run and run.teachers) or {}).values()))),
        licenses=sorted({license for training in trainings for license in training.licenses or ()}),
        gap=told(run.view_gap_kl_nats) if run and run.view_gap_kl_nats else None,
        evaluations=evaluations,
        columns=[column for evaluation in evaluations for column in _columns(evaluation)],
        points=_operating_points(folder, trainings),
        multilabel=_current(MultilabelEvaluation, folder, trainings),
        name=folder.name,
        unknown="not recorded",
    )


def _teacher(info: Mapping[str, str]) -> str:
    """What a cache records of a teacher, in a few words: its architecture, or who computed its logits, and their license."""
    name = info.get("source") or info["arch"]
    return f"{name} (license: {info['license']})" if "license" in info else name


def _current(kind: type[Kind], folder: Path, trainings: Sequence[Training]) -> list[Kind]:
    """The evaluations in a folder that are of its weights, by split."""
    evaluations = (read_as(kind, path) for path in sorted(folder.glob(kind.FILE.format("*"))))
    return [evaluation for evaluation in evaluations if evaluation and evaluation.is_of(trainings)]


def _columns(evaluation: Evaluation) -> list[tuple[str, dict[str, str], str]]:
    """Title, cells by anatomy and that of the mean of each of an evaluation's figures that exist, with their intervals."""
    figures = (
        ("at 0.5", "dice", evaluation.dice, evaluation.mean_dice),
        (
            "at operating point",
            "dice_at_operating_point",
            evaluation.dice_at_operating_point,
            evaluation.mean_dice_at_operating_point,
        ),
        ("average precision", "average_precision", evaluation.average_precision, evaluation.mean_average_precision),
    )
    columns = []
    for title, name, values, mean in figures:
        if values is not None:
            bounds = (evaluation.intervals or {}).get(name, {"mean": None, "by_anatomy": {}})
            cells = {anatomy: _with_interval(value, bounds["by_anatomy"].get(anatomy)) for anatomy, value in values.items()}
            columns.append((f"{evaluation.split}: {title}", cells, _with_interval(mean, bounds["mean"])))
    return columns


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    return _percent(value) + (f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else "")


def _operating_points(folder: Path, trainings: Sequence[Training]) -> dict[str, OperatingPoint]:
    """The operating points that were chosen for the recorded weights, by anatomy."""
    points: dict[str, OperatingPoint] = {}
    for training in trainings:
        own = folder / training.anatomy if isinstance(training, TeacherRecord) else folder
        if chosen := read_operating_points(own, training.weights_sha256 or ""):
            points |= chosen.points
    return points


def _weights(training: Training) -> str | None:
    """What a network started from: another training's weights, or the recipe's source, and what "paper" stands for."""
    if training.initial_weights:
        return f"{training.initial_weights['source']}, SHA-256 {training.initial_weights['sha256']}"
    source: str | None = training.recipe.get("student" if isinstance(training, RunRecord) else "teacher", {}).get("weights")
    if source != "paper":
        return source
    source = paper_source(training.arch)
    return f"{source}, as in the paper's setting" if source != "none" else "none: random weights"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
