"""The result of `mtkd_cache.bench.parity`: figures by seed, paired differences, a table, and a figure of them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtkd_cache.cache.view_gap import means
from mtkd_cache.models.records import read_json, write_json
from mtkd_cache.storage.folder import write_durably
from mtkd_cache.study.gain.results import Gain, Group, Result, gain, read_all, read_results, t_975
from mtkd_cache.study.gain.table import gain_text, groups, spread
from mtkd_cache.study.report.formats import full_name
from mtkd_cache.study.report.style import FAMILIES, OTHERS, RED, save, styled

VIEW_GAP = "view-gap.json"
FIGURES = {"dice": "at 0.5", "dice_at_operating_point": "at operating points"}
REFERENCE = "views-epochs"  # of the figure: online but for the quantization, at no teacher's cost
OVER = ("cached", REFERENCE, "online")  # the arms that the others are compared with
HALF = 0.5  # points: how narrow an interval of a difference should be, to either side
NOTE = (
    "Dice in percent, mean ± standard deviation over the seeds, at probability 0.5 and at each head's threshold chosen on "
    "validation; minus cached and so on: the difference in points, paired by seed, with its 95 % t-interval. Seeds needed: for "
    "an interval of ±0.5 points of the differences to cached, by their standard deviation. All arms of a table take equally "
    "many steps, in the same views but for views-N."
)
Arms = Mapping[str, Sequence[Result]]


def write_parity(studies: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the table and the figure of one study, or of several together, into `out`.

    Returns what parity.json holds: arms {arm: {group: {figure: {seed: Dice in [0, 1]}}}}, differences (a list of
    {group, arm, over, figure, seeds, mean, interval} in points), view_gap_kl_nats {study: {anatomy: {part: nats}}}; and
    markdown, and files, the paths written. Raises MtkdError for a folder that holds no results.
    """
    groups = grouped(read_all(studies, read_results, "parity"))
    out.mkdir(parents=True, exist_ok=True)
    gaps = {study.name: gap for study in studies if (gap := read_json(study / VIEW_GAP))}
    content: dict[str, Any] = {"arms": {}, "differences": [], "view_gap_kl_nats": gaps}
    for group, arms in groups.items():
        for arm, results in arms.items():
            by_figure = {figure: {str(each.seed): getattr(each, figure) for each in results} for figure in FIGURES}
            content["arms"].setdefault(arm, {})["/".join(group)] = by_figure
            for over, figure, found in differences(arm, arms):
                content["differences"].append(
                    {"group": "/".join(group), "arm": arm, "figure": figure, **asdict(found), "over": over}
                )
    text = markdown(groups, gaps)
    files = [out / "parity.json", out / "parity.md", *figure_of(groups, out / "parity")]
    write_json(files[0], content)
    write_durably(files[1], text.encode())
    return {**content, "markdown": text, "files": [str(path) for path in files]}


def grouped(results: Sequence[Result]) -> dict[Group, dict[str, list[Result]]]:
    """The results by group, and in each by arm, those with fewer views first."""
    order = ("masks", "cached", *(f"views-{number}" for number in (1, 2, 4, "epochs")), "online", "online-clean")
    return dict(groups(results, order))


def differences(arm: str, arms: Arms) -> list[tuple[str, str, Gain]]:
    """What an arm has over each of OVER by each of FIGURES, where both have a seed: (over, figure, difference)."""
    pairs = [(over, figure) for over in OVER if over != arm and over in arms for figure in FIGURES]
    found = [(over, figure, gain(arms[arm], arms[over], figure)) for over, figure in pairs]
    return [(over, figure, each) for over, figure, each in found if each]


def seeds_needed(values: Sequence[float], half: float = HALF) -> int | None:
    """How many seeds make the 95 % t-interval of a mean ± half, by the deviation of values; None for fewer than two."""
    if len(values) < 2:
        return None
    deviation = statistics.stdev(values)
    return next(count for count in range(2, 10**6) if t_975(count - 1) * deviation <= half * count**0.5)


def markdown(groups: Mapping[Group, Arms], gaps: Mapping[str, dict[str, dict[str, float]]]) -> str:
    """A table for each study, split, architecture and length, and the gap of the views."""
    parts = []
    for (study, split, arch, length), arms in groups.items():
        epochs = "/".join(map(str, sorted({each.epochs for results in arms.values() for each in results})))
        pairs = [f"minus {over}, {name}" for name in FIGURES.values() for over in OVER if over in arms]
        columns = ["arm", "seeds", *FIGURES.values(), *pairs, "seeds needed"]
        lines = [columns, ["---"] * len(columns), *(_row(arm, arms) for arm in arms)]
        parts += [f"**{study}, {split}: {full_name(arch)}, {length} ({epochs} epochs)**\n"]
        parts += [*(f"| {' | '.join(line)} |" for line in lines), ""]
    for study, gap in gaps.items():
        told = ", ".join(f"{part} {nats:.2g}" for part, nats in means(gap).items())
        parts += [f"{study}: KL between live teachers of the picture as seen and the stored map, warped, in nats: {told}.\n"]
    return "\n".join([*parts, NOTE, ""])


def _row(arm: str, arms: Arms) -> list[str]:
    results = arms[arm]
    found = {(over, figure): each for over, figure, each in differences(arm, arms)}
    means = [spread([100 * getattr(each, figure) for each in results]) for figure in FIGURES]
    paired = [gain_text(found.get((over, figure))) for figure in FIGURES for over in OVER if over in arms]
    needed = [_needed(arm, arms, figure) for figure in FIGURES]
    return [arm, str(len(results)), *means, *paired, ", ".join(filter(None, needed))]


def _needed(arm: str, arms: Arms, figure: str) -> str:
    """The seeds needed for the difference to cached; empty where there is none."""
    cached = {each.seed: getattr(each, figure) for each in arms.get("cached", ())} if arm != "cached" else {}
    pairs = [100 * (getattr(each, figure) - cached[each.seed]) for each in arms[arm] if each.seed in cached]
    return str(seeds_needed(pairs) or "")


@styled
def figure_of(groups: Mapping[Group, Arms], stem: Path) -> list[Path]:
    """What arms have over recorded views, one an epoch, against the number of recorded views: stem.png and stem.svg.

    Nothing where no group has that arm.
    """
    groups = {group: arms for group, arms in groups.items() if REFERENCE in arms}
    if not groups:
        return []
    figure = Figure(figsize=(3.4 * len(FIGURES), 2.6 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(FIGURES), squeeze=False)
    for row, ((study, _, _, length), arms) in zip(panels, groups.items(), strict=True):
        for axes, (name, title) in zip(row, FIGURES.items(), strict=True):
            draw_differences(axes, arms, name)
            axes.set_title(f"{study}, {length}, {title}", fontsize=8)
            axes.set_xlabel("recorded views of a sample")
            axes.set_ylabel("difference in Dice, points")
    panels[0][0].legend(fontsize=6)
    return save(figure, stem)


def draw_differences(axes: Axes, arms: Arms, figure: str) -> None:
    """Paired differences with 95 % intervals: points for recorded views, a line with a band for cached maps and live teachers."""
    colors = dict(zip(("cached", "online", "online-clean"), (FAMILIES["MiniNetV2"], RED, OTHERS[0]), strict=True))
    points = [(arms[REFERENCE][0].epochs, 0.0, 0.0)]
    for arm, results in arms.items():
        found = gain(results, arms[REFERENCE], figure)
        if found is None or arm == REFERENCE:
            continue
        low, high = found.interval or (found.mean, found.mean)
        if arm in colors:
            axes.axhline(found.mean, color=colors[arm], linewidth=1, label=arm)
            axes.axhspan(low, high, color=colors[arm], alpha=0.12, linewidth=0)
        elif arm.startswith("views-"):
            points.append((int(arm.removeprefix("views-")), found.mean, high - found.mean))
    numbers, means_of, halves = zip(*sorted(points), strict=True)
    axes.errorbar(
        numbers, means_of, yerr=halves, fmt="o-", label="recorded views", color="black", linewidth=1, capsize=2, markersize=3
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
