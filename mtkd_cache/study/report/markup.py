"""A table as data, and the same table as Markdown. Its HTML is made by page.html."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from mtkd_cache.evaluation.markdown import pipe, plain
from mtkd_cache.study.report.formats import DASH


@dataclass(frozen=True)
class Column:
    """A column's title, the group it stands under (empty: none), and whether it holds numbers (aligned to the right)."""

    title: str
    group: str = ""
    number: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell.

    text: as it is read; empty shows a dash. below: a second, quieter line (Markdown: after a slash), None for none.
    value: what the column is sorted by; None sorts last. kind: a CSS class.
    """

    text: str
    value: float | str | None = None
    below: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """name: an identifier for links. parts: rows in groups that a rule separates; every row has one cell a column."""

    name: str
    title: str
    columns: tuple[Column, ...]
    parts: list[list[list[Cell]]]
    notes: Sequence[str] = ()

    @property
    def groups(self) -> list[tuple[str, list[tuple[int, Column]]]]:
        """Neighboring columns of one group, with their numbers."""
        return [(group, list(pairs)) for group, pairs in groupby(enumerate(self.columns), key=lambda pair: pair[1].group)]


def markdown(table: Table) -> str:
    """A GitHub pipe table under its title; a column's group stands before its title, the notes below."""
    titles = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    rules = ["---:" if column.number else "---" for column in table.columns]
    lines = [f"## {plain(table.title)}", "", pipe(titles), pipe(rules)]
    lines += [pipe(map(_text, row)) for part in table.parts for row in part]
    for note in table.notes:
        lines += ["", plain(note)]
    return "\n".join(lines) + "\n"


def _text(cell: Cell) -> str:
    text = cell.text or DASH
    return text if cell.below is None else f"{text} / {cell.below or DASH}"
