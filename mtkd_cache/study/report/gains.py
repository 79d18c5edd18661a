"""What a row gains and loses against another one of its architecture: by distillation, or one named run against another.

A pair is judged at probability 0.5 and at the operating points, over the seeds that both rows have. By anatomy every difference
has its 95 % interval over patients, and every anatomy that loses is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mtkd_cache.evaluation.pictures import AT_POINT as AT_POINT_SUFFIX
from mtkd_cache.evaluation.pictures import Picture
from mtkd_cache.evaluation.statistics import Interval, paired_differences
from mtkd_cache.evaluation.tables import totals_of
from mtkd_cache.study.published import Paper
from mtkd_cache.study.report.collect import Result, Row, compared_with, mean, pictures_of, spread
from mtkd_cache.study.report.formats import MINUS, display_name, full_name, percent, signed, spoken
from mtkd_cache.study.report.markup import Cell, Column, Table
from mtkd_cache.study.report.tables import AT_HALF, AT_POINT, difference_cell, text_cell

THRESHOLD_NOTE = (
    "At probability 0.5 a head is judged by logit 0; at its operating point by the threshold with the best Dice on the "
    "validation split. Logits trained on few positives and many negatives lie low, which costs most of what a head knows at 0.5. "
    "What distillation gains at 0.5 alone, a threshold gains without a teacher."
)


@dataclass(frozen=True)
class Gain:
    """A row, `after`, against another one, `before`, judged at probability 0.5 or, at_point, at the operating points."""

    before: Row
    after: Row
    at_point: bool = False

    @property
    def distills(self) -> bool:
        """Whether the rows differ by distillation."""
        return self.after.kd and not self.before.kd

    @property
    def sides(self) -> tuple[str, str]:
        """What tells the two rows apart."""
        arms = ("without KD", "with KD") if self.distills else ("", "")
        before, after = (" ".join(filter(None, pair)) for pair in zip((self.before.label, self.after.label), arms, strict=True))
        return before or "unnamed", after or "unnamed"

    @property
    def name(self) -> str:
        """As "MiniNetV2 with KD against without KD"."""
        before, after = self.sides
        return f"{full_name(self.after.arch)} {after} against {before}"

    @property
    def judged(self) -> str:
        return AT_POINT if self.at_point else AT_HALF

    @cached_property
    def seeds(self) -> dict[int, tuple[Result, Result]]:
        """The results of the seeds that both rows have."""
        results = {result.seed: result for result in self.after.results}
        return {result.seed: (result, results[result.seed]) for result in self.before.results if result.seed in results}

    @property
    def dice(self) -> dict[int, tuple[float, float]]:
        """By seed the mean Dice (0..1) before and after, where both are known."""
        means = {seed: (self._mean(old), self._mean(new)) for seed, (old, new) in self.seeds.items()}
        return {seed: (old, new) for seed, (old, new) in means.items() if old is not None and new is not None}

    @property
    def differences(self) -> dict[int, float]:
        return {seed: after - before for seed, (before, after) in self.dice.items()}

    @cached_property
    def by_anatomy(self) -> dict[str, tuple[float, float, Interval | None]]:
        """Of each anatomy, Dice before and after, means over the common seeds, and the interval of the difference."""
        pairs, intervals = list(self.seeds.values()), self._intervals()
        found = {}
        for anatomy in self.after.results[0].training.anatomies:
            old, new = (mean(self._of(pair[side], anatomy) for pair in pairs) for side in (0, 1))
            if old is not None and new is not None:
                found[anatomy] = (old, new, intervals.get(anatomy))
        return found

    @property
    def losses(self) -> list[str]:
        """The anatomies whose Dice falls, as far as one decimal shows it."""
        return [name for name, (old, new, _) in self.by_anatomy.items() if signed(100 * (new - old)).startswith(MINUS)]

    def _mean(self, result: Result) -> float | None:
        return result.mean_dice_at_point if self.at_point else result.mean_dice

    def _of(self, result: Result, anatomy: str) -> float | None:
        dice = result.evaluation.dice_at_operating_point if self.at_point else result.evaluation.dice
        return (dice or {}).get(anatomy)

    def _intervals(self) -> dict[str, Interval | None]:
        """Of the differences, the seeds together; empty where the two rows have no figures of the same pictures."""
        sides = ([pair[side] for pair in self.seeds.values()] for side in (0, 1))
        before, after = (sorted(pictures_of(results), key=_place) for results in sides)
        if not before or [_place(picture) for picture in before] != [_place(picture) for picture in after]:
            return {}
        figure = "dice" + AT_POINT_SUFFIX * self.at_point
        old, new = totals_of(before, figure), totals_of(after, figure)
        differences = paired_differences(old, new)[1:]
        return {name: row.interval for name, row in zip(old.anatomies, differences, strict=True) if row}


def _place(picture: Picture) -> tuple[str, str]:
    return picture.anatomy, picture.sha256


def gains(rows: Sequence[Row]) -> list[Gain]:
    """Each row against the one that it is compared with, see `compared_with`: at probability 0.5, then, where both rows have
    operating points, at these."""
    pairs = [(first, row) for row in rows if (first := compared_with(row, rows))]
    return [
        Gain(first, row, at_point)
        for first, row in pairs
        for at_point in (False, True)
        if not at_point or (first.means_at_point and row.means_at_point)
    ]


def gain_table(rows: Sequence[Gain], paper: Paper) -> Table:
    """Mean Dice before and after, the difference over the common seeds, each seed's, and the paper's unless `paper` is empty."""
    distilled, labeled = all(gain.distills for gain in rows), any(gain.before.label or gain.after.label for gain in rows)
    group = "Mean Dice, %"
    titles = ("without KD", "with KD") if distilled else ("before", "after")
    columns = [Column("Architecture"), Column("Encoder"), *([Column("before"), Column("after")] if labeled else [])]
    columns += [Column("judged"), *(Column(title, group, True) for title in (*titles, "difference"))]
    columns += [Column("each seed's difference")] + [Column("paper's difference", number=True)] * bool(paper)
    several = any(len(gain.dice) > 1 for gain in rows)
    ending = ", ± their sample standard deviation." if several else "."
    notes = [f"Means over the seeds both rows have; differences in percentage points{ending}", THRESHOLD_NOTE]
    title = "What distillation gains" if distilled else "Differences between runs of one architecture"
    return Table("gain", title, tuple(columns), [[_gain_row(gain, paper, labeled) for gain in rows]], notes)


def _gain_row(gain: Gain, paper: Paper, labeled: bool) -> list[Cell]:
    points = {seed: 100 * difference for seed, difference in gain.differences.items()}
    each = ", ".join(f"seed {seed}: {signed(point)}" for seed, point in points.items())
    gained = mean(points.values())
    cells = [text_cell(text) for text in (*display_name(gain.after.arch), *(gain.sides if labeled else ()), gain.judged)]
    for arm in (0, 1):
        dice = mean(pair[arm] for pair in gain.dice.values())
        cells.append(Cell(percent(dice), dice))
    cells += [difference_cell(gained, spread(points.values())), Cell(each or "no seed in common", gained)]
    if paper:
        old, new = (paper.get(row.published_key) for row in (gain.before, gain.after))
        published = new.dice - old.dice if old and new and gain.distills and not gain.at_point else None
        cells.append(Cell(signed(published), published, kind="paper"))
    return cells


def anatomy_table(rows: Sequence[Gain], anatomies: Sequence[str]) -> Table:
    """The difference of every anatomy, with its interval."""
    columns = (Column("Network"), Column("judged"), *(Column(spoken(anatomy), number=True) for anatomy in anatomies))
    lines = []
    for gain in rows:
        cells = [text_cell(gain.name), text_cell(gain.judged)]
        for anatomy in anatomies:
            old, new, interval = gain.by_anatomy.get(anatomy, (None, None, None))
            points = None if old is None or new is None else 100 * (new - old)
            cells.append(replace(difference_cell(points), interval=_bounds(interval)))
        lines.append(cells)
    note = "Difference of the Dice in percentage points, over the seeds both rows have"
    note += ", with its 95 % interval over patients" * any(cell.interval for cells in lines for cell in cells)
    return Table("gain-by-anatomy", "Gains and losses by anatomy", columns, [lines], [f"{note}."])


def sentence(gain: Gain) -> str:
    """How many anatomies gain, and which lose, from what to what."""
    number, losses = len(gain.by_anatomy), gain.losses
    start = f"{gain.name}, {gain.judged}: Dice falls for {len(losses)} of {number} anatomies"
    if not losses:
        return f"{start}."
    told = []
    for anatomy in losses:
        old, new, interval = gain.by_anatomy[anatomy]
        bounds = f", 95 % interval {_bounds(interval)}" if interval else ""
        told.append(f"{spoken(anatomy)} ({percent(old)} to {percent(new)}{bounds})")
    return f"{start}: {', '.join(told)}."


def _bounds(interval: Interval | None) -> str:
    """An interval of differences in percentage points: −7.0 to −3.1."""
    return "" if interval is None else " to ".join(signed(100 * bound) for bound in interval)
