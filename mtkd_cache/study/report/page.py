"""The report's two texts from their templates beside this file.

report.html: one page that needs nothing but itself: pictures inside, no network, sortable tables.
report.md: the same in Markdown.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkd_cache.runtime.markdown import plain, templates
from mtkd_cache.study.report.formats import DASH
from mtkd_cache.study.report.markup import Table


@dataclass(frozen=True)
class Picture:
    """A figure's name on the page, what stands below it, what it shows in words, and its file (PNG or SVG)."""

    name: str
    caption: str
    alt: str
    path: Path

    @property
    def source(self) -> str:
        """The file as a data URI."""
        kind = {".svg": "image/svg+xml", ".png": "image/png"}[self.path.suffix]
        return f"data:{kind};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


def render(
    name: str, title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str], blocks: Sequence[Table | Picture]
) -> str:
    """The text of report.md or report.html. facts: (term, description) pairs; notes: sentences; blocks: in order.

    Everything is shown as it is written: HTML is escaped in both.
    """
    page = name.endswith(".html")
    environment = templates("mtkd_cache.study", "report", autoescape=page, finalize=_curled if page else plain)
    return environment.get_template(name).render(title=title, facts=facts, notes=notes, blocks=blocks, dash=DASH)


def _curled(value: Any) -> Any:
    """Text with curled apostrophes."""
    return value.replace("'", "\u2019") if isinstance(value, str) else value
