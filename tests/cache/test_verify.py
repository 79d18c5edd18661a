"""Whatever happens to a cache's files is found, and a repair rebuilds what is damaged and nothing else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support import build

from mtkd_cache.cache import builder
from mtkd_cache.cache.card import CARD
from mtkd_cache.cache.loader import BatchReader, preload
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, dump_checked_json, load_checked_json
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked

FLIPS = int(os.environ.get("MTKD_FLIPS", "60"))
OTHERS = int(os.environ.get("MTKD_DAMAGES", "12"))
BLOCK = 4  # twelve samples make three shard files a view
pytestmark = pytest.mark.usefixtures("small_shards")
FOREIGN = "records/00001-001.json"


@pytest.fixture(scope="module")
def master(store, organ_teachers, recipe, accelerator, tmp_path_factory) -> Path:
    """A finished cache of 12 samples in 2 views. Read only."""
    path = tmp_path_factory.mktemp("master") / "logits.zarr"
    build(store, organ_teachers, str(path), recipe("cache.views=2"), accelerator)
    return path


@pytest.fixture(scope="module", params=["cache.step=0.5", "augmentation.shift=0.05"])
def foreign(request, store, organ_teachers, recipe, accelerator, tmp_path_factory) -> Path:
    """A cache of the same samples and teachers, of another step or with other views. Read only."""
    path = tmp_path_factory.mktemp("foreign") / "logits.zarr"
    build(store, organ_teachers, str(path), recipe("cache.views=2", request.param), accelerator)
    return path


@pytest.fixture
def cache(master, tmp_path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "logits.zarr"))


@pytest.fixture(scope="module")
def truth(master, store) -> dict[tuple[str, int], np.ndarray]:
    return read_all(master, store)


def read_all(path: Path, store: SampleStore) -> dict[tuple[str, int], np.ndarray]:
    cache = LogitCache.open(str(path))
    return {(sha256, view): cache.read([sha256], view)[0] for sha256 in cache.row_of for view in range(cache.views)}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def files(path: Path) -> list[Path]:
    """All but the card, which anyone may edit."""
    return [path / key for key in Folder(path).keys() if key != CARD]


def students_are_safe(path: Path, store: SampleStore, truth: dict) -> bool:
    """A student gets the right maps or an MtkdError, nothing else."""
    try:
        return same(read_all(path, store), truth)
    except MtkdError:
        return True


def damage_and_restore(cache: Path, store, truth, chosen: list[Path], change: Callable[[], None]) -> list[dict]:
    kept = {path: path.read_bytes() for path in chosen}
    change()
    try:
        assert students_are_safe(cache, store, truth), f"a student read wrong maps from {chosen}"
        return verify_cache(str(cache))["problems"]
    finally:
        for path, data in kept.items():
            path.write_bytes(data)


def test_whole_and_current(master, store, organ_teachers):
    result = verify_cache(str(master), store=store, teachers=organ_teachers, live=5)
    assert result["ok"] and result["problems"] == [] and result["finished"]
    assert result["bytes"] + (master / MANIFEST).stat().st_size == sum(path.stat().st_size for path in files(master))
    assert result["files"] + 1 == len(files(master))
    assert result["live"]["samples"] == 5 and result["live"]["maps"] == 10
    assert 0.1 < result["live"]["max_difference"] <= 0.125


def test_flipped_bits_are_found(cache, store, truth):
    random = np.random.default_rng(0)
    paths = files(cache)
    missed = []
    for _ in range(FLIPS):
        path = paths[random.integers(len(paths))]
        data = bytearray(path.read_bytes())
        bit = int(random.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        problems = damage_and_restore(cache, store, truth, [path], lambda path=path, data=data: path.write_bytes(data))
        if [problem["where"] for problem in problems] != [str(path.relative_to(cache))]:
            missed.append((path, bit, problems))
    assert not missed
    assert verify_cache(str(cache))["ok"]


def test_truncations_are_found(cache, store, truth):
    random = np.random.default_rng(1)
    paths = files(cache)
    for _ in range(OTHERS):
        path = paths[random.integers(len(paths))]
        size = int(random.integers(path.stat().st_size))
        problems = damage_and_restore(cache, store, truth, [path], lambda path=path, size=size: os.truncate(path, size))
        assert [problem["where"] for problem in problems] == [str(path.relative_to(cache))]
        assert problems[0]["kind"] == ("changed" if path.name == MANIFEST else "truncated")


def test_deletions_are_found(cache, store, truth):
    for path in np.random.default_rng(2).permutation(files(cache))[:OTHERS]:
        problems = damage_and_restore(cache, store, truth, [path], path.unlink)
        assert [(problem["kind"], problem["where"]) for problem in problems] == [("missing", str(path.relative_to(cache)))]


def test_swaps_are_found(cache, store, truth):
    random = np.random.default_rng(3)
    paths = files(cache)
    for _ in range(OTHERS):
        one, other = random.choice(len(paths), 2, replace=False)
        pair = [paths[one], paths[other]]

        def swap(pair=pair):
            first, second = (path.read_bytes() for path in pair)
            pair[0].write_bytes(second)
            pair[1].write_bytes(first)

        problems = damage_and_restore(cache, store, truth, pair, swap)
        where, swapped = {problem["where"] for problem in problems}, {str(path.relative_to(cache)) for path in pair}
        assert where == swapped if MANIFEST not in swapped else MANIFEST in where


def test_shards_may_lie_on_another_disk(cache, store, organ_teachers, recipe, accelerator, tmp_path):
    (cache / "logits").rename(tmp_path / "elsewhere")
    (cache / "logits").symlink_to(tmp_path / "elsewhere")
    assert verify_cache(str(cache))["ok"]
    assert build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)["maps_computed"] == 0


def test_unknown_files_are_reported_and_kept(cache, store, organ_teachers):
    (cache / "logits" / "c" / "9").mkdir()
    (cache / "logits" / "c" / "9" / "0").write_bytes(b"?")
    problems = verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)["problems"]
    assert [(problem["kind"], problem["where"]) for problem in problems] == [("unknown", "logits/c/9/0")]


@pytest.mark.parametrize(
    ("key", "maps"),
    [
        ("logits/c/1/1/0/0/0", 2 * BLOCK),
        ("records/00002-000.json", 2 * BLOCK),
        ("manifest.json", 0),
        ("plan.json", 0),
        ("zarr.json", 0),
        ("sha256/c/0/0", 0),
        ("crc32c/c/0/0/0", 0),
        ("logits/zarr.json", 0),
    ],
)
def test_repair_rebuilds_what_is_damaged_and_no_more(cache, master, store, organ_teachers, key, maps):
    data = bytearray((cache / key).read_bytes())
    data[len(data) // 2] ^= 4
    (cache / key).write_bytes(data)
    result = verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)
    assert result["ok"] and [problem["where"] for problem in result["repaired"]] == [key]
    assert result["maps_computed"] == maps
    assert all((master / path.relative_to(cache)).read_bytes() == path.read_bytes() for path in files(cache))
    assert len(files(cache)) == len(files(master))


def test_repair_of_many_damages_at_once(cache, store, organ_teachers, truth):
    for path in files(cache):
        if path.name not in ("manifest.json", "zarr.json", "00000-000.json"):
            os.truncate(path, path.stat().st_size // 2)
    shutil.copy(cache / "records" / "00000-000.json", cache / "records" / "00001-000.json")
    with pytest.raises(MtkdError, match=r"plan.json is lost"):
        verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)


def test_repair_where_plan_manifest_and_half_the_shards_are_gone(cache, store, organ_teachers, truth):
    for key in ("plan.json", "manifest.json", "logits/c/0/0/0/0/0", "logits/c/2/1/0/0/0"):
        (cache / key).unlink()
    result = verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)
    assert result["ok"] and result["maps_computed"] == 4 * BLOCK
    assert same(read_all(cache, store), truth)


def test_a_build_alone_repairs_metadata(cache, store, organ_teachers, recipe, accelerator, truth):
    (cache / "crc32c" / "zarr.json").write_text("{}")
    assert build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)["maps_computed"] == 0
    assert verify_cache(str(cache))["ok"] and same(read_all(cache, store), truth)


def test_stale_teacher_is_found_and_renewed_alone(cache, store, organ_teachers, untrained_teacher, tmp_path, truth):
    teachers = Path(shutil.copytree(organ_teachers, tmp_path / "teachers"))
    untrained_teacher(teachers, "tongue", seed=9)
    result = verify_cache(str(cache), store=store, teachers=teachers, live=3)
    assert {problem["kind"] for problem in result["problems"]} == {"teacher", "live"}
    assert all("tongue" in problem["where"] for problem in result["problems"])
    result = verify_cache(str(cache), store=store, teachers=teachers, repair=True, live=3)
    assert result["ok"] and result["maps_computed"] == 2 * len(store.rows("train"))
    now = read_all(cache, store)
    assert all(np.array_equal(now[key][0], truth[key][0]) and not np.array_equal(now[key][1], truth[key][1]) for key in truth)


def test_stale_teacher_of_an_unfinished_cache_is_renewed(
    cache, store, organ_teachers, untrained_teacher, tmp_path, recipe, accelerator, truth
):
    """The maps of the others are kept although no metadata says yet how to read them."""
    for key in ("manifest.json", "zarr.json", "logits/zarr.json", "logits/c/2/1/0/0/0", "records/00002-001.json"):
        (cache / key).unlink()
    teachers = Path(shutil.copytree(organ_teachers, tmp_path / "teachers"))
    untrained_teacher(teachers, "tongue", seed=9)
    samples = len(store.rows("train"))
    result = build(store, teachers, str(cache), recipe("cache.views=2"), accelerator)
    assert result["maps_computed"] == 2 * samples + BLOCK
    assert all(np.array_equal(maps[0], truth[key][0]) for key, maps in read_all(cache, store).items())


def test_unfinished_is_reported_and_its_shards_are_checked(cache, store, organ_teachers):
    for key in ("manifest.json", "zarr.json", "logits/c/0/1/0/0/0", "records/00002-001.json"):
        (cache / key).unlink()
    result = verify_cache(str(cache), store=store, teachers=organ_teachers, live=1)
    assert not result["ok"] and not result["finished"] and result["live"] is None
    assert [(problem["kind"], problem["where"]) for problem in result["problems"]] == [
        ("unfinished", str(cache)),
        ("missing", "logits/c/0/1/0/0/0"),
    ]
    assert "5 of 6" in result["problems"][0]["what_to_do"]


def test_unfinished_is_unfinished_for_every_reader(cache, store, organ_teachers, recipe, accelerator, monkeypatch):
    (cache / "records" / "00000-000.json").unlink()
    monkeypatch.setattr(builder.Builder, "_write", lambda *_: (_ for _ in ()).throw(MtkdError("stop")))
    with pytest.raises(MtkdError, match="stop"):
        build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)
    assert not (cache / "zarr.json").exists()
    with pytest.raises(MtkdError, match="is not finished"):
        LogitCache.open(str(cache))


def test_swapped_records_of_an_unfinished_cache(cache, store, organ_teachers, truth):
    """Two views of the same samples: only their key distinguishes the records."""
    (cache / "manifest.json").unlink()
    pair = [cache / "records" / f"00001-00{view}.json" for view in (0, 1)]
    first, second = (path.read_bytes() for path in pair)
    pair[0].write_bytes(second)
    pair[1].write_bytes(first)
    assert [problem["kind"] for problem in verify_cache(str(cache))["problems"]] == ["foreign", "foreign", "missing"]
    assert verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)["ok"]
    assert same(read_all(cache, store), truth)


def put_in(cache: Path, foreign: Path) -> None:
    """Leave a cache unfinished, with one shard file and its record from another one."""
    for key in ("manifest.json", "zarr.json"):
        (cache / key).unlink()
    for key in ("logits/c/1/1/0/0/0", FOREIGN):
        shutil.copy(foreign / key, cache / key)


def test_a_build_rebuilds_another_caches_shard(cache, foreign, store, organ_teachers, recipe, accelerator, truth):
    put_in(cache, foreign)
    assert FOREIGN in [problem["where"] for problem in verify_cache(str(cache))["problems"] if problem["kind"] == "foreign"]
    assert build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)["maps_computed"] == 2 * BLOCK
    assert verify_cache(str(cache))["ok"] and same(read_all(cache, store), truth)


def test_a_finished_cache_with_another_caches_shard(
    cache, foreign, store, organ_teachers, recipe, accelerator, truth, monkeypatch
):
    """The first versions finished such caches."""
    put_in(cache, foreign)
    with monkeypatch.context() as patch:
        patch.setattr("mtkd_cache.cache.layout.ShardTask.owns", lambda *_: True)
        build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)
    assert [(problem["kind"], problem["where"]) for problem in verify_cache(str(cache))["problems"]] == [("foreign", FOREIGN)]
    result = verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)
    assert result["ok"] and result["maps_computed"] == 2 * BLOCK and same(read_all(cache, store), truth)


def test_no_cache_is_finished_with_another_caches_shard(cache, foreign, store, organ_teachers, recipe, accelerator, monkeypatch):
    """One that was put there while the build went on."""
    put_in(cache, foreign)
    monkeypatch.setattr(builder.Builder, "run", lambda *_: None)
    with pytest.raises(MtkdError, match="is not finished"):
        build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)


@pytest.mark.parametrize(("worst", "maps"), [(0.125, 0), (0.12501, 2 * BLOCK)])
def test_records_that_do_not_name_their_settings_are_judged_by_the_bound(
    cache, store, organ_teachers, recipe, accelerator, worst, maps
):
    record = load_checked_json((cache / FOREIGN).read_bytes())
    del record["settings"]
    record["rows"][-1]["max_error"][1] = worst
    (cache / FOREIGN).write_bytes(dump_checked_json(record))
    (cache / MANIFEST).unlink()
    assert build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)["maps_computed"] == maps
    assert verify_cache(str(cache))["ok"]


def test_another_store_is_reported_and_not_repaired(cache, organ_store, organ_teachers):
    before = {path: path.read_bytes() for path in files(cache)}
    result = verify_cache(str(cache), store=organ_store, teachers=organ_teachers, repair=True)
    assert {problem["kind"] for problem in result["problems"]} == {"other store", "samples"}
    assert before == {path: path.read_bytes() for path in files(cache)}


def test_a_grown_store_is_reported_and_repaired(cache, store, organ_teachers):
    splits = ("train", "validation")
    assert [problem["kind"] for problem in verify_cache(str(cache), store=store, splits=splits)["problems"]] == ["samples"]
    result = verify_cache(str(cache), store=store, teachers=organ_teachers, splits=splits, repair=True)
    assert result["ok"] and len(load_checked_json((cache / MANIFEST).read_bytes())["files"]) == result["files"]
    assert result["maps_computed"] == 2 * 2 * len(store.rows("validation"))


@pytest.mark.parametrize("mode", ["off", "host"])
def test_a_training_reports_which_sample_is_damaged(cache, store, mode):
    """Streamed, or loaded into memory first."""
    opened = LogitCache.open(str(cache))
    rows = store.rows("train")
    shard = cache / "logits/c/1/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    sha256_of = {row: sha256 for sha256, row in opened.row_of.items()}
    name = store.describe(list(store.hashes).index(sha256_of[BLOCK]))
    with pytest.raises(MtkdError, match=rf"^{name}: .*view 0, all anatomies .* is damaged or missing\. Run mtkd-cache verify"):
        preload(BatchReader(store, opened), rows, torch.device("cpu"), mode).read(rows)


def test_a_reader_of_a_cache_that_is_written_again(
    cache, store, organ_teachers, untrained_teacher, tmp_path, recipe, accelerator
):
    """It never mixes maps of two teachers: it is stopped, with the reason. It can go on reading what did not change."""
    teachers = Path(shutil.copytree(organ_teachers, tmp_path / "teachers"))
    hashes = store.hashes[store.rows("train")]
    opened = LogitCache.open(str(cache))
    before = opened.read(hashes)
    build(store, teachers, str(cache), recipe("cache.views=2"), accelerator, splits=("train", "validation"))
    assert np.array_equal(opened.read(hashes), before)
    untrained_teacher(teachers, "tongue", seed=9)
    build(store, teachers, str(cache), recipe("cache.views=2"), accelerator, splits=("train", "validation"))
    with pytest.raises(MtkdError, match=r"was written again since it was opened\. .* into a new --run"):
        opened.read(hashes)
    shutil.rmtree(cache)
    with pytest.raises(MtkdError, match="was deleted or moved since it was opened"):
        opened.read(hashes)


def test_what_cannot_be_done_is_reported(cache, store, organ_teachers, tmp_path):
    with pytest.raises(MtkdError, match="is not a logit cache"):
        verify_cache(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(MtkdError, match=r"--store and --teachers"):
        verify_cache(str(cache), repair=True)
    with pytest.raises(MtkdError, match="sample store of format"):
        verify_cache(store.url)
    with locked(Folder(cache)), pytest.raises(MtkdError, match="is being written"):
        verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)
