"""Run folders and teachers folders -> rows: all seeds of one architecture, layout and training arm together.

    runs/NAME/run.json              a student: layout shared
    teachers/ANATOMY/teacher.json   the teachers: layout separate, one network an anatomy

Both need the `evaluation-test.json` that `mtkd-cache evaluate` writes.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.pictures import Picture
from mtkd_cache.evaluation.statistics import Interval, intervals
from mtkd_cache.evaluation.tables import PICTURES, read_pictures, totals_of
from mtkd_cache.models.records import (
    Evaluation,
    RunRecord,
    TeacherRecord,
    Training,
    read_evaluation,
    read_json,
    read_training_records,
)
from mtkd_cache.study.published import Key, published
from mtkd_cache.study.report.formats import TIMES

TIMINGS = "bench-inference.json"
BENCH = "mtkd-cache bench inference --json"
PAPER_SIZE = (1280, 720)
LAYOUTS = ("separate", "shared")


@dataclass(frozen=True)
class Result:
    """One evaluated folder.

    training: the record of the student, or of the first teacher. params_m: millions, None where networks are missing.
    teachers: SHA-256 of their weights by anatomy, for a student of those that it was distilled from; empty
    where it is not recorded.
    """

    path: Path
    layout: str
    kd: bool
    training: Training
    evaluation: Evaluation
    params_m: float | None
    teachers: dict[str, str | None]

    @property
    def key(self) -> Key:
        return self.training.arch, self.layout, self.kd

    @property
    def seed(self) -> int:
        return self.training.seed

    @property
    def mean_dice(self) -> float | None:
        """In 0..1; None where no test image counted."""
        return None if all(dice is None for dice in self.evaluation.dice.values()) else self.evaluation.mean_dice

    @property
    def mean_dice_at_point(self) -> float | None:
        """At the heads' operating points; None also where they have none that was chosen on this store."""
        dice = self.evaluation.dice_at_operating_point or {}
        return None if all(value is None for value in dice.values()) else self.evaluation.mean_dice_at_operating_point

    @property
    def store_fingerprint(self) -> str | None:
        return self.evaluation.store_fingerprint or self.training.store_fingerprint


@dataclass(frozen=True)
class Row:
    """The results of one (arch, layout, kd), one a seed, in the order of the seeds."""

    arch: str
    layout: str
    kd: bool
    results: tuple[Result, ...]

    @property
    def key(self) -> Key:
        return self.arch, self.layout, self.kd

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(result.seed for result in self.results)

    @property
    def params_m(self) -> float | None:
        return self.results[0].params_m

    @property
    def mean_dice(self) -> float | None:
        return mean(result.mean_dice for result in self.results)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the mean Dice over the seeds; None for fewer than two."""
        return spread(result.mean_dice for result in self.results)

    @cached_property
    def pictures(self) -> list[Picture]:
        """The figures by picture of all seeds; empty where a result is of an earlier version, which did not write them."""
        by_seed = [read_pictures(result.path / PICTURES.format("test")) for result in self.results]
        return [picture for pictures in by_seed for picture in pictures or ()] if all(by_seed) else []

    def intervals(self, figure: str = "dice") -> tuple[Interval | None, dict[str, Interval | None]]:
        """95 % intervals over patients of the mean of a figure and of each anatomy's, all seeds together; None if unknown."""
        return intervals(totals_of(self.pictures, figure))

    def dice(self, anatomy: str) -> float | None:
        """The mean over the seeds for which the anatomy's Dice exists."""
        return mean(result.evaluation.dice.get(anatomy) for result in self.results)

    @property
    def means_at_point(self) -> list[float]:
        """The mean Dice of each seed at the operating points; empty where one of them has none."""
        means = [result.mean_dice_at_point for result in self.results]
        return [value for value in means if value is not None] if None not in means else []

    def dice_at_point(self, anatomy: str) -> float | None:
        """As `dice`, at the operating points; None where a seed has none."""
        if not self.means_at_point:
            return None
        return mean((result.evaluation.dice_at_operating_point or {}).get(anatomy) for result in self.results)


class Timing(NamedTuple):
    """Time of one image."""

    ms: float
    fps: float


Timings = dict[tuple[str, str], dict[str, Timing]]  # by (arch, layout) and device, with the images' size if it is not PAPER_SIZE


def mean(values: Iterable[float | None]) -> float | None:
    """Arithmetic mean of the values that are not None, or None."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def spread(values: Iterable[float | None]) -> float | None:
    """Sample standard deviation (n - 1) of the values that are not None; None for fewer than two."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def read_result(folder: Path) -> Result:
    """The result in a run folder or a teachers folder. Raises MtkdError where it is neither, or is not evaluated."""
    if not folder.is_dir():
        raise MtkdError(f"{folder}: there is no such folder. Name run folders and teachers folders.")
    trainings = read_training_records(folder)
    if not trainings:
        raise MtkdError(f"{folder} holds neither run.json nor ANATOMY/teacher.json. Name run folders and teachers folders.")
    archs = sorted({training.arch for training in trainings})
    if len(archs) > 1:
        raise MtkdError(f"{folder} holds teachers of several architectures ({', '.join(archs)}). A row of the table has one.")
    first, evaluation = trainings[0], read_evaluation(folder, "test")
    if evaluation is None or not evaluation.is_of(trainings):
        reason = "is not evaluated" if evaluation is None else "was trained again since it was evaluated"
        option = "--run" if isinstance(first, RunRecord) else "--teachers"
        raise MtkdError(f"{folder} {reason}. Run mtkd-cache evaluate {option} {folder} --split test first.")
    if isinstance(first, RunRecord):
        weights = {anatomy: teacher.get("weights_sha256") for anatomy, teacher in (first.teachers or {}).items()}
        return Result(folder, first.layout, first.kd, first, evaluation, first.params_m, weights)
    sizes = [training.params_m for training in trainings if training.params_m is not None]
    params_m = sum(sizes) if len(sizes) == len(trainings) == len(first.anatomies) else None
    weights = {teacher.anatomy: teacher.weights_sha256 for teacher in trainings if isinstance(teacher, TeacherRecord)}
    return Result(folder, "separate", False, first, evaluation, params_m, weights)


def collect(folders: Sequence[Path]) -> list[Row]:
    """The rows of all folders in the paper's order: separate, shared, shared with distillation; others after its own.

    Raises MtkdError for no folder, one seed twice in a row, or folders that were made from different sample stores.
    """
    if not folders:
        raise MtkdError("No run is named. Name run folders and teachers folders: mtkd-cache report runs/* data/teachers.")
    results = [read_result(Path(folder)) for folder in folders]
    stores = {result.store_fingerprint: result.path for result in results if result.store_fingerprint}
    if len(stores) > 1:
        first, second = list(stores.values())[:2]
        raise MtkdError(f"{first} and {second} were evaluated on different sample stores. Report each by itself.")
    results.sort(key=lambda result: (*result.key, result.seed, str(result.path)))
    for left, right in pairwise(results):
        if (left.key, left.seed) == (right.key, right.seed):
            same = f"{left.training.arch} {left.layout}, kd {left.kd}, seed {left.seed}"
            raise MtkdError(f"{left.path} and {right.path} are both {same}. Name only one of them.")
    groups = groupby(results, key=lambda result: result.key)
    rows = [Row(arch, layout, kd, tuple(group)) for (arch, layout, kd), group in groups]
    ranks = {key: rank for rank, key in enumerate(published())}
    rows.sort(key=lambda row: (ranks.get(row.key, len(ranks)), row.params_m or 0.0, row.arch))
    return sorted(rows, key=lambda row: (LAYOUTS.index(row.layout), row.kd))


def results_of(rows: Sequence[Row]) -> list[Result]:
    """The results of all rows, in their order."""
    return [result for row in rows for result in row.results]


def teachers_of(rows: Sequence[Row], student: Result) -> Result | None:
    """The teachers a student was distilled from, if they are among the rows, or None.

    Where its run does not record them, the one folder of teachers there is.
    """
    folders = [result for result in results_of(rows) if result.layout == "separate"]
    if student.teachers:
        return next((result for result in folders if result.teachers == student.teachers), None)
    return folders[0] if len(folders) == 1 else None


def find_timings(folders: Sequence[Path]) -> Timings:
    """The timings in `bench-inference.json` beside the folders; empty where there is none."""
    for parent in dict.fromkeys(Path(folder).absolute().parent for folder in folders):
        if bench := read_json(parent / TIMINGS):
            return read_timings(bench, parent / TIMINGS)
    return {}


def read_timings(bench: dict[str, Any], where: Path | str = "timings") -> Timings:
    """Timings by (arch, layout) and device, from what `mtkd-cache bench inference --json` prints; MtkdError for other JSON."""
    try:
        machine = bench["machine"]
        kind, _, device = machine["device"].partition(": ")
        device += f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if kind == "cpu" else ""
        timings: Timings = {}
        for row in bench["rows"]:
            width, height = row["size"]
            column = device if (width, height) == PAPER_SIZE else f"{device}, {width}{TIMES}{height}"
            timings.setdefault((row["arch"], row["layout"]), {})[column] = Timing(float(row["ms"]), float(row["fps"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MtkdError(
            f"{where} is not the output of {BENCH} ({error!r}). Delete it, or make it with {BENCH} > {TIMINGS}."
        ) from error
    return timings
