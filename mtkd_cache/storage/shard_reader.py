"""Reads single chunks of shard files at the speed of their codec; zarr's own overhead per chunk is many times that.

It supports the codec chains that `ArraySpec` writes (Zarr v3 sharding): a shard file ends with its index, a pair (offset,
length) of little-endian uint64 for each chunk, and the CRC-32C of the index; a chunk is the bytes of Blosc, or of pcodec, and
their CRC-32C, little-endian uint32.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage import pcodec
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.shard_writer import shard_key

CHECKSUM = 4  # bytes of a CRC-32C
DECODED_SIZE = slice(4, 8)  # in the header of Blosc bytes
NEVER_WRITTEN = 2**64 - 1  # the offset of such a chunk in the index
THREADS = 8


@cache
def readers() -> ThreadPoolExecutor:
    """The threads that read the samples of a batch in parallel; file and network access and Blosc release the GIL."""
    return ThreadPoolExecutor(THREADS, "read")


os.register_at_fork(after_in_child=readers.cache_clear)  # a forked process does not inherit threads


class ShardReader:
    """Reads the chunks of one array, each a single sample (and view), `shard` of them to a file.

    The index of a local file is reused until the file changes, that of a remote file until a chunk does not match it.
    """

    def __init__(self, url: str, array: zarr.Array[Any]):
        """Raises MtkdError where the array was not written by `ArraySpec`."""
        self.folder = Folder(url)
        self.name = array.path.strip("/")
        self.item = array.chunks[1:]
        self.bytes = math.prod(self.item) * array.dtype.itemsize
        metadata: dict[str, Any] = array.metadata.to_dict()
        sharding = metadata["codecs"][0].get("configuration", {})
        names = [[codec["name"] for codec in sharding.get(key, ())] for key in ("codecs", "index_codecs")]
        self.pcodec = names[0][:1] == [pcodec.NAME]
        chain = [[pcodec.NAME, "crc32c"] if self.pcodec else ["bytes", "blosc", "crc32c"], ["bytes", "crc32c"]]
        shards = array.shards or ()
        if names != chain or array.chunks[0] != 1 or shards[1:] != self.item or array.dtype.byteorder == ">":
            raise MtkdError(f"{url}/{self.name} was not written by mtkd-cache. Run the command that writes it again.")
        self.shard = shards[0]
        self.indexes: dict[str, tuple[object, np.ndarray]] = {}

    def read(self, row: int, out: np.ndarray, second: int = 0) -> None:
        """Read one sample's chunk into an array of the chunk's shape and type.

        Args:
            row: index of the sample.
            out: C-contiguous array that receives the chunk.
            second: index along the array's second axis (the view).

        Raises:
            ValueError, RuntimeError, OSError: the chunk is missing or damaged.
        """
        if out.nbytes != self.bytes or not out.flags.c_contiguous:
            raise TypeError(f"a chunk of {self.name} does not fit an array of shape {out.shape}")
        body = self.stored(row, second)
        if self.pcodec:
            return pcodec.decode_into(body, out)
        if int.from_bytes(body[DECODED_SIZE], "little") != self.bytes:
            raise ValueError(f"a chunk of {self.name} has another size")
        blosc.decompress(body, out)
        return None

    def stored(self, row: int, second: int = 0) -> memoryview:
        """A chunk's compressed bytes; see `read` for the errors."""
        key = shard_key(self.name, len(self.item) + 1, row // self.shard, second)
        return (self._local if self.folder.local else self._remote)(key, row % self.shard)

    def _local(self, key: str, chunk: int) -> memoryview:
        file = os.open(f"{self.folder.path}/{key}", os.O_RDONLY)
        try:
            status = os.fstat(file)
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            index = self._index(key, stamp, lambda tail: os.pread(file, tail, max(status.st_size - tail, 0)))
            offset, length = _span(key, index, chunk)
            return _checked(key, os.pread(file, length, offset))
        finally:
            os.close(file)

    def _remote(self, key: str, chunk: int) -> memoryview:
        path = f"{self.folder.path}/{key}"
        known = key in self.indexes
        try:
            index = self._index(key, None, lambda tail: self.folder.fs.cat_file(path, start=-tail))
            offset, length = _span(key, index, chunk)
            return _checked(key, self.folder.fs.cat_file(path, start=offset, end=offset + length))
        except (ValueError, OSError):
            self.indexes.pop(key, None)
            if known:  # the file may have been replaced since its index was read
                return self._remote(key, chunk)
            raise

    def _index(self, key: str, stamp: object, read_tail: Callable[[int], bytes]) -> np.ndarray:
        """(offset, length) of each chunk of a file, read again where the file's stamp has changed."""
        kept = self.indexes.get(key)
        if kept is None or kept[0] != stamp:
            data = _checked(key, read_tail(16 * self.shard + CHECKSUM))
            kept = self.indexes[key] = (stamp, np.frombuffer(data, "<u8").reshape(self.shard, 2))
        return kept[1]


def _checked(key: str, data: bytes) -> memoryview:
    """Bytes without the CRC-32C at their end. Raises ValueError where it does not match them."""
    body = memoryview(data)[:-CHECKSUM]
    if google_crc32c.value(np.frombuffer(body, np.uint8)) != int.from_bytes(data[-CHECKSUM:], "little"):
        raise ValueError(f"a checksum in {key} does not match")
    return body


def _span(key: str, index: np.ndarray, chunk: int) -> tuple[int, int]:
    offset, length = map(int, index[chunk])
    if offset == NEVER_WRITTEN:
        raise ValueError(f"a chunk of {key} was never written")
    return offset, length
