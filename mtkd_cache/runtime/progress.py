"""Progress on standard error: a bar on a terminal, elsewhere (a file, a batch system's log) a line now and then."""

import os
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, Self

from tqdm import tqdm

PAUSE = 30.0  # seconds between two lines
UNKNOWN_SIZE = MappingProxyType({"ncols": 100, "nrows": 24})  # of a terminal that says it has no columns, which tqdm leaves empty


class Bar(Protocol):
    """What a loop tells: that it got on by n, and that it has ended. n, initial: done, and before it; total: or None."""

    total: Any
    n: Any
    initial: Any

    def update(self, n: float = 1) -> object: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> object: ...


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def terminal_size() -> Mapping[str, Any]:
    """tqdm's options for the width of the terminal."""
    return {"dynamic_ncols": True} if os.get_terminal_size(sys.stderr.fileno()).columns else UNKNOWN_SIZE


def progress_bar(label: str, unit: str, total: int | None, initial: int = 0, shown: bool = True, leave: bool = True) -> Bar:
    """Progress over a total of units, of which some were done before; nothing is shown where nothing is left to do.

    unit: "byte" is shown in kB, MB and so on. total: None if unknown. shown: whether this process shows it at all. leave: whether
    a finished bar stays on the terminal.
    """
    if not shown or total == initial:
        nothing: Bar = tqdm(total=total, initial=initial, disable=True)
        return nothing
    if not on_terminal():
        return Lines(label, unit, total, initial)
    scaled = {"unit": "B", "unit_scale": True} if unit == "byte" else {"unit": unit}
    bar: Bar = tqdm(desc=label, total=total, initial=initial, leave=leave, **scaled, **terminal_size())
    return bar


def formatted_bar(text: str, total: int, initial: int) -> "tqdm[Any]":
    """A bar on the terminal whose whole line is given, as tqdm's bar_format, and may be changed."""
    return tqdm(bar_format=text, total=total, initial=initial, **terminal_size())


def duration(seconds: float) -> str:
    """As 01:30 or 2:00:00."""
    return str(tqdm.format_interval(seconds))


def file_size(count: float) -> str:
    """A number of bytes, as 1.5 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 999.95:
            return f"{count:.{int(unit != 'B')}f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Lines:
    """Progress as lines: one every 30 seconds, and then one at the end."""

    def __init__(self, label: str, unit: str, total: int | None, initial: int):
        self.label, self.unit, self.total = label, unit, total
        self.initial, self.n = initial, float(initial)
        self.started = self.printed = time.monotonic()
        self.said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        self.n += n
        if time.monotonic() - self.printed >= PAUSE:
            self._say()

    def close(self) -> None:
        if self.said:
            self._say()

    def _say(self) -> None:
        self.printed = time.monotonic()
        elapsed = self.printed - self.started
        line = f"{self.label}: {self._amount()}, {duration(elapsed)} elapsed"
        if self.total and self.n > self.initial:
            line += f", {duration(elapsed * max(self.total - self.n, 0) / (self.n - self.initial))} left"
        if line != self.said:
            print(line, file=sys.stderr, flush=True)
        self.said = line

    def _amount(self) -> str:
        if self.unit == "byte":
            return file_size(self.n) + (f" of {file_size(self.total)}" if self.total else "")
        return f"{self.n:.0f}{f' of {self.total}' if self.total else ''} {self.unit}s"
