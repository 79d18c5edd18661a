"""The model card of a run folder or a teachers folder: README.md, written anew after every evaluation."""

import json
from pathlib import Path

from mtkd_cache.evaluation.markdown import pipe, plain
from mtkd_cache.models.pretrained import paper_source
from mtkd_cache.models.records import is_current, read_record, read_trainings
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
    trainings = read_trainings(folder)
    if not trainings:
        return None
    evaluations, multilabel = (
        [one for path in sorted(folder.glob(f"{kind}-*.json")) if is_current(one := read_record(path), trainings)]
        for kind in ("evaluation", "multilabel")
    )
    about = trainings[0]
    blocks = [
        MARK,
        f"# {plain(_title(about))}",
        WARNING,
        "## Intended use\n\n" + USE,
        "## What it was trained on\n\n" + _bullets(_training(about, evaluations)),
        "## Dice\n\n" + _dice(evaluations),
        *(["## Images with several annotations\n\n" + "\n\n".join(map(_multilabel, multilabel))] if multilabel else []),
        "## Use\n\n" + _loading(folder, about),
        "## Fingerprints\n\n" + _bullets(_fingerprints(trainings)),
        "## Recipe\n\n" + _recipe(about.get("recipe") or {}),
        "## Made with\n\n" + _bullets([f"{key}: {value}" for key, value in about.get("environment", {}).items()]),
    ]
    return "\n\n".join(blocks) + "\n"


def _title(about: dict) -> str:
    count = len(about["anatomies"])
    if about["kind"] == "student":
        return f"{about['arch']}, one encoder with {count} decoders, {'with' if about['kd'] else 'without'} distillation"
    return f"{about['arch']}, one network for each of {count} anatomies"


def _training(about: dict, evaluations: list[dict]) -> list[str]:
    dataset = about.get("dataset") or next((one["dataset"] for one in evaluations if one.get("dataset")), UNKNOWN)
    size = _size(about)
    stage = (about.get("recipe") or {}).get("student" if about["kind"] == "student" else "teacher", {})
    said = [
        f"Dataset: {dataset}, the training split of the sample store below, at {size} pixels",
        f"Anatomies, in the order of the heads: {', '.join(about['anatomies'])}",
        "Annotation: one anatomy an image; what else an image shows is not annotated",
        f"Started from weights: {_weights(about['arch'], stage.get('weights', UNKNOWN))}",
        f"Seed: {about['seed']}",
        f"Mixed precision: {about.get('precision', UNKNOWN)}",
    ]
    if about["kind"] != "student":
        return [*said, "Kept: each network's best epoch by validation Dice"]
    said.append(_supervision(about))
    if history := about.get("history"):
        best = f"epoch {about['best_epoch']} of 0 to {len(history) - 1}"
        said.append(f"Kept: {best}, the best by validation Dice ({_percent(about['val_dice'])} %)")
    return said


def _supervision(about: dict) -> str:
    if not about["kd"]:
        return "Trained on the masks alone"
    archs = sorted({teacher["arch"] for teacher in (about.get("teachers") or {}).values()})
    named = f" ({', '.join(archs)})" if archs else ""
    return f"Trained on the masks and distilled from the cached logits of its teachers{named}"


def _weights(arch: str, source: str) -> str:
    """A recipe's source of pretrained weights, and what "paper" stands for."""
    if source != "paper":
        return source
    found = paper_source(arch)
    return f"{found}, as in the paper's setting" if found != "none" else "none: what the paper started from is not public"


def _size(about: dict) -> str:
    return "x".join(map(str, about["size"]))


def _dice(evaluations: list[dict]) -> str:
    """A column for each evaluated split, a row for each anatomy."""
    if not evaluations:
        return "Not evaluated yet."
    rows = [[anatomy, *(_percent(one["dice"].get(anatomy)) for one in evaluations)] for anatomy in evaluations[0]["dice"]]
    rows.append(["**mean**", *(f"**{_percent(one['mean_dice'])}**" for one in evaluations)])
    rows.append(["images", *(str(one["images"]) for one in evaluations)])
    return (
        "In percent: the mean over the images of an anatomy's own subset, leaving out images where truth and prediction are "
        f"both empty.\n\n{_table(['Anatomy', *(one['split'] for one in evaluations)], rows)}"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(map(pipe, [head, ["---", *("---:" for _ in head[1:])], *rows]))


def _multilabel(one: dict) -> str:
    rows = [[name, _percent(dice), _percent(one["known_precision"].get(name))] for name, dice in one["dice"].items()]
    claimed = (
        f"Images of the {one['split']} split: {one['images']}. {_percent(one['claimed'])} % of the pixels are claimed by a head, "
        f"{_percent(one['claimed_twice'])} % by two or more. Precision is counted on the pixels annotated as some anatomy."
    )
    return f"{plain(claimed)}\n\n{_table(['Anatomy', 'Dice, %', 'Precision, %'], rows)}"


def _loading(folder: Path, about: dict) -> str:
    student = about["kind"] == "student"
    name = folder.name if student else f"{folder.name}/{about['anatomy']}"
    heads = f"{len(about['anatomies'])} heads in the order above" if student else f"one head: {about['anatomy']}"
    return (
        "```python\n"
        "from mtkd_cache.models.checkpoints import load_network\n"
        f"network = load_network({json.dumps(name)})  # in eval mode, {plain(heads)}\n"
        "masks = network(images) > 0  # images: float RGB in [0, 1], (B, 3, H, W); masks: bool (B, heads, H, W)\n"
        f"```\n\nGive it images of the size it was trained at, {_size(about)}."
    )


def _fingerprints(trainings: list[dict]) -> list[str]:
    said = [f"Sample store: `{trainings[0].get('store_fingerprint', UNKNOWN)}`"]
    if trainings[0].get("kd"):
        said.append(f"Logit cache: `{trainings[0].get('cache_fingerprint', UNKNOWN)}`")
    for about in trainings:
        whose = f" of {about['anatomy']}" if "anatomy" in about else ""
        said.append(f"Weights{whose}, SHA-256: `{about.get('weights_sha256', UNKNOWN)}`")
    return said


def _recipe(recipe: dict) -> str:
    lines = []
    for section, values in recipe.items():
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "```toml\n" + "\n".join(" ".join(line.split()) for line in lines[1:]) + "\n```"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
