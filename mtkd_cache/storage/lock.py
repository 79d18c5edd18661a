"""One writer at a time. A local folder is locked by the kernel, so that a killed writer leaves no lock behind; a folder behind a
URL by a small object that its writer renews (a heartbeat)."""

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.storage.folder import LOCK, Folder

try:
    import fcntl
except ImportError as error:
    raise MtkdError("mtkd-cache locks files with fcntl, which Windows lacks. Use it on Linux, macOS or WSL.") from error

HEARTBEAT = 20.0  # seconds between two renewals of a lock behind a URL
EXPIRY = 90.0  # seconds without a renewal after which another writer may take such a lock over


def locked(folder: Folder) -> AbstractContextManager[None]:
    """Lock a folder for writing.

    Raises:
        LockedError: another process holds the lock; raised at once.
        MtkdError: the folder cannot be locked; or, at the end, the lock behind a URL was not renewed for `EXPIRY` seconds and
            another writer took it over.
    """
    return locked_file(Path(folder.path, LOCK), folder.url) if folder.local else _locked_object(folder)


@contextmanager
def locked_file(path: Path, name: str) -> Iterator[None]:
    """Lock a local file, created if absent, on behalf of `name`. Raises LockedError or MtkdError as `locked`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MtkdError(f"{name} cannot be created or written ({error.strerror}). Name another folder, or free space.") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _locked_by(name, "another process") from error
        except OSError as error:
            raise MtkdError(f"{name} cannot be locked ({error.strerror}). Name a folder on another disk.") from error
        yield
    finally:
        os.close(file)


class _RemoteLock:
    """A lock object behind a URL, which names its writer and the time of its last renewal."""

    def __init__(self, folder: Folder):
        self.folder, self.token = folder, os.urandom(8).hex()

    def _content(self) -> bytes:
        owner = f"{platform.node()}, process {os.getpid()}"
        return json.dumps({"owner": owner, "token": self.token, "time": time.time()}).encode()

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self.folder.read(LOCK))
            return content
        except FileNotFoundError:
            return {}
        except ValueError:
            return {"time": 0.0}

    def acquire(self) -> None:
        current = self._read()
        if current and time.time() - current["time"] < EXPIRY:
            raise _locked_by(self.folder.url, current["owner"])
        if current:
            self.folder.delete(LOCK)
        with suppress(FileExistsError):
            self.folder.create(LOCK, self._content())
        if not self._owned():  # another process locked the folder, or took the expired lock over, at the same time
            raise _locked_by(self.folder.url, "another process")

    def _owned(self) -> bool:
        self.folder.lost = self._read().get("token") != self.token
        return not self.folder.lost

    def renew(self) -> None:
        if self._owned():
            self.folder.write(LOCK, self._content())

    def release(self) -> None:
        if not self._owned():
            raise MtkdError(
                f"{self.folder}: another process took the lock over, as this one had not renewed it for {EXPIRY:.0f} s."
                "\nWait until that has finished, and run the same command again."
            )
        self.folder.delete(LOCK)


@contextmanager
def _locked_object(folder: Folder) -> Iterator[None]:
    lock = _RemoteLock(folder)
    lock.acquire()
    stop = threading.Event()

    def beat() -> None:
        while not folder.lost and not stop.wait(HEARTBEAT):
            with suppress(Exception):  # a brief network failure
                lock.renew()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        lock.release()


def _locked_by(name: str, owner: str) -> LockedError:
    return LockedError(f"{name} is being written by {owner}. Wait until it has finished, or name another folder.")
