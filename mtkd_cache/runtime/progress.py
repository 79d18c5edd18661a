"""Progress on standard error: a bar on a terminal, elsewhere (a file, a batch system's log) a line now and then."""

import os
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from tqdm import tqdm

PAUSE = 30.0  # seconds between two lines
UNKNOWN_SIZE = MappingProxyType({"ncols": 100, "nrows": 24})  # of a terminal that says it has no columns, which tqdm leaves empty


class Bar(Protocol):
    """What a loop tells: that it got on by n, and that it has ended."""

    def update(self, n: float = 1) -> object: ...

    def close(self) -> None: ...


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def terminal_size() -> Mapping[str, Any]:
    """tqdm's options for the width of the terminal."""
    return {"dynamic_ncols": True} if os.get_terminal_size(sys.stderr.fileno()).columns else UNKNOWN_SIZE


def progress_bar(label: str, unit: str, total: int, initial: int = 0, shown: bool = True) -> Bar:
    """Progress over a total of units, of which some were done before. shown: whether this process shows it at all."""
    if shown and not on_terminal():
        return Lines(label, unit, total, initial)
    size = terminal_size() if shown else {}
    bar: Bar = tqdm(desc=label, unit=unit, total=total, initial=initial, disable=not shown, **size)
    return bar


class Lines:
    """Progress as lines: one every 30 seconds, and one at the end."""

    def __init__(self, label: str, unit: str, total: int, initial: int):
        self.format = f"{label}: {{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} elapsed, {{remaining}} left"
        self.initial, self.total, self.done = initial, total, float(initial)
        self.started = self.printed = time.monotonic()
        self.said = ""

    def update(self, n: float = 1) -> None:
        self.done += n
        if time.monotonic() - self.printed >= PAUSE:
            self.close()

    def close(self) -> None:
        self.printed = time.monotonic()
        elapsed = self.printed - self.started
        rate = (self.done - self.initial) / elapsed if elapsed else None
        line = tqdm.format_meter(int(self.done), self.total, elapsed, rate=rate, initial=self.initial, bar_format=self.format)
        if line != self.said:
            print(line, file=sys.stderr, flush=True)
        self.said = line
