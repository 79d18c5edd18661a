"""Reads single chunks out of shard files at the speed of their codec; zarr spends many times that on each chunk.

It knows the one chain that `ArraySpec` writes (Zarr v3 sharding): a shard file ends in its index, a pair (offset, length) of
little-endian uint64 for each chunk and a CRC-32C over them; a chunk is Blosc bytes and their CRC-32C, little-endian uint32.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.folder import Folder

CHECKSUM = 4  # bytes of a CRC-32C
DECODED = slice(4, 8)  # where Blosc's header says how many bytes it decodes to
NEVER_WRITTEN = 2**64 - 1  # an offset in an index
THREADS = 8


@cache
def readers() -> ThreadPoolExecutor:
    """The threads that read the samples of a batch at once; Blosc lets go of Python's lock, and so does a file or a server."""
    return ThreadPoolExecutor(THREADS, "read")


os.register_at_fork(after_in_child=readers.cache_clear)  # a forked process has none of its parent's threads


class ShardReader:
    """Reads the chunks of one array, each a single sample (and view), `shard` of them to a file.

    The index of a local file is kept until the file changes, that of a remote one until what it says is found wrong.
    """

    def __init__(self, url: str, array: zarr.Array):
        """Raises MtkdError where something else than `ArraySpec` wrote the array."""
        self.folder = Folder(url)
        self.name = array.path.strip("/")
        self.item = array.chunks[1:]
        self.bytes = math.prod(self.item) * array.dtype.itemsize
        sharding = array.metadata.codecs[0].to_dict().get("configuration", {})
        names = [[codec["name"] for codec in sharding.get(key, ())] for key in ("codecs", "index_codecs")]
        chain = [["bytes", "blosc", "crc32c"], ["bytes", "crc32c"]]
        if names != chain or array.chunks[0] != 1 or array.shards[1:] != self.item or array.dtype.byteorder == ">":
            raise MtkdError(f"{url}/{self.name} was not written by mtkd-cache. Run the command that makes it again.")
        self.shard = array.shards[0]
        self.indexes: dict[str, tuple[object, np.ndarray]] = {}

    def read(self, row: int, out: np.ndarray, second: int = 0) -> None:
        """Read one sample's chunk, at place `second` of the array's second axis, into an array of the chunk's shape and type.

        Raises ValueError, RuntimeError or OSError where the bytes are absent or not those that were written.
        """
        if out.nbytes != self.bytes or not out.flags.c_contiguous:
            raise TypeError(f"a chunk of {self.name} does not fit an array of shape {out.shape}")
        body = self.stored(row, second)
        if int.from_bytes(body[DECODED], "little") != self.bytes:
            raise ValueError(f"a chunk of {self.name} has another size")
        blosc.decompress(body, out)

    def stored(self, row: int, second: int = 0) -> memoryview:
        """A chunk's Blosc bytes; see `read` for the errors."""
        key = "/".join([self.name, "c", str(row // self.shard), str(second), *["0"] * (len(self.item) - 1)])
        return (self._local if self.folder.local else self._remote)(key, row % self.shard)

    def _local(self, key: str, place: int) -> memoryview:
        file = os.open(f"{self.folder.path}/{key}", os.O_RDONLY)
        try:
            about = os.fstat(file)
            size = about.st_size
            stamp = (about.st_ino, size, about.st_mtime_ns)
            index = self._index(key, stamp, lambda tail: os.pread(file, tail, max(size - tail, 0)))
            offset, length = _span(key, index, place)
            return _checked(key, os.pread(file, length, offset))
        finally:
            os.close(file)

    def _remote(self, key: str, place: int) -> memoryview:
        path = f"{self.folder.path}/{key}"
        known = key in self.indexes
        try:
            index = self._index(key, None, lambda tail: self.folder.fs.cat_file(path, start=-tail))
            offset, length = _span(key, index, place)
            return _checked(key, self.folder.fs.cat_file(path, start=offset, end=offset + length))
        except (ValueError, OSError):
            self.indexes.pop(key, None)
            if known:  # the file may have been replaced since
                return self._remote(key, place)
            raise

    def _index(self, key: str, stamp: object, read_tail: Callable[[int], bytes]) -> np.ndarray:
        """(offset, length) of each chunk of a file, read where it is not known or the file's stamp is another than then."""
        kept = self.indexes.get(key)
        if kept is None or kept[0] != stamp:
            data = _checked(key, read_tail(16 * self.shard + CHECKSUM))
            kept = self.indexes[key] = (stamp, np.frombuffer(data, "<u8").reshape(self.shard, 2))
        return kept[1]


def _checked(key: str, data: bytes) -> memoryview:
    """Bytes without the CRC-32C behind them. Raises ValueError where it does not fit."""
    body = memoryview(data)[:-CHECKSUM]
    if google_crc32c.value(np.frombuffer(body, np.uint8)) != int.from_bytes(data[-CHECKSUM:], "little"):
        raise ValueError(f"a checksum in {key} does not fit")
    return body


def _span(key: str, index: np.ndarray, place: int) -> tuple[int, int]:
    offset, length = map(int, index[place])
    if offset == NEVER_WRITTEN:
        raise ValueError(f"a chunk of {key} was never written")
    return offset, length
