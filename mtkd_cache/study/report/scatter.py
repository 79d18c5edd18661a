"""Figure 1: parameters against mean Dice, as the paper draws it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import textalloc
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import LogLocator, NullLocator

from mtkd_cache.study.published import Paper
from mtkd_cache.study.report.collect import Row, compared_with
from mtkd_cache.study.report.formats import display_name, signed
from mtkd_cache.study.report.style import FAMILIES, OTHERS, PALE, QUIET, RED, styled

MARKERS = {"separate": ("s", 6.2), "shared": ("*", 11.5), "shared-refine": ("P", 7.5), "joint": ("D", 6.0)}
LAYOUT_WORDS = {
    "separate": "one network an anatomy",
    "shared": "one shared encoder",
    "shared-refine": "with a shared look at the image",
    "joint": "one decoder for all",
}


@dataclass(frozen=True)
class Point:
    """One marker of Figure 1. params_m: millions; dice and sd (over seeds, None for one) in percent."""

    arch: str
    layout: str
    kd: bool
    params_m: float
    dice: float
    sd: float | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What stands at the marker."""
        return self.label or display_name(self.arch)[1]


def points_of(rows: Sequence[Row]) -> list[Point]:
    """The rows that have both parameters and a mean Dice."""
    return [
        Point(*row.published_key, row.params_m, 100 * row.mean_dice, row.spread and 100 * row.spread, row.label)
        for row in rows
        if row.params_m and row.mean_dice is not None
    ]


def paper_points(paper: Paper) -> list[Point]:
    """The paper's own points."""
    return [Point(*key, row.params_m, row.dice) for key, row in paper.items()]


@styled
def scatter_figure(points: Sequence[Point], behind: Sequence[Point] = ()) -> Figure:
    """Squares and stars as in the paper; red for distilled students, each with a red arrow from its baseline.

    behind: the paper's points, drawn in light gray without labels.
    """
    figure = Figure(figsize=(8.0, 5.7))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.09, 0.91, 0.79))
    _frame(axes, [*points, *behind])
    colors = _colors(points)
    for start, end in arrows(behind):
        _arrow(axes, start, end, PALE, 1.0)
    for point in behind:
        _marker(axes, point, PALE, 2)
    for start, end in arrows(points):
        _arrow(axes, start, end, RED, 1.6)
    for point in points:
        _marker(axes, point, _color(point, colors), 4)
    _labels(axes, points, behind, colors)
    _legend(figure, points, bool(behind), colors)
    return figure


def arrows(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """(baseline, distilled) of each distilled student that has a baseline."""
    pairs = [(compared_with(point, points), point) for point in points if point.kd]
    return [(baseline, point) for baseline, point in pairs if baseline and not baseline.kd]


def _colors(points: Sequence[Point]) -> dict[str, str]:
    """A color for each decoder; the paper's three keep theirs."""
    names, others = dict.fromkeys(display_name(point.arch)[0] for point in points), cycle(OTHERS)
    return {name: FAMILIES.get(name) or next(others) for name in names}


def _color(point: Point, colors: dict[str, str]) -> str:
    return RED if point.kd else colors[display_name(point.arch)[0]]


def _frame(axes: Axes, points: Sequence[Point]) -> None:
    params = [point.params_m for point in points]
    dice = [point.dice + sign * (point.sd or 0) for point in points for sign in (-1, 1)]
    room = max(2.5, 0.07 * (max(dice) - min(dice)))
    axes.set(xlabel="Parameters, millions (logarithmic)", xscale="log", xlim=(min(params) / 1.45, max(params) * 1.6))
    axes.set(ylabel="Mean Dice, %", ylim=(min(dice) - room, max(dice) + room))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _marker(axes: Axes, point: Point, color: str, order: int) -> None:
    shape, size = MARKERS[point.layout]
    if point.sd:
        axes.errorbar(
            point.params_m, point.dice, yerr=point.sd, fmt="none", zorder=order - 0.1, color=color,
            elinewidth=1.1, capsize=2.4, capthick=1.1,
        )  # fmt: skip
    axes.plot(
        [point.params_m], [point.dice], shape, zorder=order, color=color,
        markersize=size, markeredgecolor="white", markeredgewidth=0.6,
    )  # fmt: skip


def _arrow(axes: Axes, start: Point, end: Point, color: str, width: float) -> None:
    axes.add_patch(
        FancyArrowPatch(
            (start.params_m, start.dice), (end.params_m, end.dice), arrowstyle="-|>", mutation_scale=9, linewidth=width,
            color=color, shrinkA=4.5, shrinkB=5, zorder=3 if color == RED else 1.5,
        )
    )  # fmt: skip


def _labels(axes: Axes, points: Sequence[Point], behind: Sequence[Point], colors: dict[str, str]) -> None:
    """Name every marker, and give each arrow its gain in place of the name of its tip, where nothing is covered.

    The labels that have to be nearest, those of the arrows, are placed first.
    """
    starts = {end: start for start, end in arrows(points)}
    ordered = sorted(points, key=lambda point: (not point.kd, point.layout))
    middles = [(starts.get(point, point).params_m * point.params_m) ** 0.5 for point in ordered]  # on a logarithmic axis
    lines = [([start.params_m, end.params_m], [start.dice, end.dice]) for start, end in arrows(points)]
    lines += [([p.params_m, p.params_m], [p.dice - p.sd, p.dice + p.sd]) for p in points if p.sd]
    shades = [_color(point, colors) for point in ordered]
    textalloc.allocate(
        axes,
        x=middles,
        y=[(starts.get(point, point).dice + point.dice) / 2 for point in ordered],
        text_list=[f"{p.label} {signed(p.dice - starts[p].dice)}".strip() if p in starts else p.name for p in ordered],
        x_scatter=[point.params_m for point in (*points, *behind)],
        y_scatter=[point.dice for point in (*points, *behind)],
        x_lines=[x for x, _ in lines],
        y_lines=[y for _, y in lines],
        textsize=8,
        fontweight=["bold" if point in starts else "normal" for point in ordered],
        textcolor=shades,
        linecolor=shades,
        linewidth=0.6,
        margin=0.014,
        min_distance=0.014,
        max_distance=0.12,
        avoid_label_lines_overlap=True,
        avoid_crossing_label_lines=True,
    )


def _legend(figure: Figure, points: Sequence[Point], with_paper: bool, colors: dict[str, str]) -> None:
    def mark(shape: str, size: float, color: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=shape, markersize=size, color=color, markeredgewidth=0, label=label)

    families = [mark("o", 6, color, name) for name, color in colors.items()]
    layouts = {point.layout for point in points}
    shapes = [mark(*MARKERS[layout], QUIET, LAYOUT_WORDS[layout]) for layout in MARKERS if layout in layouts]
    if any(point.kd for point in points):
        shapes.append(mark(*MARKERS["shared"], RED, "with distillation (MT-KD)"))
    if with_paper:
        shapes.append(mark("o", 6, PALE, "the paper"))
    for handles, height in ((families, 0.985), (shapes, 0.94)):
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.07, height), ncols=len(handles))
