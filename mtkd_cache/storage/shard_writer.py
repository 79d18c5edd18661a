"""Zarr v3 arrays written shard by shard.

Zarr itself encodes an array's metadata and each of its shards in memory, so that this project decides when and how the bytes
reach the disk: complete, flushed and with a known SHA-256. Any Zarr v3 reader opens the result.
"""

import json
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from mtkd_cache.storage.pcodec import serializer

UNREADABLE = (ValueError, RuntimeError, OSError)  # raised by zarr and its codecs for damaged bytes


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array whose first axis is the sample, of shape (samples, *item).

    A chunk is (1, *chunk_item), by default one sample; a shard file holds `shard` samples (0: one chunk, no shards). codec: of
    Blosc; pcodec: that codec in its place, see `mtkd_cache.storage.pcodec`.
    """

    name: str
    dtype: str
    item: tuple[int, ...]
    dimensions: tuple[str, ...]
    fill: int = 0
    shard: int = 0
    chunk_item: tuple[int, ...] | None = None
    codec: BloscCodec | None = None
    pcodec: bool = False
    attributes: tuple[tuple[str, Any], ...] = ()

    def _create(self, samples: int, item: tuple[int, ...]) -> tuple[dict[str, Buffer], zarr.Array[Any]]:
        """An array in memory, with its files by key."""
        files: dict[str, Buffer] = {}
        codec = self.codec or BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")
        chunk_item = self.chunk_item or self.item
        array = zarr.create_array(
            MemoryStore(files),
            name=self.name,
            shape=(samples, *item),
            dtype=self.dtype,
            chunks=(1 if self.shard else max(samples, 1), *chunk_item),
            shards=(self.shard, *chunk_item) if self.shard else None,
            serializer=serializer() if self.pcodec else "auto",
            compressors=[Crc32cCodec()] if self.pcodec else [codec, Crc32cCodec()],
            fill_value=self.fill,
            dimension_names=self.dimensions,
            attributes=dict(self.attributes),
            config={"write_empty_chunks": True},
            zarr_format=3,
        )
        return files, array

    def metadata(self, samples: int) -> dict[str, bytes]:
        """The array's zarr.json, by key."""
        files, _ = self._create(samples, self.item)
        return self._as_bytes(files)

    def whole(self, values: np.ndarray) -> dict[str, bytes]:
        """Metadata and the single chunk of an array without shards, by key."""
        files, array = self._create(len(values), self.item)
        array[...] = values
        return self._as_bytes(files)

    def shard_key(self, first: int, second: int = 0) -> str:
        """The key of a shard, see `shard_key`."""
        return shard_key(self.name, len(self.item) + 1, first, second)

    def encode_shard(self, values: np.ndarray) -> bytes:
        """The bytes of one shard file. values: (n, *chunk_item), n <= `shard` (fewer in the last shard)."""
        files, array = self._create(self.shard, self.chunk_item or self.item)
        array[: len(values)] = values
        return files[self.shard_key(0)].to_bytes()

    def decode_shard(self, data: bytes) -> zarr.Array[Any]:
        """The array (shard, *chunk_item) in a shard file's bytes. Reading a damaged sample of it raises one of `UNREADABLE`."""
        files, array = self._create(self.shard, self.chunk_item or self.item)
        files[self.shard_key(0)] = default_buffer_prototype().buffer.from_bytes(data)
        return array

    def _as_bytes(self, files: dict[str, Buffer]) -> dict[str, bytes]:
        return {key: value.to_bytes() for key, value in files.items() if key.startswith(f"{self.name}/")}


def shard_key(array: str, axes: int, first: int, second: int) -> str:
    """The key of an array's shard with these indexes along its first and second axis, all others being 0."""
    return "/".join([array, "c", str(first), str(second), *["0"] * (axes - 2)])


def group_metadata(attributes: dict[str, Any], array_metadata: dict[str, bytes]) -> bytes:
    """The group's zarr.json: its attributes and the consolidated metadata of its arrays, so that one read opens all."""
    metadata = {key.rsplit("/", 1)[0]: json.loads(data) for key, data in array_metadata.items()}
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": metadata},
    }
    return json.dumps(group, indent=1, sort_keys=True).encode()


def row_checksum(*arrays: np.ndarray) -> int:
    """CRC-32C of the concatenated bytes of arrays."""
    value = 0
    for array in arrays:
        value = google_crc32c.extend(value, np.ascontiguousarray(array))
    return value
