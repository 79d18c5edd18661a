"""Folders on a local disk or behind an fsspec URL (s3://, gs://, memory://), whose files are written completely or not at all.

A local file is written under a temporary name, flushed to the disk and renamed; an object store's put is atomic by itself.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import fsspec
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from mtkd_cache.errors import MtkdError, first_line

LOCK = ".lock"
FRESH = {"use_listings_cache": False}  # other processes write to the same folder
TEMPORARY = re.compile(r".+\.\d+\.tmp")  # NAME.PID.tmp, see `write_durably`
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # what reading a file that is not there raises
NOT_WRITABLE = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EROFS)


class Folder:
    """One folder and the files below it, addressed by keys such as ``logits/c/0/0/0/0/0``."""

    def __init__(self, url: str | Path):
        self.url = str(url).rstrip("/")
        self.lost = False  # whether another writer took over the lock behind a URL: every write is then refused
        if not self.url:
            raise MtkdError(f"{str(url)!r} names no folder. Name one, or a URL; a variable of the shell may not be set.")
        if self.url.startswith(("http://", "https://")):
            raise MtkdError(f"{self.url}: a web server's files cannot be written. Name a local folder, s3:// or gs://.")
        try:
            if "://" in self.url:
                self.fs, path = fsspec.core.url_to_fs(self.url, **FRESH)
            else:  # fsspec would read a path with :: as a chain of file systems
                self.fs, path = LocalFileSystem(), LocalFileSystem._strip_protocol(self.url)
        except ImportError as error:
            raise MtkdError(f"{self.url}: {error} (for s3:// that is pip install 'mtkd-cache[s3]').") from error
        except ValueError as error:
            raise MtkdError(f"{self.url}: {error}.") from error
        self.local = isinstance(self.fs, LocalFileSystem)
        self.path = path.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def exists(self, key: str = "") -> bool:
        if self.local:
            return Path(self.path, key).exists()
        with self._in_words(key):
            return bool(self.fs.exists(f"{self.path}/{key}".rstrip("/")))

    def read(self, key: str) -> bytes:
        """The bytes of one file. Raises FileNotFoundError, and MtkdError where a URL cannot be read."""
        with self._in_words(key):
            return bytes(self.fs.cat_file(f"{self.path}/{key}"))

    @contextmanager
    def _in_words(self, key: str, done: str = "read", passed: tuple[type[OSError], ...] = ABSENT) -> Iterator[None]:
        """Tell why a URL cannot be used. The errors in `passed`, and all of a local folder, stay as they are."""
        try:
            yield
        except Exception as error:
            if self.local or isinstance(error, passed):
                raise
            where = f"{self.url}/{key}".rstrip("/")
            raise MtkdError(
                f"{where} cannot be {done} ({first_line(error)}). Check the address, the credentials and the network."
            ) from error

    def write(self, key: str, data: bytes) -> None:
        """Write one file completely or not at all. Raises MtkdError for a full disk, a path or permission that does not allow it,
        an object store that refuses, and a lost lock."""
        if not self.local:
            self._put(key, data, "overwrite")
            return
        target = Path(self.path, key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_durably(target, data)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise MtkdError(
                    f"{target}: the disk is full. Finished work is kept; free some space and run the same command again."
                ) from error
            if error.errno in NOT_WRITABLE:
                raise MtkdError(f"{target}: cannot be written ({error.strerror}). Name another folder.") from error
            raise

    def create(self, key: str, data: bytes) -> None:
        """Create one file behind a URL. Raises FileExistsError where it exists, and in all but one of the processes that try."""
        try:
            self._put(key, data, "create")
        except MtkdError as error:
            if self.exists(key):
                raise FileExistsError(key) from error
            raise

    def _put(self, key: str, data: bytes, mode: str) -> None:
        if self.lost:
            raise MtkdError(f"{self.url} is being written by another process, which took the lock over. Run this again later.")
        with self._in_words(key, "written", passed=()):
            self.fs.pipe_file(f"{self.path}/{key}", data, mode=mode)

    def delete(self, key: str) -> None:
        """Delete one file, if it exists. Raises MtkdError where a folder is at its place."""
        path = f"{self.path}/{key}"
        if self.local and Path(path).is_dir():
            raise MtkdError(f"{path} is a folder, where a file belongs. Move it elsewhere.")
        with suppress(FileNotFoundError), self._in_words(key, "deleted"):
            self.fs.rm_file(path)

    def keys(self, below: str = "") -> Iterator[str]:
        """The keys of the files below a key, sorted, links to folders followed; without temporary files and the lock."""
        root = f"{self.path}/{below}".rstrip("/")
        start = len(self.path) + 1
        if self.local:
            names = [f"{folder}/{name}" for folder, _, files in os.walk(root, followlinks=True) for name in files]
        else:
            with self._in_words(below):
                names = self.fs.find(root)
        for name in sorted(names):
            key = name[start:]
            if key != LOCK and not TEMPORARY.fullmatch(key):
                yield key

    def delete_temporaries(self) -> None:
        """Remove the temporary files of a killed writer. Only the holder of the lock may call it."""
        if self.local:
            for path in Path(self.path).rglob("*.tmp"):
                if TEMPORARY.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)

    def zarr(self) -> zarr.Group:
        """The Zarr v3 group in this folder, read-only."""
        store: Store
        if self.local:
            store = LocalStore(self.path, read_only=True)
        else:
            store = FsspecStore.from_url(self.url, storage_options=FRESH, read_only=True)
        return zarr.open_group(store, mode="r", zarr_format=3)


def write_durably(target: Path, data: bytes) -> None:
    """Write a local file so that after a crash or a power loss it holds either the old bytes or all the new ones."""
    with durable_file(target) as file:
        file.write(data)


@contextmanager
def durable_file(target: Path) -> Iterator[BinaryIO]:
    """A temporary file, open for writing, that replaces the target after the block as in `write_durably`; an error removes it."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename or temporary) == str(temporary):
            error.filename = str(target)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
