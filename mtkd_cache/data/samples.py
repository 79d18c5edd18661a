"""What is ingested: a `Sample` for each image and mask of an anatomy, from whatever source, and the rules that all must keep."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from mtkd_cache.errors import MtkdError

SPLITS = ("train", "validation", "test")
SHARES = {"validation": 0.15, "test": 0.2}  # of the patients, where no split is given
LARGEST = np.iinfo(np.int32).max  # of the numbers that a sample store holds


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample to ingest: an image with the mask of one anatomy. Samples of several anatomies may share an image.

    Attributes:
        image: PNG, JPEG or TIFF file, 8 bits per channel.
        mask: file of the same kinds and of the image's size, 0 outside the anatomy and one other level inside.
        anatomy: the structure that the mask is of.
        patient: any text. A patient's samples are all in one split.
        frame: number of the image among those of its patient. None: the last number in the image's file name, where these
            differ within the patient, else its position among the patient's image paths in alphabetical order.
        split: "train", "validation" or "test". None for every sample: patients are assigned, see `split_by_patient`.
        labels: {anatomy: whether the image shows it}, as far as that is known without masks.
        listed: where the sample is listed, as "samples.csv, line 3", for messages.
    """

    image: Path
    mask: Path
    anatomy: str
    patient: str
    frame: int | None = None
    split: str | None = None
    labels: Mapping[str, bool] = field(default_factory=dict)
    listed: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("image", Path), ("mask", Path), ("patient", str)):
            object.__setattr__(self, name, kind(getattr(self, name)))

    @property
    def place(self) -> str:
        """Names the sample in messages."""
        return self.listed or str(self.image)


def complete(given: Iterable[Sample]) -> list[Sample]:
    """Samples with frame and split, in the order of a store: by anatomy, patient and frame; those that share an image together.

    Raises MtkdError, naming the sample, where they break a rule of `Sample`, or a split lacks samples of an anatomy.
    """
    samples = list(given)
    for sample in samples:
        _check(sample)
    samples = sorted(_with_splits(_with_frames(samples)), key=_order)
    _check_all(samples)
    _check_splits(samples)
    first: dict[Path, int] = {}
    for position, sample in enumerate(samples):
        first.setdefault(sample.image, position)
    return sorted(samples, key=lambda sample: first[sample.image])


def patient_order(patient: str | int) -> tuple[int, str]:
    """Sorts patients: numbers by value, texts by length and alphabet."""
    return len(str(patient)), str(patient)


def stored_patient(patient: str) -> str | int:
    """A patient in a store's records and hashes: as a number where the text is one, as those of the Dresden layout are."""
    return int(patient) if re.fullmatch("0|[1-9][0-9]{0,9}", patient) and int(patient) <= LARGEST else patient


def check_anatomies(names: Iterable[str], where: object) -> None:
    """Raises MtkdError where an anatomy's name is no valid folder name: its teacher's folder has the same name."""
    for name in names:
        if name in ("", ".", "..") or name != name.strip() or set(name) & {"/", "\\"} or not name.isprintable():
            raise MtkdError(
                f"{where}: an anatomy cannot be named {name!r}, as folders get its name. "
                "Use only letters, digits, inner spaces, - and _ (in UTF-8)."
            )


def split_by_patient(samples: Sequence[Sample]) -> dict[str, str]:
    """Assign each patient to a split, the same one whatever the order of the samples.

    Patients are taken in the order of the SHA-256 of their names: 15 % (at least one) for validation, then 20 % (at least one)
    for test, the others for training. First come those who have the most anatomies that the split still lacks, and further
    ones are taken until it lacks none. Nobody is taken who alone has an anatomy among those left for training.

    Raises MtkdError for fewer than 3 patients.
    """
    anatomies: defaultdict[str, set[str]] = defaultdict(set)
    for sample in samples:
        anatomies[sample.patient].add(sample.anatomy)
    if len(anatomies) < 3:
        raise MtkdError(
            f"The samples are of {len(anatomies)} patient(s); training, validation and test need one each. "
            "Add patients; images of one patient in two splits would flatter the results."
        )
    left = sorted(anatomies, key=lambda patient: hashlib.sha256(patient.encode()).digest())
    split = {}
    for part, share in SHARES.items():
        lacking, count = set().union(*anatomies.values()), max(1, round(share * len(anatomies)))
        while takable := [patient for patient in left if not _alone(patient, left, anatomies)]:
            best = max(takable, key=lambda patient: len(anatomies[patient] & lacking))
            if count <= 0 and not anatomies[best] & lacking:
                break
            split[best] = part
            left.remove(best)
            lacking -= anatomies[best]
            count -= 1
    return split | dict.fromkeys(left, "train")


def _alone(patient: str, left: Iterable[str], anatomies: Mapping[str, set[str]]) -> bool:
    """Whether a patient has an anatomy that no other one left has."""
    return bool(anatomies[patient] - set().union(*(anatomies[other] for other in left if other != patient)))


def _order(sample: Sample) -> tuple[object, ...]:
    return sample.anatomy, patient_order(sample.patient), sample.frame


def _check(sample: Sample) -> None:
    check_anatomies([sample.anatomy], sample.place)
    if sample.patient != sample.patient.strip() or not sample.patient or not sample.patient.isprintable():
        raise MtkdError(f"{sample.place}: a patient cannot be named {sample.patient!r}. Give a text without outer spaces.")
    if sample.frame is not None and not 0 <= sample.frame <= LARGEST:
        raise MtkdError(f"{sample.place}: frame {sample.frame} is not a number from 0 to {LARGEST}. Number it differently.")
    if sample.split not in (None, *SPLITS):
        raise MtkdError(f"{sample.place}: there is no split {sample.split!r}. Name one of {', '.join(SPLITS)}.")
    for path in (sample.image, sample.mask):
        if not path.is_file():
            raise MtkdError(f"{sample.place}: there is no file {path}. Correct the path, or leave this sample out.")


def _check_all(samples: Sequence[Sample]) -> None:
    """Raises MtkdError for an image of two patients, a patient in two splits and a sample listed twice."""
    if pair := _conflict(samples, lambda sample: sample.image, lambda sample: sample.patient):
        one, other = pair
        raise MtkdError(
            f"{other.place}: {other.image} is of patient {other.patient} here, and of {one.patient} at {one.place}. Correct one."
        )
    if pair := _conflict(samples, lambda sample: sample.patient, lambda sample: sample.split):
        one, other = pair
        raise MtkdError(
            f"{other.place}: patient {other.patient} is in the split {other.split} here, and in {one.split} at {one.place}. "
            "Images of one patient in two splits would flatter the results; choose one."
        )
    if pair := _conflict(samples, _order, id):
        one, other = pair
        raise MtkdError(
            f"{other.place} and {one.place} are both {other.anatomy}, patient {other.patient}, frame {other.frame}. "
            "Keep one of them, or number their frames differently."
        )


def _conflict(
    samples: Sequence[Sample], key: Callable[[Sample], object], value: Callable[[Sample], object]
) -> tuple[Sample, Sample] | None:
    """Two samples that have the same key and not the same value, or None."""
    known: dict[object, Sample] = {}
    for sample in samples:
        if value(known.setdefault(key(sample), sample)) != value(sample):
            return known[key(sample)], sample
    return None


def _with_frames(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with the frame that `Sample` documents where none is given."""
    images: defaultdict[str, set[Path]] = defaultdict(set)
    for sample in samples:
        if sample.frame is None:
            images[sample.patient].add(sample.image)
    frames: dict[Path, int] = {}
    for paths in map(sorted, images.values()):
        digits = [re.findall(r"[0-9]+", path.stem)[-1:] for path in paths]
        numbers = [int(found[0]) for found in digits if found]
        distinct = len(set(numbers)) == len(paths) and max(numbers) <= LARGEST
        frames |= zip(paths, numbers if distinct else range(len(paths)), strict=True)
    return [replace(sample, frame=frames[sample.image]) if sample.frame is None else sample for sample in samples]


def _with_splits(samples: Sequence[Sample]) -> list[Sample]:
    without = [sample for sample in samples if sample.split is None]
    if without and len(without) < len(samples):
        raise MtkdError(f"{without[0].place}: no split is given, but others have one. Name one of {', '.join(SPLITS)}.")
    split = split_by_patient(without) if without else {}
    return [replace(sample, split=split[sample.patient]) for sample in without] or list(samples)


def _check_splits(samples: Sequence[Sample]) -> None:
    """Raises MtkdError where a split that training or evaluation needs is empty."""
    filled = {(sample.anatomy, sample.split) for sample in samples}
    for anatomy, part in product(sorted({anatomy for anatomy, _ in filled}), ("train", "validation")):
        if (anatomy, part) not in filled:
            raise MtkdError(f"{anatomy} has no sample in the {part} split. Add patients to it, or choose the split differently.")
    if "test" not in {part for _, part in filled}:
        raise MtkdError("The test split is empty. Add patients to it, or choose the split differently.")
