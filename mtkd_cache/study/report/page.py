"""The report as one HTML page that needs nothing but itself: pictures inside, no network, sortable tables."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from mtkd_cache.study.report.markup import typeset

TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Picture:
    """A figure's name on the page, what stands below it, what it shows in words, and its file (PNG or SVG)."""

    name: str
    caption: str
    alt: str
    path: Path


def picture_html(picture: Picture) -> str:
    """A <figure> with the file inside as a data URI."""
    data = base64.b64encode(picture.path.read_bytes()).decode()
    source = f"data:{TYPES[picture.path.suffix]};base64,{data}"
    title, _, rest = picture.caption.partition(". ")
    image = f'<img src="{source}" alt="{typeset(picture.alt)}">'
    return (
        f'<figure id="{typeset(picture.name)}">\n<div class="card">{image}</div>\n'
        f"<figcaption><b>{typeset(title)}.</b> {typeset(rest)}</figcaption>\n</figure>\n"
    )


def page(title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str], blocks: Sequence[str]) -> str:
    """The whole page. facts: (term, description) pairs; notes: sentences; blocks: HTML in order."""
    paragraphs = "".join(f"<p>{typeset(note)}</p>" for note in notes)
    template = Template((files(__package__) / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=typeset(title),
        facts="\n".join(f"<div><dt>{typeset(term)}</dt><dd>{typeset(text)}</dd></div>" for term, text in facts),
        notes=f"<aside>{paragraphs}</aside>" if notes else "",
        blocks="\n".join(blocks),
    )
