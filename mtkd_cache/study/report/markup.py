"""A table as data. Its HTML is made by report.html, its Markdown by report.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Column:
    """A column's title, the group it stands under (empty: none), and whether it holds numbers (aligned to the right)."""

    title: str
    group: str = ""
    number: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell.

    text: as it is read; empty shows a dash. interval: a quieter line below it (Markdown: in brackets), empty for none.
    below: another one (Markdown: after a slash), None for none.
    value: what the column is sorted by; None sorts last. kind: a CSS class.
    """

    text: str
    value: float | str | None = None
    below: str | None = None
    kind: str = ""
    interval: str = ""


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
