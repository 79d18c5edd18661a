"""Small arrays of a Zarr group, with a value for each sample, written and read whole."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import zarr

from mtkd_cache.storage.shard_writer import ArraySpec

HASHES = "sha256"  # the column of the samples' content hashes


def array_in(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def read_column(group: zarr.Group, name: str) -> np.ndarray:
    return np.asarray(array_in(group, name)[:])


def encode_column(name: str, values: np.ndarray, *dimensions: str) -> dict[str, bytes]:
    """The files of a column, by key. values: (samples, *item); dimensions: the names of the item's axes."""
    return ArraySpec(name, str(values.dtype), values.shape[1:], ("sample", *dimensions)).whole(values)


def read_hashes(group: zarr.Group) -> list[str]:
    """The content hash of each sample, in hexadecimal."""
    return [row.tobytes().hex() for row in read_column(group, HASHES)]


def encode_hashes(hashes: Iterable[str]) -> dict[str, bytes]:
    """The files of the column that `read_hashes` reads, by key."""
    rows = [np.frombuffer(bytes.fromhex(sha256), np.uint8) for sha256 in hashes]
    return encode_column(HASHES, np.stack(rows), "byte")
