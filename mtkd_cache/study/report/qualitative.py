"""Figure 3: image, truth and predictions, one anatomy a row; `panels` makes the arrays it draws."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mtkd_cache.study.report.formats import percent, spoken
from mtkd_cache.study.report.style import styled
from mtkd_cache.training.metrics import image_dice

FILL = "#00e0d0"
TRUTH = "#ffffff"
STRENGTH = 0.42
WIDEST = 320
PANEL, LEFT, TOP = 1.49, 0.4, 0.25  # inches


@dataclass(frozen=True)
class Panel:
    """One row of Figure 3.

    image: (H, W, 3) uint8. truth: (H, W), 0/1 or bool. predictions: column title -> (H, W), 0/1 or bool, in order.
    """

    anatomy: str
    image: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]


@styled
def qualitative_figure(rows: Sequence[Panel]) -> Figure:
    """The figure: image, truth, then each prediction, filled, with the truth's outline and Dice in percent."""
    height, width = rows[0].truth.shape
    titles = ["Image", "Truth", *rows[0].predictions]
    size = (LEFT + len(titles) * PANEL, TOP + len(rows) * PANEL * height / width)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for column, (axes, mask) in enumerate(zip(line, [None, row.truth, *row.predictions.values()], strict=True)):
            _draw(axes, row, mask, prediction=column > 1)
        name = spoken(row.anatomy)
        line[0].set_ylabel(name.replace(" ", "\n", 1) if len(name) > 14 else name, fontsize=8)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(textwrap.fill(title, 24), fontsize=8.5, pad=4)
    return figure


def _draw(axes: Axes, row: Panel, mask: np.ndarray | None, *, prediction: bool) -> None:
    picture = _shrink(row.image) / 255
    if mask is not None:
        covered = STRENGTH * _covered(mask)[..., None]
        picture = (1 - covered) * picture + covered * np.array(to_rgb(FILL))
    axes.imshow(picture, aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if mask is not None:
        _outline(axes, mask, FILL, 1.1)
    if mask is not None and prediction:
        _outline(axes, row.truth, TRUTH, 0.7)
        dice = float(image_dice(torch.from_numpy(mask)[None], torch.from_numpy(row.truth)[None]))
        label = "both empty" if math.isnan(dice) else percent(dice)
        box = {"boxstyle": "round,pad=0.22", "facecolor": "black", "alpha": 0.62, "linewidth": 0}
        axes.text(0.03, 0.04, label, transform=axes.transAxes, fontsize=7.5, color="white", va="bottom", bbox=box)


def _covered(mask: np.ndarray) -> np.ndarray:
    """The share of each shrunk pixel that a mask covers."""
    return _shrink(np.asarray(mask, bool).astype(np.uint8) * 255) / 255


def _shrink(picture: np.ndarray) -> np.ndarray:
    """A uint8 picture (H, W[, 3]) made at most WIDEST wide by area averaging."""
    height, width = picture.shape[:2]
    if width <= WIDEST:
        return picture
    size = (WIDEST, round(height * WIDEST / width))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _outline(axes: Axes, mask: np.ndarray, color: str, width: float) -> None:
    """The mask's outline, closed at the picture's border."""
    covered = np.pad(_covered(mask), 1)
    if covered.min() < covered.max():
        y, x = (np.clip(np.arange(-1, count - 1), -0.5, count - 2.5) for count in covered.shape)
        lines = axes.contour(x, y, covered, levels=[0.5], colors=[color], linewidths=[width])
        lines.set_clip_path(axes.patch)
