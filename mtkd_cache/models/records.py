"""The JSON that trainings and evaluations leave beside the weights: file names and contents.

RUN/run.json                     a student
TEACHERS/ANATOMY/teacher.json    a teacher
operating-points.json            in both, the threshold of each head
evaluation-SPLIT.json            Dice, of a run or a teachers folder; multilabel-SPLIT.json: of images with several annotations
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.seen import Overlap, Seen
from mtkd_cache.storage.folder import write_durably
from mtkd_cache.storage.record import JsonRecord, differences

RUN, TEACHER = "run.json", "teacher.json"
EVALUATION = "evaluation-{}.json"  # of a split
NEARLY_ALL = 0.9  # of the pixels
Record = TypeVar("Record", bound=JsonRecord)


@dataclass(frozen=True, kw_only=True)
class Training(JsonRecord):
    """What a finished training records. Earlier versions did not write the fields with a default.

    anatomies: of the whole store; size: (width, height) of its images; recipe: the sections that the training depends on.
    history: a dict for each epoch; val_dice: the validation Dice in [0, 1] of best_epoch (from 0), whose weights are kept.
    schedule_epochs: those over which the learning rate fell, where the training was continued with more at the final rate.
    initial_weights: where another training's or converted ones, the file (source) and its sha256. licenses: of the weights of
    others that it, its teachers and the network it started from build on, and of logits, each with its source. seen: which
    samples it, its teachers and the network it started from have seen; overlap: which of the store's validation and test samples
    the latter two have seen.
    labels_fingerprint: of the labels that it learned from, see `SampleStore`; None where it used none.
    """

    format: int | None = None
    kind: str
    arch: str
    anatomies: tuple[str, ...]
    size: tuple[int, int]
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)
    store_fingerprint: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    schedule_epochs: int | None = None
    best_epoch: int
    val_dice: float
    seconds_per_epoch: float | None = None
    warm_up_seconds: float | None = None
    precision: str | None = None
    processes: int | None = None
    params_m: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str | None = None
    initial_weights: dict[str, str] | None = None
    licenses: tuple[str, ...] | None = None
    seen: Seen | None = None
    overlap: Overlap | None = None
    labels_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord(Training):
    """A student's run. kd: whether it was distilled, and then from teachers {anatomy: {arch, weights_sha256}}.

    source_sha256: of the file of a network of the user's own. view_gap_kl_nats: of its cache, see `CacheManifest`.
    """

    layout: str
    kd: bool
    dataset: str | None = None
    cache_fingerprint: str | None
    teachers: dict[str, dict[str, Any]] | None = None
    view_gap_kl_nats: dict[str, dict[str, float]] | None = None
    source_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherRecord(Training):
    anatomy: str


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(JsonRecord):
    """Where a head claims a pixel: where its logit is above the threshold, see `mtkd_cache.training.operating_points`.

    interval: of the threshold, 95 %, None for fewer than two patients. dice_at_half, dice: validation Dice in [0, 1] at logit 0
    and at the threshold, None where no image counts. presence: what the highest logit in a picture must exceed for the head to
    claim anything there, see `mtkd_cache.training.presence`; None where no label tells. false_alarms: the share of the
    images_without, which lack the anatomy by their label, in which the head claims a pixel, by the threshold alone and with
    presence.
    """

    threshold: float
    interval: tuple[float, float] | None = None
    dice_at_half: float | None = None
    dice: float | None = None
    images: int
    patients: int
    presence: float | None = None
    false_alarms: tuple[float, float] | None = None
    images_without: int | None = None


@dataclass(frozen=True, kw_only=True)
class OperatingPoints(JsonRecord):
    """The operating points of the heads of one file of weights, by anatomy, and the sample store they were chosen on."""

    FILE: ClassVar[str] = "operating-points.json"
    format: int = 1
    store_fingerprint: str
    weights_sha256: str
    points: dict[str, OperatingPoint]


@dataclass(frozen=True, kw_only=True)
class Evaluation(JsonRecord):
    """Figures in [0, 1] of a split by anatomy, None for an anatomy without an image that counts.

    weights_sha256: of the student's weights, or {anatomy: of the teacher's}; earlier versions did not write it.
    dice: at probability 0.5. thresholds: the operating points, in logits, None where not every head has one that was chosen on
    this store; then the figures at the operating point are None too. average_precision: of the pixels of an image, the mean over
    the images that show the anatomy; earlier versions did not write it. patients: of the images. intervals: 95 % by bootstrap
    over patients, {figure: {mean: (low, high), by_anatomy: {anatomy: (low, high)}}}, None for fewer than two patients.
    claims_at_operating_point: the share of their own pictures' pixels that the heads claim there, by anatomy; earlier versions
    did not write it. nsd_tolerance: in pixels, of the nsd in evaluation-SPLIT.csv. overlap: what the networks have seen of the
    split; None for the training split, and where it was not tested.
    """

    FILE: ClassVar[str] = EVALUATION
    kind: str | None = None
    layout: str | None = None
    arch: str | None = None
    seed: int | None = None
    kd: bool | None = None
    weights_sha256: str | dict[str, str] | None = None
    split: str
    dataset: str | None = None
    store_fingerprint: str | None = None
    size: tuple[int, int] | None = None
    dice: dict[str, float | None]
    mean_dice: float
    images: int
    images_by_anatomy: dict[str, int] = field(default_factory=dict)
    thresholds: dict[str, float] | None = None
    dice_at_operating_point: dict[str, float | None] | None = None
    mean_dice_at_operating_point: float | None = None
    average_precision: dict[str, float | None] | None = None
    mean_average_precision: float | None = None
    patients: int | None = None
    intervals: dict[str, dict[str, Any]] | None = None
    claims_at_operating_point: dict[str, float | None] | None = None
    nsd_tolerance: float | None = None
    overlap: Overlap | None = None

    @property
    def undecided(self) -> dict[str, float]:
        """The heads that claim more than 90 % of the pixels at their operating point, most of them wrongly, with that share."""
        claims, dice = self.claims_at_operating_point or {}, self.dice_at_operating_point or {}
        wrong = {anatomy for anatomy, value in dice.items() if value is not None and value < 0.5}
        return {
            anatomy: share for anatomy, share in claims.items() if share is not None and share > NEARLY_ALL and anatomy in wrong
        }

    def is_of(self, trainings: Sequence[Training]) -> bool:
        """Whether these weights were evaluated; an evaluation or a training that names no weights counts as fitting."""
        evaluated = self.weights_sha256
        return evaluated is None or all(
            training.weights_sha256
            in (None, evaluated if isinstance(evaluated, str) else evaluated.get(getattr(training, "anatomy", "")))
            for training in trainings
        )


@dataclass(frozen=True, kw_only=True)
class MultilabelEvaluation(Evaluation):
    """See `mtkd_cache.evaluation.multilabel`. FIGURE_at_operating_point: None as the Dice there. FIGURE_with_presence:
    also with presence thresholds, None where no head has one.

    split: the name of the folder where it is another dataset's. claimed_elsewhere: earlier versions did not write it.
    """

    FILE: ClassVar[str] = "multilabel-{}.json"
    claimed: float
    claimed_twice: float
    known_precision: dict[str, float | None]
    claimed_elsewhere: dict[str, float | None] | None = None
    claimed_at_operating_point: float | None = None
    claimed_twice_at_operating_point: float | None = None
    known_precision_at_operating_point: dict[str, float | None] | None = None
    claimed_elsewhere_at_operating_point: dict[str, float | None] | None = None
    dice_with_presence: dict[str, float | None] | None = None
    mean_dice_with_presence: float | None = None
    claimed_with_presence: float | None = None
    claimed_twice_with_presence: float | None = None
    known_precision_with_presence: dict[str, float | None] | None = None
    claimed_elsewhere_with_presence: dict[str, float | None] | None = None


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between the settings of two trainings, for people: "student.lr 0.001 (now 0.01)"; empty for nothing."""
    told = ", ".join(difference.removeprefix("recipe.") for difference in differences(old, new))
    return (
        told.replace("store_fingerprint", "sample store or split")
        .replace("labels_fingerprint", "labels of what pictures show")
        .replace("cache_fingerprint", "logit cache")
        .replace("source_sha256", "source code")
    )


@dataclass(frozen=True, kw_only=True)
class VideoEvaluation(Evaluation):
    """See `mtkd_cache.evaluation.video`. split: the clip. mvc: video consistency by number of frames. smooth: in frames."""

    FILE: ClassVar[str] = "video-{}.json"
    mvc: dict[str, float | None]
    smooth: float = 0


def with_epochs(settings: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The settings of a training with another number of epochs."""
    stage, recipe = settings["kind"], settings["recipe"]
    return {**settings, "recipe": {**recipe, stage: {**recipe[stage], "epochs": epochs}}}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    write_durably(path, json.dumps(content, indent=1).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is absent. Raises MtkdError where it is damaged or cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return content
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MtkdError(f"{path} cannot be read ({error.strerror}). Make it readable, or name another folder.") from error
    except UnicodeEncodeError as error:
        raise MtkdError(f"{path!a} has a name that this system's locale lacks. Set PYTHONUTF8=1 or LC_ALL=C.UTF-8.") from error
    except ValueError as error:
        raise MtkdError(f"{path} is damaged ({error}). Delete it and run the command that wrote it again.") from error


def read_as(kind: type[Record], path: Path) -> Record | None:
    """A record, or None where the file is absent. Raises MtkdError where it is damaged or lacks a key."""
    content = read_json(path)
    return None if content is None else kind.from_json(content, path)


def read_run(folder: Path) -> RunRecord | None:
    """The record of the student trained in a run folder."""
    return read_as(RunRecord, folder / RUN)


def read_teacher(folder: Path) -> TeacherRecord | None:
    """The record of the teacher trained in TEACHERS/ANATOMY."""
    return read_as(TeacherRecord, folder / TEACHER)


def read_training_records(folder: Path) -> list[Training]:
    """The record of the student in a run folder, or those of the teachers in a teachers folder; empty where there is none."""
    run = read_run(folder)
    teachers = () if run else (read_teacher(path.parent) for path in sorted(folder.glob(f"*/{TEACHER}")))
    return [record for record in (run, *teachers) if record]


def read_operating_points(folder: Path, weights_sha256: str) -> OperatingPoints | None:
    """The operating points beside weights; None where there are none of these weights."""
    points = read_as(OperatingPoints, folder / OperatingPoints.FILE)
    return points if points and points.weights_sha256 == weights_sha256 else None


def read_evaluation(folder: Path, split: str) -> Evaluation | None:
    """The evaluation of a run or teachers folder on a split."""
    return read_as(Evaluation, folder / EVALUATION.format(split))
