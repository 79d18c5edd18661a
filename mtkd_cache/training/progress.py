"""What a training shows while it runs: a bar on a terminal, elsewhere a line for each epoch."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mtkd_cache.runtime.progress import duration, formatted_bar, on_terminal
from mtkd_cache.training.history import Row, loss_parts


@dataclass(frozen=True)
class Place:
    """Where a training stands in its command: the number-th of so many, and the steps of those that follow."""

    number: int = 1
    trainings: int = 1
    later_steps: int = 0


ALONE = Place()


class Progress:
    """Shows a training of `epochs` epochs of `steps` steps on standard error, with the time that is left for the whole command.

    history: of the epochs before an interruption. score: the key by which an epoch is judged. shown: whether this process shows
    anything.
    """

    def __init__(self, label: str, place: Place, epochs: int, steps: int, history: Sequence[Row], score: str, shown: bool):
        several = place.trainings > 1
        self.label = f"{label} (anatomy {place.number} of {place.trainings})" if several else label
        self.left_in = "left in all" if several else "left"
        self.epochs, self.steps, self.score, self.shown = epochs, steps, score, shown
        self.before, self.done, self.started = len(history) * steps, 0, time.perf_counter()
        self.total = epochs * steps - self.before + place.later_steps
        self.best = max((row[score] for row in history), default=None)
        self.dice = f", best {percent(self.best)}" if history else ""
        self.bar = None
        if shown and on_terminal():
            self.bar = formatted_bar(self._format(), total=epochs * steps, initial=self.before)

    def step(self) -> None:
        """A step is done."""
        self.done += 1
        if self.bar is not None:
            self.bar.bar_format = self._format()
            self.bar.update()

    def epoch(self, row: Row) -> None:
        """An epoch is done and validated."""
        self.best = max(row[self.score], self.best or 0.0)
        self.dice = f", Dice {percent(row[self.score])}, best {percent(self.best)}"
        if self.bar is not None:
            self.bar.bar_format = self._format()
            self.bar.refresh()
        elif self.shown:
            print(self.line(row), file=sys.stderr, flush=True)

    def line(self, row: Row) -> str:
        """An epoch in one line."""
        losses = "".join(f", {name} {value:.4g}" for name, value in loss_parts(row).items())
        return (
            f"{self.label}: epoch {row['epoch'] + 1} of {self.epochs}{losses}, validation Dice {percent(row[self.score])} "
            f"(best {percent(self.best)}), learning rate {row['lr']:.3g}, {row['seconds']:.1f} s, {self.left()}"
        )

    def left(self) -> str:
        """The time left for the command, at this training's pace, validation included."""
        if not self.done:
            return f"? {self.left_in}"
        seconds = (time.perf_counter() - self.started) * (self.total - self.done) / self.done
        return f"{duration(seconds)} {self.left_in}"

    def _format(self) -> str:
        """The bar after the steps so far; the bar itself takes what the terminal's width leaves."""
        epoch, step = divmod(self.before + self.done - 1, self.steps) if self.done else (self.before // self.steps, -1)
        place = f"{self.label}: epoch {min(epoch + 1, self.epochs)}/{self.epochs}, step {step + 1}/{self.steps}"
        return f"{place} |{{bar}}| {self.left()}{self.dice}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def percent(dice: float | None) -> str:
    """Dice for people: 71.2 %"""
    return "-" if dice is None else f"{100 * dice:.1f} %"
