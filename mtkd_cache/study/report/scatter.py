"""Figure 1: parameters against mean Dice, as the paper draws it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from mtkd_cache.study.report.collect import Row
from mtkd_cache.study.report.formats import display_name, signed
from mtkd_cache.study.report.labels import Box, nearest, place
from mtkd_cache.study.report.style import FAMILIES, INK, OTHERS, PALE, QUIET, RED, styled
from mtkd_cache.study.report.tables import Paper

MARKERS = {"separate": ("s", 6.2), "shared": ("*", 11.5)}
LAYOUT_WORDS = {"separate": "one network an anatomy", "shared": "one shared encoder"}
DISTANCES = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0)
LEADER_FROM = 14.0


@dataclass(frozen=True)
class Point:
    """One marker of Figure 1. params_m: millions; dice and sd (over seeds, None for one) in percent."""

    arch: str
    layout: str
    kd: bool
    params_m: float
    dice: float
    sd: float | None = None


def points_of(rows: Sequence[Row]) -> list[Point]:
    """The rows that have both parameters and a mean Dice."""
    known = [row for row in rows if row.params_m and row.mean_dice is not None]
    return [
        Point(row.arch, row.layout, row.kd, row.params_m, 100 * row.mean_dice, row.spread and 100 * row.spread) for row in known
    ]


def paper_points(paper: Paper) -> list[Point]:
    """The paper's own points."""
    return [Point(*key, said.params_m, said.dice) for key, said in paper.items()]


@styled
def scatter_figure(points: Sequence[Point], behind: Sequence[Point] = ()) -> Figure:
    """Squares and stars as in the paper, red for distilled students, a red arrow from baseline to distilled.

    behind: the paper's points, drawn in light grey without labels.
    """
    figure = Figure(figsize=(8.0, 5.7), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.09, 0.91, 0.79))
    _frame(axes, [*points, *behind])
    colours = _colours(points)
    for one, other in arrows(behind):
        _arrow(axes, one, other, PALE, 1.0)
    for point in behind:
        _marker(axes, point, PALE, 2)
    for one, other in arrows(points):
        _arrow(axes, one, other, RED, 1.6)
    for point in points:
        _marker(axes, point, RED if point.kd else colours[display_name(point.arch)[0]], 4)
    _labels(figure, axes, points, behind, colours)
    _legend(figure, points, bool(behind), colours)
    return figure


def arrows(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """(baseline, distilled) of each architecture that has both."""
    baselines = {point.arch: point for point in points if point.layout == "shared" and not point.kd}
    return [(baselines[point.arch], point) for point in points if point.kd and point.arch in baselines]


def _colours(points: Sequence[Point]) -> dict[str, str]:
    """A colour for each architecture; the paper's three keep theirs."""
    names = list(dict.fromkeys(display_name(point.arch)[0] for point in points))
    others = [name for name in names if name not in FAMILIES]
    return {name: FAMILIES.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in names}


def _frame(axes: Axes, points: Sequence[Point]) -> None:
    params = [point.params_m for point in points] or [1.0, 100.0]
    dice = [point.dice + sign * (point.sd or 0) for point in points for sign in (-1, 1)] or [0.0, 100.0]
    axes.set_xscale("log")
    axes.set_xlim(min(params) / 1.45, max(params) * 1.6)
    room = max(2.5, 0.07 * (max(dice) - min(dice)))
    axes.set_ylim(min(dice) - room, max(dice) + room)
    axes.set_xlabel("Parameters, millions (logarithmic)")
    axes.set_ylabel("Mean Dice, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _marker(axes: Axes, point: Point, colour: str, order: int) -> None:
    shape, size = MARKERS[point.layout]
    if point.sd:
        bar = {"color": colour, "elinewidth": 1.1, "capsize": 2.4, "capthick": 1.1}
        axes.errorbar(point.params_m, point.dice, yerr=point.sd, fmt="none", zorder=order - 0.1, **bar)
    look = {"color": colour, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.plot([point.params_m], [point.dice], shape, zorder=order, **look)


def _arrow(axes: Axes, start: Point, end: Point, colour: str, width: float) -> None:
    axes.add_patch(
        FancyArrowPatch(
            (start.params_m, start.dice), (end.params_m, end.dice), arrowstyle="-|>", mutation_scale=9, linewidth=width,
            color=colour, shrinkA=4.5, shrinkB=5, zorder=3 if colour == RED else 1.5,
        )
    )  # fmt: skip


def _labels(figure: Figure, axes: Axes, points: Sequence[Point], behind: Sequence[Point], colours: dict[str, str]) -> None:
    """Name every marker but the tip of an arrow, which says the gain, where nothing is covered."""
    unit = figure.dpi / 72
    at = axes.transData.transform
    wanted: list[tuple[Text, np.ndarray]] = []
    tips = {end: start for start, end in arrows(points)}
    for point in points:
        name, encoder = display_name(point.arch)
        if point in tips:
            middle = (at((point.params_m, point.dice)) + at((point.params_m, tips[point].dice))) / 2
            text = figure.text(0, 0, signed(point.dice - tips[point].dice), color=RED, fontsize=8, fontweight="bold")
            wanted.append((text, middle))
        else:
            text = figure.text(0, 0, encoder, color=RED if point.kd else colours[name], fontsize=8)
            wanted.append((text, at((point.params_m, point.dice))))
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text, _ in wanted]
    sizes = [(box.width + 3 * unit, box.height + 1.5 * unit) for box in boxes]
    obstacles = [box for point in points for box in _covered(at, point, unit)]
    faint = [box for point in behind for box in _covered(at, point, unit)]
    for start, end in arrows(points):
        x, one, other = *at((start.params_m, start.dice)), at((end.params_m, end.dice))[1]
        obstacles.append((x - 1.5 * unit, min(one, other), x + 1.5 * unit, max(one, other)))
    frame = axes.get_window_extent(renderer)
    at_points = [(float(x), float(y)) for _, (x, y) in wanted]
    room = {"obstacles": obstacles, "faint": faint, "frame": tuple(frame.extents)}
    chosen = place(at_points, sizes, **room, distances=[distance * unit for distance in DISTANCES])
    to_figure = figure.transFigure.inverted().transform
    for (text, point), box in zip(wanted, chosen, strict=True):
        text.set(horizontalalignment="center", verticalalignment="center", zorder=5)
        text.set_position(to_figure(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)))
        near = nearest(box, tuple(point))
        if np.hypot(*(near - point)) > LEADER_FROM * unit:
            ends = np.array([to_figure(point), to_figure(near)])
            figure.add_artist(Line2D(*ends.T, color=text.get_color(), linewidth=0.6, alpha=0.6, zorder=2))


def _covered(at, point: Point, unit: float) -> list[Box]:
    """The boxes of a marker and its error bar, in pixels."""
    x, y = at((point.params_m, point.dice))
    reach = 5.0 * unit
    boxes = [(x - reach, y - reach, x + reach, y + reach)]
    if point.sd:
        tall = at((point.params_m, point.dice + point.sd))[1] - y
        boxes.append((x - 2.2 * unit, y - tall, x + 2.2 * unit, y + tall))
    return boxes


def _legend(figure: Figure, points: Sequence[Point], with_paper: bool, colours: dict[str, str]) -> None:
    def mark(shape: str, size: float, colour: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=shape, markersize=size, color=colour, markeredgewidth=0, label=label)

    families = [mark("o", 6, colour, name) for name, colour in colours.items()]
    layouts = {point.layout for point in points}
    shapes = [mark(*MARKERS[layout], QUIET, LAYOUT_WORDS[layout]) for layout in MARKERS if layout in layouts]
    if any(point.kd for point in points):
        shapes.append(mark(*MARKERS["shared"], RED, "with distillation (MT-KD)"))
    if with_paper:
        shapes.append(mark("o", 6, PALE, "the paper"))
    for handles, height in ((families, 0.985), (shapes, 0.94)):
        legend = figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.07, height), ncols=len(handles), frameon=False,
            handletextpad=0.2, columnspacing=1.6, borderaxespad=0, labelcolor=INK,
        )  # fmt: skip
        figure.add_artist(legend)
