"""Text as Markdown that shows it as it is, and the templates that are filled with it."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def plain(text: str) -> str:
    """Text of one line in which Markdown sees no HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def cell(text: str) -> str:
    """A cell of a pipe table."""
    return plain(text).replace("|", "\\|")


def templates(package: str, folder: str, **options: Any) -> Environment:
    """The templates in a folder of a package. A name that is not given is an error; a line with only a block leaves no line."""
    loader = PackageLoader(package, folder)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters["cell"] = cell
    return environment
