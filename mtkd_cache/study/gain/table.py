"""The study's result as Markdown, and its figure of the thresholds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtkd_cache.study.gain.arms import ARMS, BASELINE, PAPER
from mtkd_cache.study.gain.results import Gain, Group, Result, gains
from mtkd_cache.study.report.formats import full_name, percent, signed
from mtkd_cache.study.report.style import FAMILIES, OTHERS, PALE, QUIET, RED, save, styled

COLUMNS = (
    "arm",
    "seeds",
    "at 0.5",
    "at operating points",
    "over masks",
    "over KL",
    "pixel AP",
    "threshold",
    "calibrated",
    "minutes",
)
PANELS = 4  # of the figure, side by side
WITHOUT_KD, WITH_KD = ((QUIET, "--"), (QUIET, ":"), (QUIET, "-."), (PALE, "--")), (*OTHERS, RED, *FAMILIES.values())
LINES = dict(zip(ARMS, (*WITHOUT_KD, *((color, "-") for color in WITH_KD)), strict=False))  # by arm, color and style
NOTE = (
    "Dice in percent, mean ± standard deviation over the seeds. Operating points: the threshold of each head, chosen on "
    "validation. Over masks, over KL: difference at operating points, paired by seed, with its 95 % t-interval. All arms of a "
    "table take equally many steps; minutes: of a training. Threshold: mean logit of the operating points; calibrated: where they"
    " would lie if the heads' probabilities were those of the pixels they are trained on."
)


def groups(results: Sequence[Result], order: Sequence[str] = tuple(ARMS)) -> list[tuple[Group, dict[str, list[Result]]]]:
    """The results by group, and in each by arm in the given order."""
    found: dict[Group, dict[str, list[Result]]] = {}
    for result in sorted(results, key=lambda result: (*result.group, order.index(result.arm), result.seed)):
        found.setdefault(result.group, {}).setdefault(result.arm, []).append(result)
    return list(found.items())


def markdown(results: Sequence[Result], teachers: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> str:
    """A table for each study, split, architecture and length. teachers: by study, see `read_teachers`."""
    parts = []
    for (study, split, arch, length), arms in groups(results):
        epochs = "/".join(map(str, sorted({result.epochs for each in arms.values() for result in each})))
        title = f"{study}, {split}: {full_name(arch)}, {length} ({epochs} epochs)"
        if split in teachers[study]:
            title += f"; teachers {percent(teachers[study][split][0])} and {percent(teachers[study][split][1])}"
        lines = [COLUMNS, ("---",) * len(COLUMNS), *(_row(arm, arms) for arm in arms)]
        parts += [f"**{title}**\n", *(f"| {' | '.join(line)} |" for line in lines), ""]
    return "\n".join([*parts, NOTE, ""])


def _row(arm: str, arms: Mapping[str, Sequence[Result]]) -> tuple[str, ...]:
    results, over = arms[arm], gains(arm, arms)
    figures = ([100 * result.dice for result in results], [100 * result.dice_at_operating_point for result in results])
    precision = 100 * statistics.mean(result.average_precision for result in results)
    minutes = statistics.mean(result.minutes for result in results)
    seeds = ", ".join(str(result.seed) for result in results)
    return (
        arm,
        seeds,
        *map(spread, figures),
        *(gain_text(over.get(other)) for other in (BASELINE, PAPER)),
        f"{precision:.1f}",
        *(_mean_logit([getattr(result, name) for result in results]) for name in ("threshold", "calibrated_threshold")),
        f"{minutes:.1f}",
    )


def _mean_logit(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return signed(statistics.mean(known)) if known else ""


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, of several values."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def gain_text(found: Gain | None) -> str:
    """A gain with its interval, empty for none."""
    if found is None:
        return ""
    return signed(found.mean) + (f" [{signed(found.interval[0])}, {signed(found.interval[1])}]" if found.interval else "")


@styled
def threshold_figure(results: Sequence[Result], stem: Path) -> list[Path]:
    """The threshold that was best on validation after each epoch, mean over heads and seeds: stem.png and stem.svg."""
    panels = groups(results)
    rows, columns = -(-len(panels) // PANELS), min(len(panels), PANELS)
    figure, drawn = Figure(figsize=(3.2 * columns, 2.8 * rows + 0.3), layout="constrained"), {}
    for place, ((study, _, arch, length), arms) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        for arm, each in arms.items():
            shortest = min(len(result.thresholds) for result in each)
            course = np.mean([result.thresholds[:shortest] for result in each], axis=0)
            color, style = LINES[arm]
            (drawn[arm],) = axes.plot(range(1, shortest + 1), course, style, color=color, linewidth=1.2)
        axes.set_title(f"{study}: {full_name(arch)}, {length}", fontsize=8)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("best threshold, logit")
    known = [arm for arm in ARMS if arm in drawn]
    figure.legend([drawn[arm] for arm in known], known, fontsize=6, ncols=2 * columns, loc="outside lower center")
    return save(figure, stem)
