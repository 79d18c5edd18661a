"""The model card of a run folder or a teachers folder: README.md, written anew after every evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from mtkd_cache.evaluation.markdown import pipe, plain
from mtkd_cache.models.pretrained import paper_source
from mtkd_cache.models.records import (
    EVALUATION,
    MULTILABEL_EVALUATION,
    Evaluation,
    MultilabelEvaluation,
    RunRecord,
    TeacherRecord,
    Training,
    read_as,
    read_training_records,
)
from mtkd_cache.storage.folder import write_durably

CARD = "README.md"
MARK = "<!-- Written by mtkd-cache evaluate, which writes it anew unless this line is gone. -->"

WARNING = (
    "**This is no medical device.** It is not validated for clinical use: do not base a diagnosis, a treatment or anything "
    "done to a patient on what it says."
)
USE = (
    "Research on segmentation from partial annotation, of anatomy in laparoscopic images above all: comparing methods, studying "
    "distillation. It was trained and measured on the dataset named below alone; on other cameras, procedures or patients its "
    "Dice is unknown. Each head says where its own anatomy is and nothing of anatomies that it does not know; several heads "
    "may claim one pixel."
)
UNKNOWN = "not recorded"
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
    evaluations = _current(Evaluation, EVALUATION, folder, trainings)
    multilabel = _current(MultilabelEvaluation, MULTILABEL_EVALUATION, folder, trainings)
    first = trainings[0]
    blocks = [
        MARK,
        f"# {plain(_title(first))}",
        WARNING,
        "## Intended use\n\n" + USE,
        "## What it was trained on\n\n" + _bullets(_training(first, evaluations)),
        "## Dice\n\n" + _dice(evaluations),
        *(["## Images with several annotations\n\n" + "\n\n".join(map(_multilabel, multilabel))] if multilabel else []),
        "## Use\n\n" + _loading(folder, first),
        "## Fingerprints\n\n" + _bullets(_fingerprints(trainings)),
        "## Recipe\n\n" + _recipe(first.recipe),
        "## Made with\n\n" + _bullets([f"{key}: {value}" for key, value in first.environment.items()]),
    ]
    return "\n\n".join(blocks) + "\n"


def _current(kind: type[Kind], name: str, folder: Path, trainings: Sequence[Training]) -> list[Kind]:
    """The evaluations in a folder that are of its weights, by split."""
    evaluations = (read_as(kind, path) for path in sorted(folder.glob(name.format("*"))))
    return [evaluation for evaluation in evaluations if evaluation and evaluation.is_of(trainings)]


def _title(training: Training) -> str:
    count = len(training.anatomies)
    if isinstance(training, RunRecord):
        return f"{training.arch}, one encoder with {count} decoders, {'with' if training.kd else 'without'} distillation"
    return f"{training.arch}, one network for each of {count} anatomies"


def _training(training: Training, evaluations: list[Evaluation]) -> list[str]:
    run = training if isinstance(training, RunRecord) else None
    datasets = [run and run.dataset, *(evaluation.dataset for evaluation in evaluations)]
    dataset = next(filter(None, datasets), UNKNOWN)
    weights = training.recipe.get("student" if run else "teacher", {}).get("weights", UNKNOWN)
    lines = [
        f"Dataset: {dataset}, the training split of the sample store below, at {_size(training)} pixels",
        f"Anatomies, in the order of the heads: {', '.join(training.anatomies)}",
        "Annotation: one anatomy an image; what else an image shows is not annotated",
        f"Started from weights: {_weights(training.arch, weights)}",
        f"Seed: {training.seed}",
        f"Mixed precision: {training.precision or UNKNOWN}",
    ]
    if run is None:
        return [*lines, "Kept: each network's best epoch by validation Dice"]
    best = f"epoch {run.best_epoch} of 0 to {len(run.history) - 1}"
    return [*lines, _supervision(run), f"Kept: {best}, the best by validation Dice ({_percent(run.val_dice)} %)"]


def _supervision(run: RunRecord) -> str:
    if not run.kd:
        return "Trained on the masks alone"
    archs = sorted({teacher["arch"] for teacher in (run.teachers or {}).values()})
    names = f" ({', '.join(archs)})" if archs else ""
    return f"Trained on the masks and distilled from the cached logits of its teachers{names}"


def _weights(arch: str, source: str) -> str:
    """A recipe's source of pretrained weights, and what "paper" stands for."""
    if source != "paper":
        return source
    source = paper_source(arch)
    return f"{source}, as in the paper's setting" if source != "none" else "none: what the paper started from is not public"


def _size(training: Training) -> str:
    return "x".join(map(str, training.size))


def _dice(evaluations: list[Evaluation]) -> str:
    """A column for each evaluated split, a row for each anatomy."""
    if not evaluations:
        return "Not evaluated yet."
    rows = [[anatomy, *(_percent(each.dice.get(anatomy)) for each in evaluations)] for anatomy in evaluations[0].dice]
    rows.append(["**mean**", *(f"**{_percent(each.mean_dice)}**" for each in evaluations)])
    rows.append(["images", *(str(each.images) for each in evaluations)])
    return (
        "In percent: the mean over the images of an anatomy's own subset, leaving out images where truth and prediction are "
        f"both empty.\n\n{_table(['Anatomy', *(each.split for each in evaluations)], rows)}"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(map(pipe, [head, ["---", *("---:" for _ in head[1:])], *rows]))


def _multilabel(evaluation: MultilabelEvaluation) -> str:
    precision = evaluation.known_precision
    rows = [[anatomy, _percent(dice), _percent(precision.get(anatomy))] for anatomy, dice in evaluation.dice.items()]
    claimed = (
        f"Images of the {evaluation.split} split: {evaluation.images}. {_percent(evaluation.claimed)} % of the pixels are "
        f"claimed by a head, {_percent(evaluation.claimed_twice)} % by two or more. "
        "Precision is counted on the pixels annotated as some anatomy."
    )
    return f"{plain(claimed)}\n\n{_table(['Anatomy', 'Dice, %', 'Precision, %'], rows)}"


def _loading(folder: Path, training: Training) -> str:
    if isinstance(training, TeacherRecord):
        name, heads = f"{folder.name}/{training.anatomy}", f"one head: {training.anatomy}"
    else:
        name, heads = folder.name, f"{len(training.anatomies)} heads in the order above"
    return (
        "```python\n"
        "from mtkd_cache import load_network\n"
        f"network = load_network({json.dumps(name)})  # in eval mode, {plain(heads)}\n"
        "masks = network(images) > 0  # images: float RGB in [0, 1], (B, 3, H, W); masks: bool (B, heads, H, W)\n"
        f"```\n\nGive it images of the size it was trained at, {_size(training)}."
    )


def _fingerprints(trainings: Sequence[Training]) -> list[str]:
    first = trainings[0]
    lines = [f"Sample store: `{first.store_fingerprint or UNKNOWN}`"]
    if isinstance(first, RunRecord) and first.kd:
        lines.append(f"Logit cache: `{first.cache_fingerprint or UNKNOWN}`")
    for training in trainings:
        whose = f" of {training.anatomy}" if isinstance(training, TeacherRecord) else ""
        lines.append(f"Weights{whose}, SHA-256: `{training.weights_sha256 or UNKNOWN}`")
    return lines


def _recipe(recipe: dict[str, Any]) -> str:
    lines = []
    for section, values in recipe.items():
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "```toml\n" + "\n".join(" ".join(line.split()) for line in lines[1:]) + "\n```"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
