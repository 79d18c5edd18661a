"""Presence labels of a surgery's folder, ``weak_labels.csv``: which structures each of its images shows.

The columns of the Dresden set's files are not documented, so names are matched: a column is an anatomy's if both have the same
letters and digits, whatever their case and what lies between; the first other column says which image a row is of, by its number
or file name. Other columns (the uterus, say) and rows are counted, not read.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtkd_cache.data.sample_csv import read_rows
from mtkd_cache.data.samples import Sample
from mtkd_cache.errors import MtkdError

FILE = "weak_labels.csv"
VALUES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def with_labels(samples: Sequence[Sample]) -> tuple[list[Sample], Counter[str]]:
    """Samples with the labels in the files beside their images, and counts of what was matched and of what was not.

    Raises MtkdError for a file with two columns of an anatomy, two rows of an image, or a cell that does not end.
    """
    folders: defaultdict[Path, list[Sample]] = defaultdict(list)
    for sample in samples:
        folders[sample.image.parent].append(sample)
    anatomies = {_letters(sample.anatomy): sample.anatomy for sample in samples}
    counts: Counter[str] = Counter()
    labelled: list[Sample] = []
    for folder, inside in folders.items():
        labels = _read(folder / FILE, anatomies, counts) if (folder / FILE).is_file() else {}
        counts["rows matched"] += len(labels.keys() & {sample.frame for sample in inside})
        counts["rows of no image"] += len(labels.keys() - {sample.frame for sample in inside})
        labelled += [replace(sample, labels=labels.get(sample.frame, {})) for sample in inside]
    return labelled, +counts


def check_labels(samples: Sequence[Sample], foreground: Sequence[bool]) -> None:
    """Raises MtkdError where a mask has foreground, though its image's labels call the anatomy absent."""
    pairs = zip(samples, foreground, strict=True)
    wrong = [str(sample.mask) for sample, found in pairs if found and sample.labels.get(sample.anatomy) is False]
    if wrong:
        named = ", ".join(wrong[:3]) + ", ..." * (len(wrong) > 3)
        raise MtkdError(
            f"Labels call an anatomy absent that is in the mask of {len(wrong)} images: {named}. "
            "Correct labels or masks, or ingest with --without-labels."
        )


def present(samples: Sequence[Sample], anatomies: Sequence[str]) -> np.ndarray:
    """The labels as `SampleStore.present`: int8 (n, A), 1, 0, or -1 for unknown."""
    return np.array([[sample.labels.get(anatomy, -1) for anatomy in anatomies] for sample in samples], np.int8)


def _read(file: Path, anatomies: dict[str, str], counts: Counter[str]) -> dict[int | None, dict[str, bool]]:
    """The labels in a file by the number of the image; counts what is not understood."""
    lines = file.read_text("utf-8-sig", errors="replace").splitlines()
    rows = [row for _, row in read_rows(file, lines, (lines or [""])[0])]
    header = [anatomies.get(_letters(name)) for name in (rows or [[]])[0]]
    known = [name for name in header if name]
    if twice := [name for name, count in Counter(known).items() if count > 1]:
        raise MtkdError(f"{file} has two columns of {twice[0]}. Delete one, or ingest with --without-labels.")
    images = header.index(None) if None in header else None
    counts["files"] += 1
    counts["files not understood"] += images is None or not known
    if images is None or not known:
        return {}
    counts.update(f"columns of no anatomy: {rows[0][i]}" for i, name in enumerate(header) if name is None and i != images)
    labels: dict[int | None, dict[str, bool]] = {}
    for row in rows[1:]:
        number = re.search(r"([0-9]+)(\.\w+)?$", row[images].strip()) if len(row) == len(header) else None
        if number is None:
            counts["rows not understood"] += 1
            continue
        if int(number[1]) in labels:
            raise MtkdError(f"{file} has two rows of image {number[1]}. Delete one, or ingest with --without-labels.")
        cells = {name: cell.strip().lower().removesuffix(".0") for name, cell in zip(header, row, strict=True) if name}
        labels[int(number[1])] = {name: VALUES[cell] for name, cell in cells.items() if cell in VALUES}
        counts["cells not understood"] += sum(cell not in VALUES for cell in cells.values())
    return labels


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
