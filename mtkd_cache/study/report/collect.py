"""Run folders and teachers folders -> rows: all seeds of one architecture, layout and training arm together.

    runs/NAME/run.json          a student: layout shared
    teachers/ANATOMY/teacher.json   the teachers: layout separate, one network an anatomy

Both need the `evaluation-test.json` that `mtkd-cache evaluate` writes.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.records import STUDENT, is_current, read_record, read_trainings
from mtkd_cache.study.published import table1
from mtkd_cache.study.report.formats import TIMES

EVALUATION = "evaluation-test.json"
TIMINGS = "bench-inference.json"
BENCH = "mtkd-cache bench inference --json"
PAPER_SIZE = (1280, 720)
LAYOUTS = ("separate", "shared")


@dataclass(frozen=True)
class Result:
    """One evaluated folder.

    Dice are fractions 0..1, None where no test image counted; params_m: millions. teachers: SHA-256 of the weights by anatomy, of
    the teachers' folder itself or of those that a student was distilled from; empty where it is not recorded.
    """

    path: Path
    arch: str
    layout: str
    kd: bool
    seed: int
    anatomies: tuple[str, ...]
    dice: dict[str, float | None]
    mean_dice: float | None
    params_m: float | None
    images: int
    dataset: str | None
    size: tuple[int, int]
    store_fingerprint: str | None
    cache_fingerprint: str | None
    recipe: dict
    teachers: dict[str, str]


@dataclass(frozen=True)
class Row:
    """The results of one (arch, layout, kd), one a seed, in the order of the seeds."""

    arch: str
    layout: str
    kd: bool
    results: tuple[Result, ...]

    @property
    def key(self) -> tuple[str, str, bool]:
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

    def dice(self, anatomy: str) -> float | None:
        """The mean over the seeds for which the anatomy's Dice exists."""
        return mean(result.dice.get(anatomy) for result in self.results)


@dataclass(frozen=True)
class Timing:
    """Time for one image of size = (width, height) on a named device."""

    ms: float
    fps: float
    device: str
    size: tuple[int, int] = PAPER_SIZE

    @property
    def where(self) -> str:
        """The device, with the size where it is not the paper's 1280x720."""
        return self.device if self.size == PAPER_SIZE else f"{self.device}, {self.size[0]}{TIMES}{self.size[1]}"


Timings = dict[tuple[str, str], dict[str, Timing]]


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
    trainings = read_trainings(folder)
    if not trainings:
        raise MtkdError(f"{folder} holds neither run.json nor ANATOMY/teacher.json. Name run folders and teachers folders.")
    if (folder / STUDENT).exists():
        return _result(folder, trainings[0], _evaluation(folder, trainings, "--run"), trainings[0].get("params_m"))
    return _teachers(folder, trainings)


def _teachers(folder: Path, teachers: list[dict]) -> Result:
    archs = sorted({teacher["arch"] for teacher in teachers})
    if len(archs) > 1:
        raise MtkdError(f"{folder} holds teachers of several architectures ({', '.join(archs)}). A row of the table has one.")
    evaluation = _evaluation(folder, teachers, "--teachers")
    sizes = [teacher.get("params_m") for teacher in teachers]
    whole = None not in sizes and len(teachers) == len(teachers[0]["anatomies"])
    described = {**teachers[0], "layout": "separate", "kd": False}
    described["teachers"] = {teacher["anatomy"]: teacher for teacher in teachers}
    return _result(folder, described, evaluation, sum(sizes) if whole else None)


def _result(folder: Path, described: dict, evaluation: dict, params_m: float | None) -> Result:
    try:
        return Result(
            path=folder,
            arch=described["arch"],
            layout=described["layout"],
            kd=bool(described["kd"]),
            seed=int(described["seed"]),
            anatomies=tuple(described["anatomies"]),
            dice=dict(evaluation["dice"]),
            mean_dice=evaluation["mean_dice"] if any(value is not None for value in evaluation["dice"].values()) else None,
            params_m=params_m,
            images=evaluation["images"],
            dataset=evaluation.get("dataset"),
            size=tuple(described["size"]),
            store_fingerprint=evaluation.get("store_fingerprint") or described.get("store_fingerprint"),
            cache_fingerprint=described.get("cache_fingerprint"),
            recipe=described.get("recipe") or {},
            teachers={name: teacher.get("weights_sha256") for name, teacher in (described.get("teachers") or {}).items()},
        )
    except KeyError as error:
        raise MtkdError(
            f"{folder} lacks {error} in what its training or evaluation wrote. Train and evaluate it again."
        ) from error


def _evaluation(folder: Path, trainings: list[dict], option: str) -> dict:
    evaluation = read_record(folder / EVALUATION)
    if evaluation is None or not is_current(evaluation, trainings):
        why = "is missing" if evaluation is None else "judged other weights than were trained last"
        raise MtkdError(
            f"{folder} is not evaluated: {EVALUATION} {why}. Run mtkd-cache evaluate {option} {folder} --split test first."
        )
    return evaluation


def collect(folders: Sequence[Path]) -> list[Row]:
    """The rows of all folders in the paper's order: separate, shared, shared with distillation; others after its own.

    Raises MtkdError for no folder, one seed twice in a row, or folders that were made from different sample stores.
    """
    if not folders:
        raise MtkdError("No run is named. Name run folders and teachers folders: mtkd-cache report runs/* data/teachers.")
    results = [read_result(Path(folder)) for folder in folders]
    check_same_store(results)
    rows = []
    for (arch, layout, kd), members in groupby(sorted(results, key=_key), key=lambda result: _key(result)[:3]):
        ordered = tuple(members)
        for one, other in pairwise(ordered):
            if one.seed == other.seed:
                raise MtkdError(
                    f"{one.path} and {other.path} are both {arch} {layout}, kd {kd}, seed {one.seed}. Name one of them."
                )
        rows.append(Row(arch, layout, kd, ordered))
    return sorted(rows, key=order)


def _key(result: Result) -> tuple[str, str, bool, int, str]:
    return result.arch, result.layout, result.kd, result.seed, str(result.path)


def order(row: Row) -> tuple:
    """The place of a row in the tables: by layout and arm, the paper's rows in its order, others after them."""
    known = [(said["arch"], said["layout"], said["kd"]) for said in table1()]
    place = known.index(row.key) if row.key in known else len(known)
    return LAYOUTS.index(row.layout), row.kd, place, row.params_m or 0.0, row.arch


def teachers_of(rows: Sequence[Row], student: Result) -> Result | None:
    """The teachers a student was distilled from, if they are among the rows, or None.

    Where its run does not record them, the one folder of teachers there is.
    """
    folders = [result for row in rows if row.layout == "separate" for result in row.results]
    if student.teachers:
        return next((result for result in folders if result.teachers == student.teachers), None)
    return folders[0] if len(folders) == 1 else None


def check_same_store(results: Sequence[Result]) -> None:
    """Raises MtkdError where two results were evaluated on different sample stores, hence on other images."""
    known = [result for result in results if result.store_fingerprint]
    for result in known[1:]:
        if result.store_fingerprint != known[0].store_fingerprint:
            raise MtkdError(
                f"{known[0].path} and {result.path} were evaluated on different sample stores. Report each by itself."
            )


def find_timings(folders: Sequence[Path]) -> Timings:
    """The timings in `bench-inference.json` beside the folders; empty where there is none."""
    for place in dict.fromkeys(Path(folder).absolute().parent for folder in folders):
        if found := read_record(place / TIMINGS):
            return read_timings(found, place / TIMINGS)
    return {}


def read_timings(found: dict, where: Path | str = "timings") -> Timings:
    """Timings by (arch, layout) and device, from what `mtkd-cache bench inference --json` prints; MtkdError for other JSON."""
    try:
        machine = found["machine"]
        kind, _, device = machine["device"].partition(": ")
        device += f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if kind == "cpu" else ""
        timings: Timings = {}
        for row in found["rows"]:
            timing = Timing(float(row["ms"]), float(row["fps"]), device, tuple(row["size"]))
            timings.setdefault((row["arch"], row["layout"]), {})[timing.where] = timing
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MtkdError(
            f"{where} is not the output of {BENCH} ({error!r}). Delete it, or make it with {BENCH} > {TIMINGS}."
        ) from error
    return timings
