"""CacheWriter: logits of any program become a cache that is checked, resumed and refused as one that was built."""

import inspect
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import build

import mtkd_cache as mc
from mtkd_cache.cache.inspect import inspect_cache
from mtkd_cache.cli.main import main

SOURCE = {"source": "Segment Everything 3, prompt 'organ'", "license": "CC BY-NC-SA 4.0"}
GRID = (16, 16)  # of the 32x32 images, at stride 2


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("mtkd_cache.cache.layout.BLOCK", 5)


def logits(row: int, anatomy: str, view: int = 0, grid: tuple[int, int] = GRID) -> np.ndarray:
    """What the other program says: float32 (h, w), some +-8, the same whenever it is asked."""
    random = np.random.default_rng([row, len(anatomy), view])
    return random.normal(-2, 3, grid).astype(np.float32)


def write(store, url, steps=None, **changed) -> list[tuple[int, str, int]]:
    """Give a writer the maps that are missing, `steps` of them at most. Returns those that were missing."""
    with mc.CacheWriter(str(url), store, **{**SOURCE, "stride": 2, **changed}) as writer:
        missing = writer.missing()
        for row, anatomy, view in missing[:steps]:
            writer.add(row, anatomy, logits(row, anatomy, view), view)
    return missing


@pytest.fixture
def written(store, tmp_path) -> str:
    write(store, tmp_path / "logits.zarr")
    return str(tmp_path / "logits.zarr")


def test_every_map_is_within_half_a_step_of_what_was_given(store, written):
    cache, rows = mc.LogitCache.open(written), store.rows("train")
    assert (cache.anatomies, cache.spec.grid, cache.step) == (store.anatomies, GRID, 0.25)
    cache.check_belongs(store, rows)
    stored = cache.read(store.hashes[rows]) * cache.step
    given = np.stack([[logits(row, anatomy) for anatomy in store.anatomies] for row in rows])
    assert np.abs(stored - given).max() <= cache.step / 2
    largest = {anatomy: np.abs(stored - given)[:, index].max() for index, anatomy in enumerate(store.anatomies)}
    assert {anatomy: errors["max_abs_error"] for anatomy, errors in cache.manifest.errors.items()} == pytest.approx(largest)
    assert mc.verify_cache(written, store=store)["ok"]
    for info in cache.manifest.teachers.values():
        assert {key: info[key] for key in SOURCE} == SOURCE and info["arch"] == "external"


def test_it_equals_a_built_cache_of_the_same_logits(store, organ_teachers, recipe, accelerator, written, tmp_path):
    built = str(tmp_path / "built.zarr")
    build(store, organ_teachers, built, recipe(), accelerator)
    rows, copy = store.rows("train"), str(tmp_path / "copy.zarr")
    networks = mc.Teachers.load(organ_teachers, store).networks
    with mc.CacheWriter(copy, store, **SOURCE, stride=2) as writer, torch.inference_mode():
        for anatomy, network in zip(store.anatomies, networks, strict=True):  # one anatomy after the other
            for row in rows:
                image = torch.from_numpy(store.read(rows[rows == row])[0]).permute(0, 3, 1, 2).float() / 255
                writer.add(store.hashes[row], anatomy, network.eval().native(image)[0, 0])
    one, other = mc.LogitCache.open(built), mc.LogitCache.open(copy)
    differing = one.read(store.hashes[rows]) - other.read(store.hashes[rows])
    assert np.abs(differing).max() <= 1 and (differing != 0).mean() < 1e-3  # batches of another size round otherwise
    assert one.fingerprint != other.fingerprint != mc.LogitCache.open(written).fingerprint


def test_the_fingerprint_is_of_the_maps_too(store, written, tmp_path):
    again, other = str(tmp_path / "again.zarr"), str(tmp_path / "other.zarr")
    write(store, again)
    with mc.CacheWriter(other, store, **SOURCE, stride=2) as writer:
        for row, anatomy, _ in reversed(writer.missing()):
            writer.add(row, anatomy, logits(row, anatomy) + (row == 0))
    fingerprints = [mc.LogitCache.open(url).fingerprint for url in (written, again, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_left_before_all_maps_are_there_it_is_resumed(store, tmp_path):
    url = str(tmp_path / "logits.zarr")
    first = write(store, url, steps=7)
    assert len(first) == 24
    with pytest.raises(mc.MtkdError, match=r"is not finished\. Run the program that writes it again \(Segment"):
        mc.LogitCache.open(url)
    [problem] = mc.verify_cache(url)["problems"]
    assert problem["kind"] == "unfinished"
    assert problem["what_to_do"].startswith("1 of 3 shard files are written, the last perhaps in part. Run the program that")
    assert inspect_cache(url)["progress"]["maps"]["kidney"].popitem()[1] == 4
    assert write(store, url) == first[7:]
    assert mc.verify_cache(url, store=store)["ok"] and not write(store, url)


def test_more_shards_than_are_kept_in_memory(store, tmp_path, monkeypatch):
    monkeypatch.setattr("mtkd_cache.cache.gathered.IN_MEMORY", 1)
    url = str(tmp_path / "logits.zarr")
    with mc.CacheWriter(url, store, **SOURCE, stride=2) as writer:
        order = sorted(writer.missing(), key=lambda each: each[1])  # anatomy by anatomy: each shard file is written in two parts
        for row, anatomy, _ in order:
            writer.add(row, anatomy, logits(row, anatomy))
    rows = store.rows("train")
    stored = mc.LogitCache.open(url).read(store.hashes[rows])
    assert np.array_equal(stored[3, 1], np.rint(logits(rows[3], store.anatomies[1]) / 0.25))
    assert mc.verify_cache(url, store=store)["ok"]


def test_after_an_exception_it_is_resumed(store, tmp_path):
    with pytest.raises(ZeroDivisionError):
        with mc.CacheWriter(str(tmp_path / "logits.zarr"), store, **SOURCE, stride=2) as writer:
            for row, anatomy, _ in writer.missing()[:3]:
                writer.add(row, anatomy, logits(row, anatomy))
            raise ZeroDivisionError
    assert len(write(store, tmp_path / "logits.zarr")) == 21


# Writes in a child of its own for each word, which kills itself after so many maps ("m12") or at so many flushes ("f5"), with
# one shard file in memory and one anatomy after the other, so that shard files are written in two parts.
WRITERS = """
import os, signal, sys
import numpy as np
import mtkd_cache as mc
from mtkd_cache.cache import gathered, layout

GRID = {grid}
{logits}
layout.BLOCK, gathered.IN_MEMORY = 5, 1
store, flush, counts = mc.SampleStore.open({store!r}), os.fsync, dict(m=0, f=0)

def count(kind):
    counts[kind] += 1
    if word[0] == kind and counts[kind] == int(word[1:]):
        os.kill(os.getpid(), signal.SIGKILL)

def fsync(file):
    count("f")
    flush(file)

os.fsync = fsync
for word in sys.argv[1:]:
    child = os.fork()
    if not child:
        with mc.CacheWriter(f"{folder}/{{word}}.zarr", store, **{source}, stride=2) as writer:
            for row, anatomy, _ in sorted(writer.missing(), key=lambda each: each[1]):
                writer.add(row, anatomy, logits(row, anatomy))
                count("m")
        os._exit(0)
    print(word, os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_it_is_resumed(store, written, tmp_path):
    kwargs = {"grid": GRID, "logits": inspect.getsource(logits), "store": store.url, "folder": tmp_path, "source": SOURCE}
    words = ["m13", *(f"f{flush}" for flush in (1, 4, 9, 31))]
    done = subprocess.check_output([sys.executable, "-c", WRITERS.format(**kwargs), *words], text=True)
    assert done.splitlines() == [f"{word} {signal.SIGKILL.value}" for word in words]
    lacking = [len(write(store, tmp_path / f"{word}.zarr")) for word in words]
    assert lacking[:3] == [12, 24, 24] and lacking[3] < 24 and lacking[-1] == 0
    for word in words:
        url = str(tmp_path / f"{word}.zarr")
        assert mc.LogitCache.open(url).fingerprint == mc.LogitCache.open(written).fingerprint
        assert mc.verify_cache(url, store=store)["ok"] and not list(Path(url).rglob("*.tmp"))


def test_several_strides_and_recorded_views(store, tmp_path):
    url, strides = str(tmp_path / "logits.zarr"), {"kidney": 4, "tongue": 2}
    recipe = mc.load_recipe("paper", ("cache.views=2", "cache.step=0.5"))
    with mc.CacheWriter(url, store, **SOURCE, stride=strides, recipe=recipe) as writer:
        missing = writer.missing()
        for row, anatomy, view in missing:
            writer.add(row, anatomy, logits(row, anatomy, view, (32 // strides[anatomy],) * 2), view)
        drawn = writer.draw_views([0, store.hashes[1]], 1)
    assert len(missing) == 48 and mc.verify_cache(url, store=store)["ok"]
    cache = mc.LogitCache.open(url)
    for own, read in zip(drawn, cache.draw_views(store.hashes[:2], 1), strict=True):
        assert torch.equal(own, read)
    tongue, kidney = cache.read_arrays(store.hashes[[4]], 1)
    assert np.array_equal(tongue[0, 0], np.rint(logits(4, "tongue", 1) / 0.5)) and kidney.shape == (1, 1, 8, 8)


def test_views_are_added_to_a_cache_of_fewer(store, written):
    recipe = mc.load_recipe("paper", ("cache.views=2",))
    assert {view for _, _, view in write(store, written, recipe=recipe)} == {1}
    cache = mc.LogitCache.open(written)
    assert cache.views == 2 and mc.verify_cache(written, store=store)["ok"]
    assert np.array_equal(cache.read(store.hashes[[4]], 1)[0, 1], np.rint(logits(4, "tongue", 1) / 0.25))


def test_maps_that_are_damaged_on_the_disk_are_missing(store, written):
    path = Path(written, "logits", "c", "1", "0", "0", "0", "0")
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert not mc.verify_cache(written)["ok"]
    missing = write(store, written)
    assert len(missing) == 10 and mc.verify_cache(written, store=store)["ok"]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ((("0" * 64), "kidney", logits(0, "kidney")), "not to hold the sample 000000000000, kidney, view 0"),
        ((10**6, "kidney", logits(0, "kidney")), "has no row 1000000: its 24 samples are counted from 0"),
        ((0, "lung", logits(0, "lung")), "has no anatomy 'lung'. Name one of kidney, tongue"),
        ((0, "kidney", logits(0, "kidney"), 1), "has 1 views, counted from 0"),
        ((0, "kidney", logits(0, "kidney")[:-1]), r"shape \(15, 16\) instead of \(16, 16\)"),
        ((0, "kidney", logits(0, "kidney")[None]), r"shape \(1, 16, 16\) instead of \(16, 16\)"),
        ((0, "kidney", logits(0, "kidney").astype(np.int32)), "logits are floating point, these are torch.int32"),
        ((0, "kidney", np.where(np.eye(16), np.nan, 1)), "kidney/30/image00, kidney, view 0: the logits are not finite"),
        ((0, "kidney", np.where(np.eye(16), -np.inf, 1)), "the logits are not finite"),
        ((0, "kidney", np.full(GRID, 1e5)), "does not fit 16 bits"),
    ],
)
def test_a_bad_map_is_refused_and_not_stored(store, tmp_path, bad, text):
    with mc.CacheWriter(str(tmp_path / "logits.zarr"), store, **SOURCE, stride=2) as writer:
        with pytest.raises(mc.MtkdError, match=text):
            writer.add(*bad)
        assert len(writer.missing()) == 24
    with pytest.raises(mc.MtkdError, match="works in its with block"):
        writer.add(0, "kidney", logits(0, "kidney"))


def test_a_map_given_twice(store, tmp_path):
    url = str(tmp_path / "logits.zarr")
    write(store, url, steps=12)  # one shard file is full, one has two maps
    with mc.CacheWriter(url, store, **SOURCE, stride=2) as writer:
        for row, anatomy in ((0, "kidney"), (5, "tongue")):
            writer.add(row, anatomy, logits(row, anatomy))
            with pytest.raises(mc.MtkdError, match="the cache has other logits of it"):
                writer.add(row, anatomy, logits(row, anatomy) + 1)
        assert len(writer.missing()) == 12


def test_probabilities_are_noticed(store, tmp_path):
    url = str(tmp_path / "logits.zarr")
    with pytest.raises(mc.MtkdError, match=r"all logits of 5 samples lie between 0 and 1"):
        with mc.CacheWriter(url, store, **SOURCE, stride=2) as writer:
            for row, anatomy, _ in writer.missing():
                writer.add(row, anatomy, 1 / (1 + np.exp(-logits(row, anatomy))))
    assert len(write(store, url)) == 24


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"source": "another"}, r"source Segment Everything 3, prompt 'organ' \(now another\)"),
        ({"license": "MIT"}, r"license CC BY-NC-SA 4.0 \(now MIT\)"),
        ({"stride": 4}, r"stride 2 \(now 4\)"),
        ({"splits": ("validation",)}, "12 samples that are no longer selected"),
        ({"license": " "}, "the license of the logits is empty"),
        ({"stride": 5}, "stride 5 of kidney does not divide the images, 32x32"),
        ({"stride": {"kidney": 2}}, "strides of kidney, but .* has kidney, tongue"),
    ],
)
def test_a_writer_that_does_not_fit_the_cache_is_refused(store, tmp_path, changed, text):
    write(store, tmp_path / "logits.zarr", steps=1)
    with pytest.raises(mc.MtkdError, match=text):
        write(store, tmp_path / "logits.zarr", **changed)
    assert len(write(store, tmp_path / "logits.zarr")) == 23


def test_a_build_and_a_writer_do_not_touch_each_others_caches(store, organ_teachers, recipe, accelerator, written, tmp_path):
    with pytest.raises(mc.MtkdError, match=r"other settings: precision external \(now no\)"):
        build(store, organ_teachers, written, recipe(), accelerator)
    build(store, organ_teachers, str(tmp_path / "built.zarr"), recipe(), accelerator)
    with pytest.raises(mc.MtkdError, match=r"precision no \(now external\), source not set \(now Segment"):
        write(store, tmp_path / "built.zarr")
    assert mc.verify_cache(written)["ok"] and mc.verify_cache(str(tmp_path / "built.zarr"))["ok"]


def test_two_writers_at_once(store, tmp_path):
    with mc.CacheWriter(str(tmp_path / "logits.zarr"), store, **SOURCE, stride=2):
        with pytest.raises(mc.MtkdError, match="is being written by another process"):
            write(store, tmp_path / "logits.zarr")


@pytest.mark.parametrize("options", [["--live", "2"], ["--repair"], []])
def test_verify_has_nobody_to_ask(store, organ_teachers, written, options):
    words = ["verify", "--cache", written, "--store", store.url, "--teachers", str(organ_teachers), *options]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "has the logits of Segment Everything 3" in done.output and "no teacher to ask" in done.output


def test_the_commands_take_it(store, written, tmp_path):
    def run(*words: str) -> str:
        done = CliRunner().invoke(main, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    assert "whole (name" in run("verify", "--cache", written)
    inspected = run("inspect", "--cache", written, "--sheet", str(tmp_path / "sheet.png"), "--store", store.url)
    assert "source       Segment Everything 3, prompt 'organ' (license: CC BY-NC-SA 4.0)" in inspected
    tiny = ("student.weights=none", "student.epochs=1", "student.batch=4")
    sets = [word for value in tiny for word in ("--set", value)]
    folder = str(tmp_path / "run")
    run("train-student", "--cache", written, "--store", store.url, "--run", folder, "--device", "cpu", *sets)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["cache_fingerprint"] == mc.LogitCache.open(written).fingerprint
    assert record["teachers"]["kidney"]["license"] == SOURCE["license"]
    run("evaluate", "--run", folder, "--store", store.url, "--split", "validation", "--device", "cpu")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Segment Everything 3, prompt 'organ' (license: CC BY-NC-SA 4.0)" in card
