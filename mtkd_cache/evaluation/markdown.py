"""Text as Markdown that shows it as it is."""


def plain(text: str) -> str:
    """Text of one line in which Markdown sees no HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def cell(text: str) -> str:
    """A cell of a pipe table."""
    return plain(text).replace("|", "\\|")
