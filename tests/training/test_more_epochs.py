"""A finished training is continued with more epochs, as one that had been planned so: the rate falls first and then stays."""

import pytest

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import STATE, WEIGHTS
from mtkd_cache.models.records import read_run
from mtkd_cache.storage.checked_json import mark_incomplete
from mtkd_cache.storage.folder import Folder
from mtkd_cache.training import loop, run_folder
from mtkd_cache.training.optimizer import learning_rates
from mtkd_cache.training.student import train_student
from mtkd_cache.training.teachers import train_teachers


@pytest.fixture
def train(store, recipe, accelerator):
    return lambda folder, *overrides: train_student(store, folder, recipe(*overrides), accelerator, None)


def interrupted(monkeypatch, train, folder, *overrides: str) -> None:
    """Train until the state of one more epoch is written."""
    whole = loop.save_state

    def save(*arguments) -> None:
        whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "save_state", save)
        train(folder, *overrides)


def test_a_finished_training_is_continued_to_the_weights_of_an_uninterrupted_one(train, tmp_path, monkeypatch):
    run, drawn = tmp_path / "run", []
    monkeypatch.setattr(run_folder, "draw_curves", lambda folder, label, history, best: drawn.append((folder, len(history))))
    first = train(run, "student.epochs=1")
    assert first.schedule_epochs is None and "schedule_epochs" not in first.to_json()
    interrupted(monkeypatch, train, run, "student.epochs=3")
    assert read_run(run) is None
    with pytest.raises(MtkdError, match=r"interrupted training with other settings: .*epochs 3 \(now 2\)"):
        train(run, "student.epochs=2")
    record = train(run, "student.epochs=3")
    assert [row["lr"] for row in record.history] == [1e-3, 2.5e-5, 2.5e-5]
    assert (record.schedule_epochs, record.recipe["student"]["epochs"]) == (1, 3)
    assert record.history[0] == first.history[0]
    assert drawn == [(run, 1), (run, 3)]
    assert train(run, "student.epochs=3") == record
    with pytest.raises(MtkdError, match=r"other settings: student.epochs 3 \(now 2\)"):
        train(run, "student.epochs=2")
    monkeypatch.setattr(loop, "learning_rates", lambda stage, _: learning_rates(stage, 1))
    train(tmp_path / "at once", "student.epochs=3")
    assert (tmp_path / "at once" / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


@pytest.mark.parametrize("of", ["store", "cache", "unfinished cache"])
def test_no_training_is_written_into_a_store_or_a_cache(of, train, store, organ_cache, copy_of, recipe, accelerator):
    folder = copy_of(store.url if of == "store" else organ_cache.url)
    if of == "unfinished cache":
        mark_incomplete(Folder(folder))
    before = sorted(folder.rglob("*"))
    with pytest.raises(MtkdError, match=f"{folder} is a sample store or a cache. Name another folder"):
        train(folder)
    with pytest.raises(MtkdError, match=f"{folder} is a sample store or a cache"):
        train_teachers(store, folder, recipe(), accelerator, ["kidney"])
    assert sorted(folder.rglob("*")) == before


def test_what_cannot_be_continued_is_refused_and_keeps_its_record(train, tmp_path):
    record = train(tmp_path, "student.epochs=1")
    with pytest.raises(MtkdError, match=r"other settings: student.lr 0.001 \(now 0.002\)\. Name another"):
        train(tmp_path, "student.epochs=2", "student.lr=2e-3")
    (tmp_path / STATE).unlink()  # as of earlier versions, or to save room
    with pytest.raises(MtkdError, match=f"ended after epoch 1 and has no {STATE} to continue from.*--init-from {tmp_path}"):
        train(tmp_path, "student.epochs=2")
    assert train(tmp_path, "student.epochs=1") == record
