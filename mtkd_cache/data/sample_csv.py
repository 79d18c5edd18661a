"""A CSV file that lists samples, for datasets in any folders.

    image,mask,anatomy,patient,split,frame
    frames/P014_0012.jpg,masks/P014_0012_liver.png,liver,P014,train,12

One row a sample; `split` and `frame` may be left out (see `Sample`). Paths are relative to the CSV's folder. UTF-8, with commas,
semicolons or tabs. Other columns are not read.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from mtkd_cache.data.samples import Sample
from mtkd_cache.errors import MtkdError

REQUIRED = ("image", "mask", "anatomy", "patient")
OPTIONAL = ("split", "frame")


def read_csv(path: Path) -> tuple[list[Sample], dict[str, int]]:
    """The samples that a CSV lists, in its order, and the number of columns that are not read.

    Raises MtkdError, with the line, for a column that is absent or named twice, a row with more or fewer cells, an empty cell, a
    frame that is no number, and as `read_rows`; `complete` in `mtkd_cache.data.samples` checks the rest.
    """
    if not path.is_file():
        raise MtkdError(f"{path}: there is no such file. Name the CSV that lists the samples.")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MtkdError(f"{path} cannot be read as a CSV ({error}). Save it as text in UTF-8.") from error
    rows = read_rows(path, io.StringIO(text, newline=""), text.partition("\n")[0])
    header = [name.strip().lower() for name in next(rows, (1, []))[1]]
    if absent := [name for name in REQUIRED if name not in header]:
        raise MtkdError(
            f"{path} has no column {', '.join(absent)}; its first line names {', '.join(header) or 'nothing'}. "
            f"Name {', '.join(REQUIRED)} there, and {' and '.join(OPTIONAL)} if known."
        )
    if twice := [name for name in (*REQUIRED, *OPTIONAL) if header.count(name) > 1]:
        raise MtkdError(f"{path}, line 1: there are two columns named {twice[0]}. Rename one.")
    samples = [_sample(path, line, header, row) for line, row in rows if row]
    if not samples:
        raise MtkdError(f"{path} lists no samples. Add a row for each image and mask.")
    others = [name for name in header if name not in (*REQUIRED, *OPTIONAL)]
    return samples, {f"columns ({', '.join(others)})": len(others)} if others else {}


def read_rows(path: Path, lines: Iterable[str], first_line: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV, each with the number of its last line. Raises MtkdError for a cell that does not end."""
    reader = csv.reader(lines, delimiter=max(",;\t", key=first_line.count))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise MtkdError(f"{path}, line {reader.line_num}: {error}. Is a quote left open?") from error


def _sample(path: Path, line: int, header: list[str], row: list[str]) -> Sample:
    place = f"{path}, line {line}"
    if len(row) != len(header):
        raise MtkdError(f"{place} has {len(row)} cells, the first line {len(header)}. Quote cells that hold the separator.")
    cells = dict(zip(header, map(str.strip, row), strict=True))
    if empty := [name for name in REQUIRED if not cells[name]]:
        raise MtkdError(f"{place}: {empty[0]} is empty. Fill it in, or delete the line.")
    if (frame := cells.get("frame")) and not (frame.isascii() and frame.isdecimal()):
        raise MtkdError(f"{place}: the frame {frame!r} is not a whole number. Correct it, or leave the cell empty.")
    return Sample(
        image=path.parent / cells["image"],
        mask=path.parent / cells["mask"],
        anatomy=cells["anatomy"],
        patient=cells["patient"],
        frame=int(frame) if frame else None,
        split=cells.get("split") or None,
        listed=place,
    )
