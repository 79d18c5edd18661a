"""Leakage: networks that saw, in training, what a store holds out are refused or told, at every step that uses them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cache.overlap import check_overlap, find_overlap, seen_by
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cli.main import main
from mtkd_cache.data.dresden import Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.checkpoints import WEIGHTS, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import RUN, TEACHER, TeacherRecord, read_evaluation, read_run, write_json
from mtkd_cache.models.seen import DIGITS, NOTHING, UNKNOWN, Overlap, Seen
from mtkd_cache.storage.checked_json import MANIFEST, dump_checked_json, load_checked_json

SHORT = ["--recipe", "smoke", "--set", "student.epochs=1", "--set", "student.arch=mininetv2", "--device", "cpu"]
LEAK = "6 of 6 test samples (patient 30)"


@pytest.fixture(scope="module")
def other_store(store, tmp_path_factory) -> SampleStore:
    """The store's samples in another split: its training patient 30 is for test, its validation patient 40 for training."""
    url = str(tmp_path_factory.mktemp("other") / "samples.zarr")
    ingest(Path(store.url).parent / "organs", url, size=store.size, split=Split(validation=(50,), test=(30,), surgeries=None))
    return SampleStore.open(url)


def seen_in(store: SampleStore, anatomy: str | None = None) -> Seen:
    """What a training on a store sees."""
    return Seen.of(*(store.hashes[store.rows(split, anatomy)] for split in ("train", "validation")))


def record(store: SampleStore, anatomy: str) -> TeacherRecord:
    own = {"kind": "teacher", "arch": "mininetv2", "anatomies": store.anatomies, "size": store.size, "seed": 0}
    return TeacherRecord(**own, anatomy=anatomy, best_epoch=0, val_dice=0.5, seen=seen_in(store, anatomy))


@pytest.fixture
def leaking(store, organ_teachers, copy_of):
    """Teachers that say that they were trained on the store."""
    folder = copy_of(organ_teachers)
    for anatomy in store.anatomies:
        write_json(folder / anatomy / TEACHER, record(store, anatomy).to_json())
    return folder


def call(*arguments, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.stderr or result.exception
    return result.stderr


def test_seen_is_what_it_was_made_of():
    train, validation, more = ["a" * 64, "b" * 64], ["c" * 64], ["b" * 64, "d" * 64]
    both = Seen.of(train, validation) | Seen.of(more, [])
    assert both.samples("train") == {sha256[:DIGITS] for sha256 in (*train, *more)}
    assert both.samples("validation") == {"c" * DIGITS}
    assert both.complete and Seen.from_json(json.loads(json.dumps(both.to_json())), "") == both
    assert not (both | UNKNOWN).complete and (both | NOTHING) == both
    assert (NOTHING | NOTHING).samples("train") == set()


def test_an_overlap_is_counted_as_by_hand(store, other_store):
    """What chose the best epoch is a leak on test samples, and none on validation, where that is what it is for."""
    seen = seen_in(store)
    for split, parts in (("test", ("train", "validation")), ("validation", ("train",))):
        hashes = {store.hashes[row] for part in parts for row in store.rows(part)}
        rows = [row for row in other_store.rows(split) if other_store.hashes[row] in hashes]
        overlap = find_overlap(seen, other_store, [split])
        assert overlap.seen == {split: len(rows)} and overlap.of == {split: len(other_store.rows(split))}
        assert overlap.patients == tuple(sorted({str(other_store.patients[row]) for row in rows}))
    assert not find_overlap(seen, store).found
    held_out = {split: store.hashes[store.rows(split)] for split in ("validation", "test")}
    assert find_overlap(Seen.of(held_out["validation"], []), store).seen == {"validation": 6, "test": 0}
    assert find_overlap(Seen.of([], held_out["test"]), store).seen == {"validation": 0, "test": 6}


@pytest.mark.parametrize(
    ("overlap", "text"),
    [
        (Overlap(seen={"test": 0}, of={"test": 3}, complete=True), "none"),
        (Overlap(seen={"test": 0}, of={"test": 3}), "unknown"),
        (Overlap(seen={"test": 2}, of={"test": 3}, patients=("7",)), "2 of 3 test samples (patient 7)"),
        (
            Overlap(seen={"validation": 1, "test": 2}, of={"test": 3, "validation": 4}, patients=tuple("abcdefghijklm")),
            "1 of 4 validation samples and 2 of 3 test samples (patients a, b, c, d, e, f, g, h, i, j and 3 more)",
        ),
    ],
)
def test_an_overlap_in_words(overlap, text):
    assert str(overlap) == text


def test_what_is_not_recorded_or_of_another_size_is_unknown(store):
    own = record(store, "kidney")
    assert seen_by([own], store.size) == own.seen
    for unknown in (None, replace(own, seen=None), replace(own, size=(64, 64))):
        assert not seen_by([own, unknown], store.size).complete
    assert check_overlap(UNKNOWN, store, "nobody").complete is False


def test_teachers_of_another_split_are_refused_at_every_step(leaking, store, other_store, tmp_path):
    cache, run = tmp_path / "c.zarr", tmp_path / "run"
    at, teachers = ("--store", other_store.url), ("--teachers", leaking)
    told = f"saw {LEAK} of {other_store.url} in training"
    build = ("build", *at, *teachers, "--cache", cache, *SHORT)
    assert told in call(*build, status=1) and not cache.exists()
    assert f"seen in training: {LEAK}" in call(*build, "--allow-overlap")
    assert LogitCache.open(str(cache)).manifest.overlap.seen == {"validation": 0, "test": 6}
    attributes = json.loads((cache / "zarr.json").read_text())["attributes"]
    assert "overlap" in attributes and "seen" not in attributes  # which is long

    verify = ("verify", "--cache", cache, *at)
    first, second, *_ = call(*verify, *teachers, status=1).splitlines()
    assert first == f"{cache}: leaking: 1 problem" and f"overlap: the teachers saw {LEAK}" in second
    call(*verify, status=1)  # the cache itself knows
    assert "whole and current" in call(*verify, *teachers, "--allow-overlap")
    content = load_checked_json((cache / MANIFEST).read_bytes())
    earlier = {key: value for key, value in content.items() if key not in ("seen", "overlap")}  # which version 0.1 did not write
    (cache / MANIFEST).write_bytes(dump_checked_json(earlier))
    assert f"overlap: the teachers saw {LEAK}" in call(*verify, *teachers, status=1)
    (cache / MANIFEST).write_bytes(dump_checked_json(content))

    learn = ("train-student", *at, "--cache", cache, "--run", run, *SHORT)
    assert told in call(*learn, status=1) and not (run / RUN).exists()
    call(*learn, "--allow-overlap")
    learnt = read_run(run)
    assert learnt.overlap.patients == ("30",) and learnt.processes == 1
    assert learnt.seen == seen_in(other_store) | seen_in(store)

    for folder, option in ((leaking, "--teachers"), (run, "--run")):
        evaluate = ("evaluate", *at, option, folder)
        assert told in call(*evaluate, status=1) and not (folder / "evaluation-test.json").exists()
        assert f"seen in training: {LEAK}" in call(*evaluate, "--allow-overlap")
        assert read_evaluation(folder, "test").overlap.seen == {"test": 6}
        card = (folder / "README.md").read_text()
        assert f"seen in training: {LEAK}, evaluated with --allow-overlap" in card
    assert f"its teachers or initial weights had seen in training, allowed by --allow-overlap: {LEAK}" in card


def test_unknown_teachers_are_told_and_not_refused(store, organ_teachers, copy_of, tmp_path):
    at, unknown = ("--store", store.url), "held-out samples that were seen in training: unknown"
    build = ("build", *at, "--teachers", organ_teachers, "--cache", tmp_path / "c.zarr", *SHORT)
    assert unknown in call(*build)
    assert unknown in call("verify", "--cache", tmp_path / "c.zarr", *at)
    assert unknown in call("evaluate", *at, "--teachers", copy_of(organ_teachers))


def test_a_run_is_evaluated_on_what_it_has_not_seen(store, other_store, tmp_path):
    torch.manual_seed(0)
    save_network(tmp_path / "run" / WEIGHTS, create_network("mininetv2", 2), store.anatomies)
    own = record(store, "kidney").to_json() | {"seen": seen_in(store).to_json()}
    write_json(tmp_path / "run" / RUN, own | {"kind": "student", "layout": "shared", "kd": False, "cache_fingerprint": None})
    evaluate = ("evaluate", "--run", tmp_path / "run", "--store")
    assert f"saw {LEAK}" in call(*evaluate, other_store.url, status=1)
    assert "unknown" not in call(*evaluate, store.url)
    assert read_evaluation(tmp_path / "run", "test").overlap == Overlap(seen={"test": 0}, of={"test": 6}, complete=True)
    assert "seen in training: none\n" in (tmp_path / "run" / "README.md").read_text()


def test_all_missing_teachers_are_named_together(store, leaking, tmp_path):
    at = ("--store", store.url, "--teachers")
    assert "has no teacher of kidney, tongue" in call("build", "--cache", tmp_path / "c", *at, tmp_path / "none", status=1)
    for anatomy in store.anatomies:
        (leaking / anatomy / WEIGHTS).rename(leaking / anatomy / "away")
    (leaking / "liver").mkdir()
    (leaking / "liver" / WEIGHTS).touch()
    assert "has no teacher of kidney, tongue" in call("evaluate", *at, leaking, status=1)
