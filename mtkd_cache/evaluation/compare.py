"""Two networks on the same pictures: the difference of a figure, its interval and a paired test, with the patient as the unit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.pictures import AT_POINT, Picture
from mtkd_cache.evaluation.statistics import LEVEL, RESAMPLES, SEED, Difference, paired_differences, smallest_p
from mtkd_cache.evaluation.tables import PICTURES, known_figures, read_pictures, totals_of
from mtkd_cache.models.records import Evaluation, RunRecord, read_evaluation, read_training_records


@dataclass(frozen=True)
class Comparison:
    """What the second network gains over the first. differences: of the "mean" over the anatomies and of each anatomy."""

    folders: tuple[Path, Path]
    split: str
    figure: str
    images: int
    patients: int
    differences: dict[str, Difference | None]

    def to_json(self) -> dict[str, Any]:
        rows = {name: row and asdict(row) for name, row in self.differences.items()}
        settings = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "smallest_p": smallest_p(self.patients)}
        first, second = map(str, self.folders)
        counts = {"split": self.split, "figure": self.figure, "images": self.images, "patients": self.patients}
        return {"first": first, "second": second, **counts, **settings, "mean": rows.pop("mean"), "by_anatomy": rows}


def compare(first: Path, second: Path, split: str = "test", figure: str | None = None) -> Comparison:
    """Compare the evaluations in two folders, of runs or of teachers.

    Args:
        first, second: evaluated folders.
        split: the split they were evaluated on.
        figure: a field of `Picture`. None: Dice at the operating points where both have them, otherwise at probability 0.5.

    Raises:
        MtkdError: a folder is not evaluated on the split, they were evaluated on different pictures, or one lacks the figure.
    """
    folders = Path(first), Path(second)
    evaluations, pictures = zip(*(_read(folder, split) for folder in folders), strict=True)
    left, right = ({(picture.sha256, picture.anatomy) for picture in rows} for rows in pictures)
    if left != right:
        stores = {evaluation.store_fingerprint for evaluation in evaluations}
        what = "another sample store or split" if len(stores) > 1 else "other anatomies"
        raise MtkdError(
            f"{folders[1]} was evaluated on {what} than {folders[0]}: they share {len(left & right)} of {len(left | right)} "
            "pictures. Evaluate both with the same --store and --split."
        )
    known = [set(known_figures(rows)) for rows in pictures]
    at_point = "dice" + AT_POINT
    figure = figure or (at_point if at_point in known[0] & known[1] else "dice")
    for folder, figures in zip(folders, known, strict=True):
        if figure not in figures:
            raise MtkdError(f"{folder}/{PICTURES.format(split)} has no {figure}. It has {', '.join(sorted(figures))}.")
    one, other = (totals_of(sorted(rows, key=_place), figure) for rows in pictures)
    differences = dict(zip(("mean", *one.anatomies), paired_differences(one, other), strict=True))
    return Comparison(folders, split, figure, len(left), len(one.patients), differences)


def _place(picture: Picture) -> tuple[str, str]:
    return picture.anatomy, picture.sha256


def _read(folder: Path, split: str) -> tuple[Evaluation, list[Picture]]:
    """A folder's evaluation on a split, of its present weights, and the pictures."""
    evaluation = read_evaluation(folder, split)
    pictures = read_pictures(folder / PICTURES.format(split), evaluation.images if evaluation else None)
    trainings = read_training_records(folder)
    if evaluation is None or pictures is None or not evaluation.is_of(trainings):
        missing = "has no evaluation" if evaluation is None else "has no figures by picture of its present weights"
        kind = "teachers" if trainings and not isinstance(trainings[0], RunRecord) else "run"
        raise MtkdError(f"{folder} {missing} on {split}. Run mtkd-cache evaluate --{kind} {folder} --split {split} first.")
    return evaluation, pictures
