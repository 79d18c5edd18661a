"""Figures of the study's networks: pure functions of what the folders hold."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtkd_cache.models.records import Evaluation, MultilabelEvaluation, read_as, read_evaluation, read_json, read_training_records
from mtkd_cache.study.gain.arms import SPLITS
from mtkd_cache.study.gain.results import Gain, best_of, paired_gain
from mtkd_cache.study.labels.arms import BASELINE
from mtkd_cache.study.labels.false_alarms import FalseAlarms, read_false_alarms

LABELS = "labels.json"  # what a study writes, in its folder
FIGURES = (  # what gains are told of, and the baseline's figure where that is another one
    ("own", None),
    ("multilabel", None),
    ("multilabel_with_presence", None),
    ("multilabel_with_presence", "multilabel"),
    ("estimated", None),
)
ByAnatomy = dict[str, float]
Group = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One student, or one kind of teachers, on a split; all figures at operating points, in 0..1.

    study: the folder of its study. network: of a student, "teachers" of teachers, whose arm is their kind and seed 0.
    own: Dice on the own subsets. multilabel: Dice on the multilabel images, empty where the split has none. estimated: see
    `estimated_dice`. alarms, missed: see `mtkd_cache.study.labels.false_alarms`. FIGURE_with_presence: with presence thresholds.
    claimed_twice, known_precision: see `mtkd_cache.evaluation.multilabel`, None without its images; the latter is a mean.
    minutes: of the training.
    """

    study: str
    split: str
    network: str
    arm: str
    seed: int
    epochs: int
    minutes: float
    own: ByAnatomy
    multilabel: ByAnatomy
    multilabel_with_presence: ByAnatomy
    estimated: ByAnatomy
    alarms: ByAnatomy
    alarms_with_presence: ByAnatomy
    missed_with_presence: ByAnatomy
    claimed_twice: float | None
    known_precision: float | None

    @property
    def group(self) -> Group:
        """What is equal among the networks that are compared."""
        return self.study, self.split, self.network

    @property
    def judged(self) -> ByAnatomy:
        """What the arm is chosen by: the Dice on the multilabel images, and where the split has none its estimate."""
        return self.multilabel_with_presence or self.multilabel or self.estimated


def estimated_dice(own: Mapping[str, float | None], alarms: FalseAlarms) -> ByAnatomy:
    """The Dice that an anatomy's head would have on all pictures of a split, if its own subset stood for those that show it.

        own[a] * present[a] / (present[a] + absent[a] * alarms[a])

    as an empty picture counts 0 where the head claims a pixel, and not at all where it claims none. An anatomy without Dice on
    its own subset is left out.
    """
    return {
        anatomy: dice
        * alarms.present[anatomy]
        / (alarms.present[anatomy] + alarms.absent[anatomy] * (alarms.alarms[anatomy] or 0))
        for anatomy, dice in own.items()
        if dice is not None and alarms.present[anatomy]
    }


def read_results(study: Path, own_teachers: Path | None = None) -> list[Result]:
    """The evaluated students of a study's folder, and its teachers.

    own_teachers: where those of kind "own" are; by default their figures are those in the study's LABELS.
    """
    found = [] if own_teachers else _written(study)
    for split in SPLITS.values():
        for path in sorted(study.glob(f"*/*/seed*/{FalseAlarms.FILE.format(split)}")):
            network, arm, seed = path.parent.relative_to(study).parts
            found.append(read_result(path.parent, split, (study.name, network, arm, int(seed.removeprefix("seed")))))
        kinds = {folder.name.removeprefix("teachers-"): folder for folder in sorted(study.glob("teachers-*"))}
        for kind, folder in {**({"own": own_teachers} if own_teachers else {}), **kinds}.items():
            found.append(read_result(folder, split, (study.name, "teachers", kind, 0)))
    return [result for result in found if result]


def _written(study: Path) -> list[Result | None]:
    """The teachers of kind "own" in the file that a study wrote."""
    given = (read_json(study / LABELS) or {"results": []})["results"]
    return [Result(**each) for each in given if (each["network"], each["arm"]) == ("teachers", "own")]


def read_result(folder: Path, split: str, place: tuple[str, str, str, int]) -> Result | None:
    """What a folder tells of a split, None where it is not evaluated in full. place: study, network, arm, seed."""
    evaluation, alarms, trainings = (
        read_evaluation(folder, split),
        read_false_alarms(folder, split),
        read_training_records(folder),
    )
    if evaluation is None or alarms is None or not evaluation.is_of(trainings) or not trainings:
        return None
    several = read_as(MultilabelEvaluation, folder / MultilabelEvaluation.FILE.format(split))
    several = several if several and several.is_of(trainings) else None
    study, network, arm, seed = place
    dice = at_points(evaluation)
    return Result(
        study=study,
        split=split,
        network=network,
        arm=arm,
        seed=seed,
        epochs=len(trainings[0].history),
        minutes=sum(row["seconds"] for training in trainings for row in training.history) / 60,
        own=known(dice),
        multilabel=known(at_points(several)) if several else {},
        estimated=estimated_dice(dice, alarms),
        multilabel_with_presence=known(several.dice_with_presence or {}) if several else {},
        alarms=known(alarms.alarms),
        alarms_with_presence=known(alarms.alarms_with_presence),
        missed_with_presence=known(alarms.missed_with_presence),
        claimed_twice=several.claimed_twice_at_operating_point if several else None,
        known_precision=mean_of(known(several.known_precision_at_operating_point or {})) if several else None,
    )


def at_points(evaluation: Evaluation) -> Mapping[str, float | None]:
    """Dice by anatomy at the operating points, at probability 0.5 where there are none."""
    return evaluation.dice if evaluation.dice_at_operating_point is None else evaluation.dice_at_operating_point


def known(values: Mapping[str, float | None]) -> ByAnatomy:
    return {anatomy: value for anatomy, value in values.items() if value is not None}


def mean_of(values: Mapping[str, float]) -> float | None:
    """The unweighted mean over the anatomies, None for none."""
    return statistics.mean(values.values()) if values else None


def groups(results: Iterable[Result]) -> dict[Group, dict[str, list[Result]]]:
    """The results by group, and in each by arm."""
    found: dict[Group, dict[str, list[Result]]] = {}
    for result in results:
        found.setdefault(result.group, {}).setdefault(result.arm, []).append(result)
    return found


def gain_over(arm: Sequence[Result], baseline: Sequence[Result], figure: str, against: str | None = None) -> Gain | None:
    """What an arm gains over another in a figure of `Result`, the mean over the anatomies, paired by seed.

    against: another figure of the other arm, by default the same.
    """
    pairs = (arm, figure), (baseline, against or figure)
    means = ({result.seed: mean_of(getattr(result, name)) for result in results} for results, name in pairs)
    ours, theirs = ({seed: mean for seed, mean in each.items() if mean is not None} for each in means)
    return paired_gain(ours, theirs, baseline[0].arm) if baseline else None


def worst_anatomy(arm: Sequence[Result], baseline: Sequence[Result]) -> tuple[str, float] | None:
    """The anatomy that an arm gains least in, by the figure that it is judged by, and the gain in points, paired by seed."""
    changes: dict[str, list[float]] = {}
    theirs = {result.seed: result.judged for result in baseline}
    for result in arm:
        for anatomy, value in result.judged.items():
            if anatomy in theirs.get(result.seed, {}):
                changes.setdefault(anatomy, []).append(100 * (value - theirs[result.seed][anatomy]))
    means = {anatomy: statistics.mean(values) for anatomy, values in changes.items()}
    return min(means.items(), key=lambda item: item[1]) if means else None


def best_arm(results: Iterable[Result]) -> str | None:
    """The distilled arm with labels that is best on validation by the figure it is judged by, over what all arms have."""
    by_arm: dict[str, dict[tuple[str, ...], float]] = {}
    for result in results:
        chosen = result.split == "validation" and result.network != "teachers" and not result.arm.startswith("masks")
        if chosen and result.arm != BASELINE and (mean := mean_of(result.judged)) is not None:
            by_arm.setdefault(result.arm, {})[*result.group, str(result.seed)] = mean
    return best_of(by_arm)
