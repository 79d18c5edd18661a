"""A table as data, and the same table as Markdown and as HTML. Pure functions of strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from mtkd_cache.evaluation.markdown import pipe, plain
from mtkd_cache.study.report.formats import DASH


@dataclass(frozen=True)
class Column:
    """A column's title, the group it stands under (empty: none), and whether it holds numbers (set to the right)."""

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
    def rows(self) -> list[list[Cell]]:
        return [row for part in self.parts for row in part]


def markdown(table: Table) -> str:
    """A GitHub pipe table under its title; a column's group stands before its title, the notes below."""
    titles = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    rules = ["---:" if column.number else "---" for column in table.columns]
    lines = [f"## {plain(table.title)}", "", pipe(titles), pipe(rules)]
    lines += [pipe(map(_text, row)) for row in table.rows]
    for note in table.notes:
        lines += ["", plain(note)]
    return "\n".join(lines) + "\n"


def _text(cell: Cell) -> str:
    text = cell.text or DASH
    return text if cell.below is None else f"{text} / {cell.below or DASH}"


def typeset(text: str) -> str:
    """Text escaped for HTML, its apostrophes curled."""
    return escape(text).replace("&#x27;", "\u2019")


def html(table: Table) -> str:
    """A <section> with the table, its column groups as a first header line, and the notes. Everything is escaped."""
    body = (f"<tbody>\n{''.join(_row(row, table.columns) for row in part)}</tbody>" for part in table.parts)
    notes = "".join(f"<p>{typeset(note)}</p>" for note in table.notes)
    return (
        f'<section id="{typeset(table.name)}">\n<h2>{typeset(table.title)}</h2>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{typeset(table.title)}">\n'
        f'<table class="sortable">\n<thead>\n{_head(table.columns)}</thead>\n{"".join(body)}\n</table>\n</div>\n'
        f'<div class="notes">{notes}</div>\n</section>\n'
    )


def _head(columns: tuple[Column, ...]) -> str:
    numbered = list(enumerate(columns))
    if not any(column.group for column in columns):
        return f"<tr>{''.join(_title(*pair) for pair in numbered)}</tr>\n"
    upper = lower = ""
    for group, members in groupby(numbered, key=lambda pair: pair[1].group):
        pairs = list(members)
        if group:
            upper += f'<th scope="colgroup" colspan="{len(pairs)}" class="group">{typeset(group)}</th>'
            lower += "".join(_title(*pair) for pair in pairs)
        else:
            upper += "".join(_title(*pair, rows=2) for pair in pairs)
    return f"<tr>{upper}</tr>\n<tr>{lower}</tr>\n"


def _title(index: int, column: Column, rows: int = 1) -> str:
    kind = _class("number" if column.number else "")
    return f'<th scope="col" rowspan="{rows}" data-column="{index}" aria-sort="none"{kind}>{typeset(column.title)}</th>'


def _row(row: list[Cell], columns: tuple[Column, ...]) -> str:
    cells = (_cell(cell, column, first=index == 0) for index, (cell, column) in enumerate(zip(row, columns, strict=True)))
    return f"<tr>{''.join(cells)}</tr>\n"


def _cell(cell: Cell, column: Column, *, first: bool) -> str:
    tag, scope = ("th", ' scope="row"') if first else ("td", "")
    value = "" if cell.value is None else f' data-value="{typeset(str(cell.value))}"'
    below = "" if cell.below is None else f'<span class="below">{typeset(cell.below or DASH)}</span>'
    kinds = " ".join(filter(None, ("number" if column.number else "", cell.kind)))
    return f"<{tag}{scope}{_class(kinds)}{value}>{typeset(cell.text or DASH)}{below}</{tag}>"


def _class(kinds: str) -> str:
    return f' class="{escape(kinds)}"' if kinds else ""
