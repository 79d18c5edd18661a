"""The history of a training in its folder: metrics.csv, written after each epoch, and curves.png, drawn at the end.

A row holds the figures of an epoch under the same names in run.json, metrics.csv and what trackers are told; Dice is in [0, 1].
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mtkd_cache.storage.folder import write_durably

METRICS, CURVES = "metrics.csv", "curves.png"
DICE = "val_dice"  # validation Dice; of an anatomy: val_dice/ANATOMY
NO_LOSSES = ("epoch", "lr", "seconds", "first_step", "waiting")  # keys beside those of validation and the parts of the loss
Row = dict[str, Any]


def loss_parts(row: Row) -> dict[str, float]:
    """The loss of an epoch and its parts."""
    return {key: value for key, value in row.items() if key not in NO_LOSSES and not key.startswith((DICE, "threshold/"))}


def write_metrics(folder: Path, history: Sequence[Row]) -> None:
    """Write folder/metrics.csv, a row an epoch, whole or not at all."""
    columns = dict.fromkeys(key for row in history for key in row)
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    write_durably(folder / METRICS, text.getvalue().encode())


def draw_curves(folder: Path, label: str, history: Sequence[Row], best_epoch: int) -> None:
    """Draw folder/curves.png: the parts of the loss, validation Dice (mean and by anatomy) and the learning rate by epoch."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4), dpi=110, layout="constrained")
    figure.suptitle(label)
    loss, dice, rate = figure.subplots(1, 3, sharex=True, width_ratios=(3, 4, 2))
    anatomies = [key for key in history[-1] if key.startswith(f"{DICE}/")]
    dice.set_prop_cycle(color=[colormaps["tab20"](number) for number in range(20)])
    _plot(loss, history, loss_parts(history[-1]))
    _plot(dice, history, anatomies if len(anatomies) > 1 else (), scale=100, linewidth=0.8)
    _plot(dice, history, [DICE], scale=100, color="black", linewidth=2)
    _plot(rate, history, ["lr"])
    dice.axvline(best_epoch + 1, color="gray", linestyle=":", label=f"weights kept: epoch {best_epoch + 1}")
    positive = all(value > 0 for row in history for value in loss_parts(row).values())
    loss.set(title="training loss", yscale="log" if positive else "linear")
    dice.set(title="validation Dice (%)")
    rate.set(title="learning rate", yscale="log")
    for axes in (loss, dice, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, dice):
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    image = io.BytesIO()
    figure.savefig(image)
    write_durably(folder / CURVES, image.getvalue())


def _plot(axes: Any, history: Sequence[Row], keys: Iterable[str], scale: float = 1, **style: Any) -> None:
    """A curve for each key of the rows; an epoch that lacks it is a gap."""
    epochs, marker = [row["epoch"] + 1 for row in history], "." if len(history) < 20 else ""
    for key in keys:
        name = "mean" if key == DICE else key.removeprefix(f"{DICE}/").replace("_", " ")
        axes.plot(epochs, [scale * row.get(key, math.nan) for row in history], marker=marker, label=name, **style)
