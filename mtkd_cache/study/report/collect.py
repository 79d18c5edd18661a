"""Run folders and teachers folders -> rows: all seeds of one architecture, layout, training arm and label together.

    runs/NAME/run.json              a student: layout shared
    teachers/ANATOMY/teacher.json   the teachers: layout separate, one network an anatomy

Both need the `evaluation-test.json` that `mtkd-cache evaluate` writes.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.pictures import Picture
from mtkd_cache.evaluation.statistics import Interval, intervals
from mtkd_cache.evaluation.tables import PICTURES, read_pictures, totals_of
from mtkd_cache.models.records import Evaluation, RunRecord, TeacherRecord, Training, read_evaluation, read_training_records
from mtkd_cache.study.published import Key, published
from mtkd_cache.study.report.formats import full_name

LAYOUTS = ("separate", "shared", "shared-refine", "joint")
RowKey = tuple[str, str, bool, str]  # architecture, layout, distilled, label


@dataclass(frozen=True)
class Result:
    """One evaluated folder.

    training: the record of the student, or of the first teacher. params_m: millions, None where networks are missing.
    teachers: SHA-256 of their weights by anatomy, for a student of those that it was distilled from; empty
    where it is not recorded. label: the name that the user gave it.
    """

    path: Path
    layout: str
    kd: bool
    training: Training
    evaluation: Evaluation
    params_m: float | None
    teachers: dict[str, str | None]
    label: str = ""

    @property
    def key(self) -> RowKey:
        return self.training.arch, self.layout, self.kd, self.label

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
    """The results of one (arch, layout, kd, label), one a seed, in the order of the seeds."""

    arch: str
    layout: str
    kd: bool
    results: tuple[Result, ...]
    label: str = ""

    @property
    def key(self) -> RowKey:
        return self.arch, self.layout, self.kd, self.label

    @property
    def published_key(self) -> Key:
        """Of the paper's row that it reproduces, if there is one."""
        return self.arch, self.layout, self.kd

    @property
    def name(self) -> str:
        """Architecture, encoder and label."""
        return ", ".join(filter(None, (full_name(self.arch), self.label)))

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
        return pictures_of(self.results)

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


def pictures_of(results: Sequence[Result]) -> list[Picture]:
    """The figures by picture of all results; empty where one has none."""
    read = [read_pictures(result.path / PICTURES.format("test"), result.evaluation.images) for result in results]
    return [picture for pictures in read for picture in pictures or ()] if all(read) else []


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


def collect(folders: Sequence[Path], labels: Mapping[Path, str] = MappingProxyType({})) -> list[Row]:
    """The rows of all folders: separate networks, then those of several heads, without distillation and with it.

    labels: names of some of the folders. Folders of one name are one row, where architecture, layout and arm agree as well; the
    rows of an architecture stand in the order in which the names are given, those without a name first.

    Raises MtkdError for no folder, one seed twice in a row, or folders that were made from different sample stores.
    """
    if not folders:
        raise MtkdError("No run is named. Name run folders and teachers folders: mtkd-cache report runs/* data/teachers.")
    named = {Path(folder): label for folder, label in labels.items()}
    results = [replace(read_result(folder), label=named.get(folder, "")) for folder in dict.fromkeys(map(Path, folders))]
    stores = {result.store_fingerprint: result.path for result in results if result.store_fingerprint}
    if len(stores) > 1:
        first, second = list(stores.values())[:2]
        raise MtkdError(f"{first} and {second} were evaluated on different sample stores. Report each by itself.")
    order = {label: number for number, label in enumerate(dict.fromkeys(("", *named.values())))}
    results.sort(key=lambda result: (*result.key[:3], order[result.label], result.seed, str(result.path)))
    _check_seeds(results)
    groups = groupby(results, key=lambda result: result.key)
    rows = [Row(arch, layout, kd, tuple(group), label) for (arch, layout, kd, label), group in groups]
    ranks = {key: rank for rank, key in enumerate(published())}
    rows.sort(key=lambda row: (ranks.get(row.published_key, len(ranks)), row.params_m or 0.0, row.arch))
    return sorted(rows, key=lambda row: (LAYOUTS.index(row.layout), row.kd))


def _check_seeds(results: Sequence[Result]) -> None:
    """Raises MtkdError where two neighbors have the same key and seed."""
    for left, right in pairwise(results):
        if (left.key, left.seed) == (right.key, right.seed):
            same = f"{left.training.arch} {left.layout}, kd {left.kd}, seed {left.seed}"
            raise MtkdError(
                f"{left.path} and {right.path} are both {same}. Name only one of them, or give each a row of its own: "
                f"--label A={left.path} --label B={right.path}."
            )


class Arm(Protocol):
    """What tells which rows are compared: of a `Row`, or of its point in Figure 1."""

    @property
    def arch(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def kd(self) -> bool: ...
    @property
    def label(self) -> str: ...


AnArm = TypeVar("AnArm", bound=Arm)


def compared_with(one: AnArm, all_of_them: Sequence[AnArm]) -> AnArm | None:
    """What a row is compared with; None for separate networks, and for the first of its kind.

    A distilled row is compared with that of masks alone of the same architecture and layout: the one of its label, else the one
    without a label, else the first. Any other row is compared with the first one of the same architecture, layout and arm.
    """
    if one.layout == "separate":
        return None
    alike = [other for other in all_of_them if (other.arch, other.layout) == (one.arch, one.layout)]
    baselines = [other for other in alike if one.kd and not other.kd]
    named = [other for label in (one.label, "") for other in baselines if other.label == label]
    first = next(iter([*named, *baselines, *(other for other in alike if other.kd == one.kd)]), None)
    return None if first is one else first


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
