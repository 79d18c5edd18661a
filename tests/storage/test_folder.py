"""Files that are written whole or not at all, folders by any name, and one writer at a time."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zarr

from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.storage import lock
from mtkd_cache.storage.checked_json import MANIFEST, read_checked_json
from mtkd_cache.storage.folder import LOCK, Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.storage.shard_writer import ArraySpec

KILLED_AT_THE_FLUSH = """
import os, signal, sys
from pathlib import Path
from mtkd_cache.storage.folder import write_durably
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_durably(Path(sys.argv[1]), b"new" * 100_000)
"""
SUCCESSOR = json.dumps({"owner": "another machine", "token": "another", "time": 0.0}).encode()


def enter(path: Path) -> None:
    with locked(Folder(path)):
        pass


def test_a_writer_killed_while_it_flushes_leaves_the_old_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED_AT_THE_FLUSH, tmp_path / "file"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a::b", "memory::c", "simplecache::d/e"])
def test_a_local_path_with_colons_is_a_local_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = Folder(name)
    with locked(folder):
        folder.write("key", b"here")
        for key, data in ArraySpec("array", "uint8", (2,), ("sample", "x")).metadata(1).items():
            folder.write(key, data)
        folder.write("zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    assert (tmp_path / name / "key").read_bytes() == folder.read("key") == b"here"
    assert list(folder.keys()) == ["array/zarr.json", "key", "zarr.json"]
    assert isinstance(folder.zarr()["array"], zarr.Array)


def test_only_the_writers_own_temporary_files_are_removed_and_not_listed(tmp_path):
    own, foreign = ("a.json.123.tmp", "below/c.0.7.tmp"), ("mine.tmp", "below/draft.x.tmp", "folder.9.tmp/kept")
    for key in (*own, *foreign):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(b"x")
    folder = Folder(tmp_path)
    assert sorted(folder.keys()) == sorted(foreign)
    folder.delete_temporaries()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(foreign)


def test_a_folder_at_the_place_of_a_file_is_reported(tmp_path):
    (tmp_path / "key").mkdir()
    with pytest.raises(MtkdError, match=r"key: cannot be written \(Is a directory\)"):
        Folder(tmp_path).write("key", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_system_without_fcntl_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(MtkdError, match="Windows"):
        runpy.run_path(lock.__file__)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_web_server_is_refused_in_words(scheme):
    with pytest.raises(MtkdError, match=f"{scheme}://.* cannot be written. Name a local folder"):
        Folder(f"{scheme}://127.0.0.1:9/samples.zarr")


@pytest.mark.parametrize("name", ["", "/"])
def test_an_empty_name_is_refused(name):
    with pytest.raises(MtkdError, match=f"'{name}' names no folder"):
        Folder(name)


@pytest.mark.parametrize(
    ("method", "use"),
    [
        ("exists", Folder.exists),
        ("cat_file", lambda folder: folder.read("key")),
        ("find", lambda folder: list(folder.keys())),
        ("rm_file", lambda folder: folder.delete("key")),
    ],
)
def test_a_url_that_cannot_be_used_is_reported_in_words(method, use, monkeypatch):
    def refuse(*arguments) -> None:
        raise RuntimeError("Unable to locate credentials.\nmore")

    folder = Folder("memory://refused")
    monkeypatch.setattr(folder.fs, method, refuse)
    with pytest.raises(
        MtkdError, match=r"memory://refused.* \(Unable to locate credentials\)\. Check the address, the credentials"
    ):
        use(folder)


def test_a_file_that_is_absent_behind_a_url_is_no_error_of_the_network():
    with pytest.raises(FileNotFoundError):
        Folder("memory://absent").read("key")
    Folder("memory://absent").delete("key")


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_in_the_place_of_a_folder_is_named(below, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MtkdError, match=r"/file is a file\. Name a folder"):
        read_checked_json(Folder(f"{tmp_path}/file{below}"), MANIFEST)


def test_a_locked_folder_is_distinguished_from_one_that_cannot_be_locked(tmp_path, monkeypatch):
    with locked(Folder(tmp_path / "a")), locked(Folder(tmp_path / "b")), pytest.raises(LockedError):
        enter(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(MtkdError, match="Not a directory"):
        enter(tmp_path / "file" / "below")

    def no_locks(file: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(MtkdError, match="cannot be locked") as caught:
        enter(tmp_path / "a")
    assert not isinstance(caught.value, LockedError) and "No locks available" in str(caught.value)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_no_permission_is_not_reported_as_busy(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MtkdError, match="Permission denied") as caught:
        enter(tmp_path)
    assert not isinstance(caught.value, LockedError)


def test_a_lock_file_that_cannot_be_opened_is_reported(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(MtkdError, match="Is a directory"):
        enter(tmp_path)


@pytest.mark.parametrize("left", [SUCCESSOR, None])
def test_a_writer_that_lost_its_lock_leaves_its_successors_alone(left):
    """A writer behind a URL that was suspended, while another took its lock over (and has finished: None)."""
    folder = Folder("memory://suspended")
    remote = lock._RemoteLock(folder)
    remote.acquire()
    before = folder.read(LOCK)
    folder.write(LOCK, before[:-1] + b" }")
    remote.renew()
    assert not folder.lost and folder.read(LOCK) != before[:-1] + b" }"  # its own is renewed
    if left:
        folder.write(LOCK, left)
    else:
        folder.delete(LOCK)
    remote.renew()
    with pytest.raises(MtkdError, match="took the lock over"):
        folder.write("key", b"torn")
    with pytest.raises(MtkdError, match="took the lock over"):
        remote.release()
    other = Folder("memory://suspended")
    assert (other.read(LOCK) if other.exists(LOCK) else None) == left
    assert not other.exists("key")
    other.delete(LOCK)


def test_a_lost_lock_is_an_error_at_the_end_even_without_a_further_write():
    folder, other = Folder("memory://lost"), Folder("memory://lost")
    with pytest.raises(MtkdError, match="took the lock over"), locked(folder):
        other.write(LOCK, SUCCESSOR)
    assert other.read(LOCK) == SUCCESSOR
    with locked(other):  # the successor has expired as well
        assert other.read(LOCK) != SUCCESSOR
