"""What a training shows: lines where standard error is no terminal, a bar on one, and the time left for all trainings."""

import io
import os
import sys
from pathlib import Path

import pytest

from mtkd_cache.runtime import progress as bars
from mtkd_cache.training import progress
from mtkd_cache.training.progress import ALONE, Place, Progress
from mtkd_cache.training.teachers import train_teachers


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 99

    def last(self) -> str:
        return [part for part in self.getvalue().split("\r") if part.strip()][-1].strip()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """clock[0] is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """terminal(columns) makes standard error a terminal."""

    def make(columns: int) -> Terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((columns, 40 if columns else 0)))
        return sys.stderr

    return make


def row(epoch: int, dice: float, **more: float) -> dict:
    return {"epoch": epoch, "loss": 0.5, "kl": 0.125, "lr": 5e-4, "seconds": 10.0, "val_dice": dice, "val_dice/liver": 0, **more}


def test_without_a_terminal_each_epoch_is_a_line(clock, capsys):
    shown = Progress("liver", Place(2, 11, later_steps=40), 3, 4, [], "val_dice", True)
    for epoch, dice in enumerate((0.6123, 0.4)):
        for _ in range(4):
            shown.step()
            clock[0] += 2.5
        shown.epoch(row(epoch, dice, first_step=1.0, waiting=0.1, **{"threshold/liver": -3.0}))
    assert capsys.readouterr().err.splitlines() == [
        "liver (anatomy 2 of 11): epoch 1 of 3, loss 0.5, kl 0.125, validation Dice 61.2 % (best 61.2 %), "
        "learning rate 0.0005, 10.0 s, 02:00 left in all",  # 8 steps here, 40 later, 2.5 s each
        "liver (anatomy 2 of 11): epoch 2 of 3, loss 0.5, kl 0.125, validation Dice 40.0 % (best 61.2 %), "
        "learning rate 0.0005, 10.0 s, 01:50 left in all",
    ]


def test_after_resuming_the_best_so_far_is_known_and_only_what_is_left_is_counted(clock, capsys):
    shown = Progress("student", ALONE, 4, 2, [row(0, 0.7), row(1, 0.5)], "val_dice", True)
    shown.step()
    shown.step()
    clock[0] = 60.0
    shown.epoch(row(2, 0.6))
    assert "validation Dice 60.0 % (best 70.0 %), learning rate 0.0005, 10.0 s, 01:00 left\n" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [120, 0])
def test_a_terminal_gets_a_bar(columns, terminal, clock):
    """Also one that does not know its size."""
    stderr = terminal(columns)
    shown = Progress("liver", Place(2, 11, later_steps=6), 3, 4, [row(0, 0.7)], "val_dice", True)
    assert stderr.last().startswith("liver (anatomy 2 of 11): epoch 2/3, step 0/4 |")
    assert stderr.last().endswith("| ? left in all, best 70.0 %")
    clock[0] = 3.0
    shown.step()
    shown.bar.refresh()
    assert "epoch 2/3, step 1/4 |" in stderr.last() and stderr.last().endswith("| 00:39 left in all, best 70.0 %")
    for _ in range(3):
        shown.step()
    shown.epoch(row(1, 0.8))
    assert "epoch 2/3, step 4/4 |" in stderr.last() and stderr.last().endswith(" left in all, Dice 80.0 %, best 80.0 %")
    shown.close()
    assert "validation" not in stderr.getvalue()


def test_other_processes_show_nothing(terminal, capsys):
    Progress("liver", ALONE, 1, 1, [], "val_dice", False).epoch(row(0, 0.5))
    assert capsys.readouterr().err == ""
    stderr = terminal(100)
    Progress("liver", ALONE, 1, 1, [], "val_dice", False).epoch(row(0, 0.5))
    bars.progress_bar("build", "map", 10, shown=False).update(10)
    assert stderr.getvalue() == ""


def test_teachers_know_their_place_and_the_steps_to_come(store, recipe, accelerator, tmp_path, monkeypatch):
    places, whole = [], progress.Progress.__init__

    def init(self, label, place, *rest):
        places.append((label, place))
        whole(self, label, place, *rest)

    monkeypatch.setattr(progress.Progress, "__init__", init)
    settings = recipe("teacher.epochs=1", "teacher.batch=2")
    train_teachers(store, tmp_path, settings, accelerator)
    assert places == [("kidney", Place(1, 2, later_steps=3)), ("tongue", Place(2, 2, 0))]
    (tmp_path / "kidney" / "teacher.json").unlink()
    places.clear()
    train_teachers(store, tmp_path, settings, accelerator)
    assert places == [("kidney", Place(1, 2, later_steps=0))]


def test_other_work_says_a_line_now_and_then(clock, capsys):
    bar = bars.progress_bar("build", "map", 1000, initial=100)
    bar.update(100)
    clock[0] = 31.0
    bar.update(200)
    bar.update(1)
    clock[0] = 93.0
    bar.update(599)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "build: 400 of 1000 maps, 00:31 elapsed, 01:02 left",
        "build: 1000 of 1000 maps, 01:33 elapsed, 00:00 left",
    ]


def test_bytes_and_an_unknown_total_are_told_as_lines(clock, capsys):
    with bars.progress_bar("download", "byte", None) as bar:
        clock[0] = 40.0
        bar.update(1_500_000)
        bar.total = 3_000_000
        clock[0] = 80.0
        bar.update(1_500_000)
    assert capsys.readouterr().err.splitlines() == [
        "download: 1.5 MB, 00:40 elapsed",
        "download: 3.0 MB of 3.0 MB, 01:20 elapsed, 00:00 left",
    ]


@pytest.mark.parametrize("columns", [0, 80, None])
def test_nothing_is_shown_where_nothing_is_left_or_little_was_to_do(columns, terminal, clock, capsys):
    stderr = None if columns is None else terminal(columns)
    with bars.progress_bar("build", "map", 10, initial=10):
        pass
    if stderr is None:
        with bars.progress_bar("build", "map", 10) as bar:
            bar.update(10)
    assert (capsys.readouterr().err if stderr is None else stderr.getvalue()) == ""


def test_tqdm_is_used_in_one_place():
    package = Path(bars.__file__).parents[1]
    users = [path.name for path in package.rglob("*.py") if "tqdm" in path.read_text()]
    assert users == ["progress.py"]
