"""One writer at a time. A local folder is locked by the kernel, so that a killed writer leaves no lock behind; behind a URL a
small object with a heartbeat does it."""

import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage import LOCK, Folder

HEARTBEAT = 20.0  # seconds between two signs of life of a writer behind a URL
SILENCE = 90.0  # seconds after which such a writer is taken for dead


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold the folder for writing. Raises MtkdError at once where another process holds it."""
    with _locked_file(folder) if folder.local else _locked_object(folder):
        yield


@contextmanager
def _locked_file(folder: Folder) -> Iterator[None]:
    path = Path(folder.path, LOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtkdError(f"{folder} cannot be made ({error.strerror}). Name another folder.") from error
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise _held(folder, "another process") from error
    try:
        yield
    finally:
        os.close(file)


@contextmanager
def _locked_object(folder: Folder) -> Iterator[None]:
    mine = f"{platform.node()}, process {os.getpid()}"
    token = os.urandom(8).hex()

    def sign(write: Callable[[str, bytes], None]) -> None:
        write(LOCK, json.dumps({"owner": mine, "token": token, "time": time.time()}).encode())

    def holder() -> dict | None:
        try:
            return json.loads(folder.read(LOCK))
        except FileNotFoundError:
            return None
        except ValueError:
            return {"time": 0.0}

    found = holder()
    if found and time.time() - found["time"] < SILENCE:
        raise _held(folder, found["owner"])
    if found:
        folder.delete(LOCK)
    try:
        sign(folder.create)
    except FileExistsError as error:
        raise _held(folder, "another process") from error
    if (holder() or {}).get("token") != token:  # another took the dead writer's lock for dead as well
        raise _held(folder, "another process")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(MtkdError):  # a network that is away for a moment
                sign(folder.write)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        folder.delete(LOCK)


def _held(folder: Folder, owner: str) -> MtkdError:
    return MtkdError(f"{folder} is being written by {owner}. Wait until it has finished, or name another folder.")
