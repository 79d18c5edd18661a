"""metrics.csv and curves.png: every epoch once, as it is recorded, also after an interruption."""

import csv
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mtkd_cache.training import loop
from mtkd_cache.training.history import CURVES, METRICS, draw_curves, write_metrics
from mtkd_cache.training.student import train_student


def rows(folder: Path) -> list[dict]:
    with (folder / METRICS).open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_metrics_hold_each_epoch_once_however_often_a_training_is_killed(store, recipe, accelerator, tmp_path, monkeypatch):
    """Killed before and after the state of an epoch is written."""
    whole, settings = loop.save_state, recipe("student.epochs=3")

    def killed(before: bool):
        def save(*arguments) -> None:
            if not before:
                whole(*arguments)
            raise KeyboardInterrupt

        return save

    for attempt, before in enumerate((False, True, False)):
        monkeypatch.setattr(loop, "save_state", killed(before))
        with pytest.raises(KeyboardInterrupt):
            train_student(store, tmp_path, settings, accelerator, None)
        assert [row["epoch"] for row in rows(tmp_path)] == [0, 1][: attempt + 1]
    monkeypatch.setattr(loop, "save_state", whole)
    record = train_student(store, tmp_path, settings, accelerator, None)
    assert rows(tmp_path) == list(record.history) == json.loads((tmp_path / "run.json").read_text())["history"]
    for row in record.history:
        assert row["val_dice"] == pytest.approx((row["val_dice/kidney"] + row["val_dice/tongue"]) / 2)


def test_an_epoch_without_a_figure_is_an_empty_cell(tmp_path):
    write_metrics(tmp_path, [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.1, "val_dice/liver": 0.25}])
    assert (tmp_path / METRICS).read_text() == "epoch,loss,val_dice/liver\n0,1.5,\n1,0.1,0.25\n"


def test_curves_are_drawn(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = {}, Axes.plot

    def remember(axes, x, y, *rest, label, **style):
        drawn[label] = (x, y)
        return plot(axes, x, y, *rest, label=label, **style)

    monkeypatch.setattr(Axes, "plot", remember)
    history = [{"epoch": e, "loss": -1.0 + e, "kl": 0.5, "lr": 1e-3, "seconds": 1.0, "val_dice": 0.2 + e / 4} for e in range(2)]
    history = [{**row, "val_dice/liver": 0.5} | ({"val_dice/ureter": 0.25} if row["epoch"] else {}) for row in history]
    draw_curves(tmp_path, "student with KD", history, best_epoch=1)
    assert drawn.keys() == {"loss", "kl", "liver", "ureter", "mean", "lr"}
    assert drawn["mean"] == ([1, 2], [20.0, 45.0]) and drawn["loss"] == ([1, 2], [-1.0, 0.0])
    np.testing.assert_array_equal(drawn["ureter"][1], [np.nan, 25.0])
    assert matplotlib.image.imread(tmp_path / CURVES).shape[2] == 4
