"""One writer at a time. A local folder is locked by the kernel, so that a killed writer leaves no lock behind; behind a URL a
small object with a heartbeat does it."""

import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.storage.folder import LOCK, Folder

HEARTBEAT = 20.0  # seconds between two signs of life of a writer behind a URL
SILENCE = 90.0  # seconds after which such a writer is taken for dead


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold the folder for writing.

    Raises LockedError at once where another process holds it, MtkdError where it cannot be locked, or was lost by the end to
    another writer because this process, behind a URL, gave no sign of life for too long.
    """
    with locked_file(Path(folder.path, LOCK), folder.url) if folder.local else _locked_object(folder):
        yield


@contextmanager
def locked_file(path: Path, name: str) -> Iterator[None]:
    """Hold a local lock file, made where it is absent, that stands for `name`. Raises LockedError or MtkdError as `locked`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MtkdError(f"{name} cannot be made or written ({error.strerror}). Name another folder, or make room.") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held(name, "another process") from error
        except OSError as error:
            raise MtkdError(f"{name} cannot be locked ({error.strerror}). Name a folder on another disk.") from error
        yield
    finally:
        os.close(file)


class _Sign:
    """A writer's sign of life behind a URL: an object that names it and says when it was last renewed."""

    def __init__(self, folder: Folder):
        self.folder, self.token = folder, os.urandom(8).hex()

    def _content(self) -> bytes:
        owner = f"{platform.node()}, process {os.getpid()}"
        return json.dumps({"owner": owner, "token": self.token, "time": time.time()}).encode()

    def _found(self) -> dict:
        try:
            return json.loads(self.folder.read(LOCK))
        except FileNotFoundError:
            return {}
        except ValueError:
            return {"time": 0.0}

    def take(self) -> None:
        found = self._found()
        if found and time.time() - found["time"] < SILENCE:
            raise _held(self.folder.url, found["owner"])
        if found:
            self.folder.delete(LOCK)
        try:
            self.folder.create(LOCK, self._content())
        except FileExistsError as error:
            raise _held(self.folder.url, "another process") from error
        self.check()  # another may have taken the dead writer's lock for dead as well
        if self.folder.lost:
            raise _held(self.folder.url, "another process")

    def check(self) -> None:
        self.folder.lost = self._found().get("token") != self.token

    def renew(self) -> None:
        self.check()
        if not self.folder.lost:
            self.folder.write(LOCK, self._content())

    def release(self) -> None:
        self.check()
        if self.folder.lost:
            raise MtkdError(
                f"{self.folder}: another process took the lock over, as this one gave no sign of life for {SILENCE:.0f} s."
                "\nWait until that has finished, and run the same command again."
            )
        self.folder.delete(LOCK)


@contextmanager
def _locked_object(folder: Folder) -> Iterator[None]:
    sign = _Sign(folder)
    sign.take()
    stop = threading.Event()

    def beat() -> None:
        while not folder.lost and not stop.wait(HEARTBEAT):
            with suppress(Exception):  # a network that is away for a moment
                sign.renew()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sign.release()


def _held(name: str, owner: str) -> LockedError:
    return LockedError(f"{name} is being written by {owner}. Wait until it has finished, or name another folder.")
