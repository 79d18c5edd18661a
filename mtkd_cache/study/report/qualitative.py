"""Figure 3: image, truth and predictions, one anatomy a row; `panels` makes the arrays it draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mtkd_cache.study.report.formats import percent, spoken
from mtkd_cache.study.report.style import INK, styled
from mtkd_cache.training.metrics import image_dice

FILL = "#00e0d0"
TRUTH = "#ffffff"
STRENGTH = 0.42
WIDEST = 320
PANEL, GAP, LEFT, TOP, EDGE = 1.44, 0.05, 0.46, 0.26, 0.05  # inches


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
    tall = PANEL * height / width
    titles = ["Image", "Truth", *rows[0].predictions]
    size = (LEFT + len(titles) * (PANEL + GAP) - GAP + EDGE, TOP + len(rows) * (tall + GAP) - GAP + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    for down, row in enumerate(rows):
        bottom = size[1] - TOP - tall - down * (tall + GAP)
        masks = [None, row.truth, *row.predictions.values()]
        for across, (title, mask) in enumerate(zip(titles, masks, strict=True)):
            left = LEFT + across * (PANEL + GAP)
            axes = figure.add_axes((left / size[0], bottom / size[1], PANEL / size[0], tall / size[1]))
            _draw(axes, row, mask, prediction=across > 1)
            if down == 0:
                figure.text((left + PANEL / 2) / size[0], 1 - 0.6 * TOP / size[1], title, ha="center", va="center", fontsize=8.5)
        name = spoken(row.anatomy).replace(" ", "\n", 1) if len(row.anatomy) > 14 else spoken(row.anatomy)
        figure.text(
            (LEFT - 0.07) / size[0], (bottom + tall / 2) / size[1], name, ha="right", va="center", rotation=90,
            fontsize=8, color=INK, linespacing=1.05, multialignment="center",
        )  # fmt: skip
    return figure


def _draw(axes: Axes, row: Panel, mask: np.ndarray | None, *, prediction: bool) -> None:
    height, width = row.truth.shape
    picture = _shrink(row.image) / 255
    if mask is not None:
        covered = STRENGTH * _shrink(_gray(mask))[..., None] / 255
        picture = (1 - covered) * picture + covered * np.array(to_rgb(FILL))
    axes.imshow(picture, extent=(0, width, height, 0), aspect="auto")
    axes.set_axis_off()
    if mask is not None:
        _outline(axes, mask, FILL, 1.1)
    if mask is not None and prediction:
        _outline(axes, row.truth, TRUTH, 0.7)
        dice = float(image_dice(torch.from_numpy(mask)[None], torch.from_numpy(row.truth)[None]))
        label = "both empty" if math.isnan(dice) else percent(dice)
        box = {"boxstyle": "round,pad=0.22", "facecolor": "black", "alpha": 0.62, "linewidth": 0}
        axes.text(0.03, 0.04, label, transform=axes.transAxes, fontsize=7.5, color="white", va="bottom", bbox=box)


def _gray(mask: np.ndarray) -> np.ndarray:
    return np.asarray(mask, bool).astype(np.uint8) * 255


def _shrink(picture: np.ndarray) -> np.ndarray:
    """A uint8 picture (H, W[, 3]) made at most WIDEST wide by area averaging."""
    height, width = picture.shape[:2]
    if width <= WIDEST:
        return np.asarray(picture)
    size = (WIDEST, round(height * WIDEST / width))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _outline(axes: Axes, mask: np.ndarray, color: str, width: float) -> None:
    """The mask's outline, closed at the picture's border."""
    covered = np.pad(_shrink(_gray(mask)) / 255, 1)
    if covered.min() == covered.max():
        return
    height, full = mask.shape
    down, across = (count - 2 for count in covered.shape)
    x = np.clip((np.arange(-1, across + 1) + 0.5) * full / across, 0, full)
    y = np.clip((np.arange(-1, down + 1) + 0.5) * height / down, 0, height)
    lines = axes.contour(x, y, covered, levels=[0.5], colors=[color], linewidths=[width])
    lines.set_clip_path(axes.patch)
