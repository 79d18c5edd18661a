"""Sample store and logit cache behind a URL: an S3 server on this machine, and fsspec's memory."""

import sys
import time

import numpy as np
import pytest
from support import build, served_bucket

from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.folder import LOCK, Folder
from mtkd_cache.storage.lock import locked

SIZE = (32, 32)


@pytest.fixture(scope="module")
def folder(write_organs, tmp_path_factory):
    return write_organs(tmp_path_factory.mktemp("remote") / "organs", images=1, size=SIZE)


@pytest.fixture(scope="module")
def local(folder, organ_split, organ_teachers, recipe, accelerator, tmp_path_factory) -> tuple[SampleStore, LogitCache]:
    """Store and cache on the disk, to compare with."""
    root = tmp_path_factory.mktemp("local")
    ingest(folder, str(root / "samples.zarr"), size=SIZE, split=organ_split)
    store = SampleStore.open(str(root / "samples.zarr"))
    build(store, organ_teachers, str(root / "logits.zarr"), recipe(), accelerator)
    return store, LogitCache.open(str(root / "logits.zarr"))


@pytest.fixture(scope="module")
def bucket():
    with served_bucket() as url:
        yield url


def round_trip(base: str, folder, split, teachers, recipe, accelerator, local) -> None:
    ingest(folder, f"{base}/samples.zarr", size=SIZE, split=split)
    store = SampleStore.open(f"{base}/samples.zarr")
    assert store.fingerprint == local[0].fingerprint
    rows = np.arange(len(store))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(store.read(rows), local[0].read(rows), strict=True))

    url = f"{base}/logits.zarr"
    result = build(store, teachers, url, recipe(), accelerator)
    assert build(store, teachers, url, recipe(), accelerator)["maps_computed"] == 0
    cache = LogitCache.open(url)
    hashes = sorted(cache.row_of)
    assert result["fingerprint"] == cache.fingerprint == local[1].fingerprint
    assert np.array_equal(cache.read(hashes), local[1].read(hashes))
    assert verify_cache(url, store=store, teachers=teachers, live=1)["ok"]

    remote = Folder(url)
    shard = next(remote.keys("logits/c"))
    data = bytearray(remote.read(shard))
    data[len(data) // 3] ^= 1
    remote.write(shard, bytes(data))
    assert [(problem["kind"], problem["where"]) for problem in verify_cache(url)["problems"]] == [("changed", shard)]
    with pytest.raises(MtkdError, match="is damaged or missing"):
        LogitCache.open(url).read(hashes)
    assert verify_cache(url, store=store, teachers=teachers, repair=True)["ok"]
    assert np.array_equal(LogitCache.open(url).read(hashes), local[1].read(hashes))
    remote.delete(shard)
    with pytest.raises(MtkdError, match="is damaged or missing"):
        LogitCache.open(url).read(hashes)


def test_s3(bucket, folder, organ_split, organ_teachers, recipe, accelerator, local):
    round_trip(bucket, folder, organ_split, organ_teachers, recipe, accelerator, local)


def test_memory(folder, organ_split, organ_teachers, recipe, accelerator, local):
    round_trip("memory://anatomy", folder, organ_split, organ_teachers, recipe, accelerator, local)


def test_one_writer_behind_a_url():
    held = Folder("memory://held")
    with locked(held):
        assert list(held.keys()) == [] and held.exists(LOCK)
        with pytest.raises(MtkdError, match=r"is being written by .*process \d+"), locked(held):
            pass
    assert not held.exists(LOCK)


@pytest.mark.parametrize("where", ["s3", "memory"])
def test_of_two_writers_that_start_at_once_one_is_refused(where, bucket, monkeypatch):
    """The second looked for a lock just before the first wrote its own."""
    held = Folder(f"{bucket if where == 's3' else 'memory:/'}/at-once")
    read, looked = Folder.read, []

    def too_early(folder: Folder, key: str) -> bytes:
        looked.append(key)
        if len(looked) == 1:
            raise FileNotFoundError(key)
        return read(folder, key)

    with locked(held):
        before = held.read(LOCK)
        monkeypatch.setattr(Folder, "read", too_early)
        with pytest.raises(MtkdError, match="is being written by another process"), locked(held):
            pass
        assert held.read(LOCK) == before


@pytest.mark.parametrize("content", [b'{"owner": "gone", "token": "0", "time": 0}', b"{"])
def test_a_dead_writers_lock_is_taken_over(content):
    held = Folder("memory://dead")
    held.write(LOCK, content)
    with locked(held):
        assert b"gone" not in held.read(LOCK)
    assert not held.exists(LOCK)


def test_a_writer_lives_through_a_network_that_is_away_for_a_moment(monkeypatch):
    held, written = Folder("memory://away"), []

    def write(folder: Folder, key: str, data: bytes) -> None:
        written.append(key)
        if len(written) == 2:
            raise MtkdError("no network")
        folder.fs.pipe_file(f"{folder.path}/{key}", data)

    monkeypatch.setattr("mtkd_cache.storage.lock.HEARTBEAT", 0.01)
    monkeypatch.setattr(Folder, "write", write)
    with locked(held):
        deadline = time.monotonic() + 10
        while len(written) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(written) >= 4 and not held.exists(LOCK)


def test_no_bucket(bucket, local, organ_teachers, recipe, accelerator):
    with pytest.raises(MtkdError, match=r"nowhere.*cannot be written"):
        build(local[0], organ_teachers, "s3://nowhere/logits.zarr", recipe(), accelerator)


def test_missing_s3fs_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(MtkdError, match=r"pip install 'mtkd-cache\[s3\]'"):
        Folder("s3://anatomy/logits.zarr")


def test_unknown_protocol():
    with pytest.raises(MtkdError, match="nothing://"):
        Folder("nothing://anatomy")
