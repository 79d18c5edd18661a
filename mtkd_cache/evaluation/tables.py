"""An evaluation's figures as CSV files beside it, and their intervals.

evaluation-SPLIT.csv            a row for each picture: the fields of `Picture`; an empty cell where a figure does not count
evaluation-SPLIT-summary.csv    a row for each figure of the mean over the anatomies, of each anatomy and of each patient, with
                                its 95 % interval and the numbers of pictures that count and of their patients

Figures that count for no picture are left out. Shares are in 0..1, distances in pixels.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mtkd_cache.errors import MtkdError, said
from mtkd_cache.evaluation.pictures import Picture
from mtkd_cache.evaluation.statistics import PatientTotals, intervals
from mtkd_cache.storage.folder import write_durably

PICTURES, SUMMARY = "evaluation-{}.csv", "evaluation-{}-summary.csv"  # of a split
NAMES = ("patient", "frame", "anatomy", "sha256")
FIGURES = tuple(field.name for field in fields(Picture) if field.name not in NAMES)


def totals_of(pictures: Sequence[Picture], figure: str) -> PatientTotals:
    """One figure of pictures by patient and anatomy."""
    values = [getattr(picture, figure) for picture in pictures]
    return PatientTotals.of(values, [picture.patient for picture in pictures], [picture.anatomy for picture in pictures])


def known_figures(pictures: Sequence[Picture]) -> list[str]:
    """The figures that count for some picture."""
    return [name for name in FIGURES if not all(math.isnan(getattr(picture, name)) for picture in pictures)]


Intervals = dict[str, dict[str, Any]]  # {figure: {mean: interval, by_anatomy: {anatomy: interval}}}


def figure_intervals(pictures: Sequence[Picture]) -> Intervals:
    """95 % intervals of the figures that count."""
    bounds = {figure: intervals(totals_of(pictures, figure)) for figure in known_figures(pictures)}
    return {figure: {"mean": mean, "by_anatomy": each} for figure, (mean, each) in bounds.items()}


def write_tables(folder: Path, split: str, pictures: Sequence[Picture], bounds: Intervals) -> None:
    """Write both files of an evaluation. bounds: its `figure_intervals`."""
    write_pictures(folder / PICTURES.format(split), pictures)
    write_summary(folder / SUMMARY.format(split), pictures, bounds)


def write_pictures(path: Path, pictures: Sequence[Picture]) -> None:
    """Write evaluation-SPLIT.csv."""
    columns = ["patient", "frame", "anatomy", *known_figures(pictures), "sha256"]
    _write(path, columns, ([getattr(picture, column) for column in columns] for picture in pictures))


def read_pictures(path: Path, count: int | None = None) -> list[Picture] | None:
    """The pictures in an evaluation-SPLIT.csv, or None where it is absent.

    count: of the pictures, as the evaluation names it. Raises MtkdError for a file that is damaged or holds another number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            pictures = [_picture(line) for line in csv.DictReader(file)]
        if count is not None and len(pictures) != count:
            raise ValueError(f"{len(pictures)} of {count} pictures")
        return pictures
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise MtkdError(f"{path} is damaged ({said(error)}). Run mtkd-cache evaluate again.") from error


def write_summary(path: Path, pictures: Sequence[Picture], bounds: Intervals) -> None:
    """Write evaluation-SPLIT-summary.csv."""
    columns = ("group", "name", "figure", "value", "low", "high", "pictures", "patients")
    totals = ((figure, totals_of(pictures, figure), own) for figure, own in bounds.items())
    _write(path, columns, (row for each in totals for row in _summary(*each)))


def _summary(figure: str, totals: PatientTotals, own: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    patients = len(totals.patients)
    values = totals.estimates(np.ones((1, patients)))[0]
    bounds = [own["mean"], *own["by_anatomy"].values()]
    counts = np.column_stack([totals.counts.sum(1), totals.counts])
    for place, name in enumerate(("", *totals.anatomies)):
        low, high = bounds[place] or (math.nan, math.nan)
        numbers = int(counts[:, place].sum()), int((counts[:, place] > 0).sum())
        yield "anatomy" if place else "mean", name, figure, float(values[place]), low, high, *numbers
    for patient, value, count in zip(totals.patients, totals.estimates(np.eye(patients))[:, 0], counts[:, 0], strict=True):
        yield "patient", patient, figure, float(value), math.nan, math.nan, int(count), 1


def _picture(line: dict[str, str]) -> Picture:
    if len(line["sha256"] or "") != 64:
        raise ValueError("a row is cut off")
    values = {name: float(line.get(name) or math.nan) for name in FIGURES}
    return Picture(patient=line["patient"], frame=int(line["frame"]), anatomy=line["anatomy"], sha256=line["sha256"], **values)


def _write(path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in line] for line in lines)
    write_durably(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    """A number to seven digits; nothing for NaN."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.7g}"
