"""Figures of the study's students, and what they say of an arm against another: pure functions of what the folders hold."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.records import (
    EVALUATION,
    Evaluation,
    OperatingPoint,
    read_as,
    read_evaluation,
    read_json,
    read_operating_points,
    read_run,
)
from mtkd_cache.study.gain.arms import BASELINE, PAPER, SPLITS

TEACHERS = "teachers-{}.json"  # their evaluation on a split, in the study's folder
SHIFTS = "exclusion-shift.json"  # by anatomy, see `mtkd_cache.training.balance.exclusion_shift`; in the study's folder
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees of freedom
Group = tuple[str, str, str, str]
One = TypeVar("One")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One student on a split. study: the folder of its study. Dice and average precision in 0..1; minutes: of its training.

    dice: at probability 0.5; dice_at_operating_point: at each head's threshold; average_precision: of the pixels.
    thresholds: after each epoch, the mean over the heads of the logit that was best on validation. threshold: of the epoch that
    was kept; calibrated_threshold: what it would be of calibrated heads; both over the heads that find something, None where
    they are not known. environment: of its training.
    """

    study: str
    split: str
    arch: str
    length: str
    arm: str
    seed: int
    epochs: int
    minutes: float
    dice: float
    dice_at_operating_point: float
    average_precision: float
    thresholds: tuple[float, ...]
    threshold: float | None = None
    calibrated_threshold: float | None = None
    environment: dict[str, Any]

    @property
    def group(self) -> Group:
        """What is equal among the students that are compared: study, split, arch, length."""
        return self.study, self.split, self.arch, self.length


def read_results(study: Path) -> list[Result]:
    """The evaluated students of a study's folder. Raises MtkdError where a record is damaged or has no operating points."""
    found = []
    shifts = read_json(study / SHIFTS) or {}
    for split in SPLITS.values():
        for path in sorted(study.glob(f"*/*/*/seed*/{EVALUATION.format(split)}")):
            run, evaluation = read_run(path.parent), read_evaluation(path.parent, split)
            if run is None or evaluation is None or not evaluation.is_of([run]):
                continue
            at_operating_point, precision = evaluation.mean_dice_at_operating_point, evaluation.mean_average_precision
            if at_operating_point is None or precision is None:
                raise MtkdError(f"{path} holds no figures at operating points. Delete it and run the command again.")
            points = read_operating_points(path.parent, run.weights_sha256 or "")
            threshold, calibrated = mean_thresholds(points.points if points else {}, shifts)
            arch, length, arm, _ = path.parent.relative_to(study).parts
            found.append(
                Result(
                    study=study.name,
                    split=split,
                    arch=arch,
                    length=length,
                    arm=arm,
                    seed=run.seed,
                    epochs=len(run.history),
                    minutes=sum(row["seconds"] for row in run.history) / 60,
                    dice=evaluation.mean_dice,
                    dice_at_operating_point=at_operating_point,
                    average_precision=precision,
                    thresholds=tuple(map(_mean_threshold, run.history)),
                    threshold=threshold,
                    calibrated_threshold=calibrated,
                    environment=run.environment,
                )
            )
    return found


def read_all(studies: Iterable[Path], read: Callable[[Path], list[One]], kind: str) -> list[One]:
    """The results of several studies of a kind. Raises MtkdError for a folder without any."""
    found = {study: read(study) for study in studies}
    for study, results in found.items():
        if not results:
            raise MtkdError(f"{study} holds no results of a {kind} study. Name its folder.")
    return [result for results in found.values() for result in results]


def read_teachers(study: Path) -> dict[str, tuple[float, float | None]]:
    """The teachers' Dice by split, at probability 0.5 and at their operating points."""
    found = {split: read_as(Evaluation, study / TEACHERS.format(split)) for split in SPLITS.values()}
    return {split: (each.mean_dice, each.mean_dice_at_operating_point) for split, each in found.items() if each}


def mean_thresholds(points: Mapping[str, OperatingPoint], shifts: Mapping[str, float]) -> tuple[float | None, float | None]:
    """The mean of heads' thresholds, and of what they would be of calibrated heads; over those whose Dice is not 0.

    Dice is highest where a calibrated head claims the pixels whose probability is above half of that Dice (Lipton et al. 2014,
    Optimal Thresholding of Classifiers to Maximize F1 Measure). In the head's logits that point lies `exclusion_shift` lower,
    shifts: by anatomy, see there; without them the second is None.
    """
    finding = {anatomy: (point.threshold, point.dice / 2) for anatomy, point in points.items() if point.dice}
    if not finding:
        return None, None
    threshold = statistics.mean(each for each, _ in finding.values())
    if not finding.keys() <= shifts.keys():
        return threshold, None
    return threshold, statistics.mean(math.log(half / (1 - half)) + shifts[anatomy] for anatomy, (_, half) in finding.items())


def _mean_threshold(row: dict[str, Any]) -> float:
    return float(statistics.mean(value for name, value in row.items() if name.startswith("threshold/")))


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What an arm gains over another one, in percentage points of Dice, paired by the seeds that both have.

    interval: 95 %, of Student's t on the differences; None for fewer than two seeds.
    """

    over: str
    seeds: tuple[int, ...]
    mean: float
    interval: tuple[float, float] | None


def gain(arm: Iterable[Result], baseline: Iterable[Result], figure: str = "dice_at_operating_point") -> Gain | None:
    """The gain of an arm's students over those of another arm of the same group; None where no seed is in both."""
    baseline = list(baseline)
    ours, theirs = ({result.seed: getattr(result, figure) for result in results} for results in (arm, baseline))
    return paired_gain(ours, theirs, baseline[0].arm) if baseline else None


def paired_gain(ours: Mapping[int, float], theirs: Mapping[int, float], over: str) -> Gain | None:
    """The gain of figures in 0..1 by seed over those of the arm `over`; None where no seed is in both."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        return None
    differences = [100 * (ours[seed] - theirs[seed]) for seed in seeds]
    return Gain(over=over, seeds=seeds, mean=statistics.mean(differences), interval=t_interval(differences))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of normally distributed values, None for fewer than two."""
    if len(values) < 2:
        return None
    half = t_975(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.mean(values)
    return mean - half, mean + half


def t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; above 9 degrees of freedom by Abramowitz and Stegun 1964, 26.7.5, to 1e-3."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z, n = statistics.NormalDist().inv_cdf(0.975), freedom
    first, second, third = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def gains(arm: str, arms: Mapping[str, Sequence[Result]]) -> dict[str, Gain]:
    """What an arm of a group gains over masks alone and over the paper's KL, where both have a seed. arms: of the group."""
    others = [] if arm == BASELINE else [other for other in (BASELINE, PAPER) if other in arms and other != arm]
    return {other: found for other in others if (found := gain(arms[arm], arms[other]))}


def best_arm(results: Iterable[Result]) -> str | None:
    """The distilled arm with the highest Dice at operating points on validation; None where there is none.

    The mean over seeds, lengths, architectures and studies, over those of them that all the arms have been evaluated for.
    """
    by_arm: dict[str, dict[tuple[Any, ...], float]] = {}
    for result in results:
        if result.split == "validation" and not result.arm.startswith(BASELINE):
            by_arm.setdefault(result.arm, {})[*result.group, result.seed] = result.dice_at_operating_point
    return best_of(by_arm)


def best_of(by_arm: Mapping[str, Mapping[tuple[Any, ...], float]]) -> str | None:
    """The arm with the highest mean of its values, over the places that all arms have; None where there is none."""
    common = set.intersection(*map(set, by_arm.values())) if by_arm else set()
    if not common:
        return None
    return max(by_arm, key=lambda arm: statistics.mean(by_arm[arm][place] for place in common))
