"""What a logit cache consists of: its settings, its shard files, and the JSON records that describe them (docs/format.md).

plan.json               CachePlan      settings, and which sample each row is of
records/*.json          ShardRecord    of one shard file, written after it: samples, teachers, figures of each map
manifest.json           CacheManifest  written last: settings, teachers, errors, size and SHA-256 of every file
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NotRequired, TypedDict

import numpy as np
from zarr.codecs import BloscCodec

from mtkd_cache.cache.quantize import FILL
from mtkd_cache.cache.spec import LOGITS, CacheSpec, MapArray
from mtkd_cache.models.seen import Overlap, Seen
from mtkd_cache.storage.checked_json import GROUP, MANIFEST, FileEntry, Manifest, digest
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.record import JsonRecord
from mtkd_cache.storage.shard_writer import ArraySpec, shard_key

PLAN = "plan.json"
BLOCK = 32  # samples in a shard file
CODEC = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2)


class TeacherInfo(TypedDict):
    """Which teacher computed an anatomy's maps.

    arch: also package.module:factory. weights_sha256: of the weights file; the fingerprint of a teacher of the user's own, and of
    several teachers' mean the digest of theirs. source_sha256: of the file with the user's own code. license: of the weights that
    it builds on. members: the teachers whose mean the maps are.
    """

    arch: str
    weights_sha256: str
    source_sha256: NotRequired[str]
    license: NotRequired[str]
    members: NotRequired[list["TeacherInfo"]]


def licenses_of(teachers: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The licenses of a cache's teachers, {anatomy: info}, or of logits, with their source."""
    every = [each for info in teachers.values() for each in (info, *info.get("members", ()))]
    logits = {f"{info['license']} (logits: {info['source']})" for info in every if "license" in info and "source" in info}
    return logits | {info["license"] for info in every if "license" in info and "source" not in info}


# Of a map: checksum, largest error of a stored logit, KL of the stored from the exact map in nats, bits when compressed
FIGURES = {"crc32c": np.uint32, "max_error": np.float64, "kl": np.float64, "bits": np.int64}
SPREAD = "spread"  # of a map that is the mean of several teachers': the mean over positions of their logits' standard deviation


def logits_spec(
    views: int, anatomies: int, grid: tuple[int, int], step: float, suffix: str = "", attributes: tuple[tuple[str, Any], ...] = ()
) -> ArraySpec:
    """The array `logits` for maps of grid = (h, w) native logits. suffix: of its name and of its own dimensions."""
    return ArraySpec(
        LOGITS + suffix,
        "int16",
        (views, anatomies, *grid),
        ("sample", "view", *(name + suffix for name in ("anatomy", "y", "x"))),
        fill=FILL,
        shard=BLOCK,
        chunk_item=(1, anatomies, *grid),
        codec=CODEC,
        attributes=(
            *(("scale_factor", step), ("add_offset", 0.0), ("units", "logit"), ("long_name", "teachers' logits")),
            *attributes,
        ),
    )


def array_spec(spec: CacheSpec, array: MapArray) -> ArraySpec:
    """One of a cache's arrays of maps. That of a cache of several strides names its anatomies."""
    named = (("anatomies", list(spec.names_of(array))), ("stride", array.stride)) if array.suffix else ()
    plain = logits_spec(spec.n_views, len(array.anatomies), array.grid, spec.step, array.suffix, named)
    return replace(plain, pcodec=spec.pcodec)


@dataclass(frozen=True, kw_only=True)
class ShardRecord(JsonRecord):
    """What is in one shard file. settings: digest of the cache's; the first versions did not write it.

    rows: for each sample its sha256, and under the names of `FIGURES` a list with a number for each anatomy of the file's array;
    also under `SPREAD` where any of them has several teachers.
    """

    key: str
    bytes: int
    sha256: str
    settings: str | None = None
    teachers: dict[str, TeacherInfo]
    rows: tuple[dict[str, Any], ...]

    @property
    def entry(self) -> FileEntry:
        """Of the shard file in a manifest."""
        return {"bytes": self.bytes, "sha256": self.sha256}


def record_key(block: int, view: int, array: MapArray) -> str:
    """The key of a shard file's record."""
    return f"records/{block:05d}-{view:03d}{array.suffix}.json"


@dataclass(frozen=True)
class ShardTask:
    """One shard file of a cache: BLOCK samples (fewer in the last one) in one view, the maps of one array."""

    block: int
    view: int
    hashes: Sequence[str]
    array: MapArray

    @property
    def record_key(self) -> str:
        return record_key(self.block, self.view, self.array)

    @property
    def shard_key(self) -> str:
        return shard_key(self.array.name, 5, self.block, self.view)

    @property
    def rows(self) -> slice:
        """The cache's rows it holds."""
        return slice(self.block * BLOCK, self.block * BLOCK + len(self.hashes))

    def owns(self, record: ShardRecord, spec: CacheSpec) -> bool:
        """Whether a record was written for this shard file of a cache with these settings, and keeps to their error bound.

        Or of one with fewer views, which has grown since. The records of the first versions do not name their settings; only the
        bound tells them from another cache's.
        """
        of_the_cache = record.key == self.shard_key and record.settings in (None, *spec.digests[self.view :])
        return of_the_cache and all(0 <= error <= spec.step / 2 for row in record.rows for error in row["max_error"])


@dataclass(frozen=True, kw_only=True)
class CachePlan(JsonRecord):
    """What a cache is to hold. samples: the content hash of each row's sample.

    temperature: of the KL in its figures. augmentation: of the recipe, for which the view gap is measured; None measures none.
    """

    settings: CacheSpec
    temperature: float
    samples: tuple[str, ...]
    augmentation: dict[str, float] | None = None

    @property
    def shard_tasks(self) -> list[ShardTask]:
        """All shard files; those of one block and view, whose maps are of the same images, stand together."""
        return [
            ShardTask(start // BLOCK, view, self.samples[start : start + BLOCK], array)
            for start in range(0, len(self.samples), BLOCK)
            for view in range(self.settings.n_views)
            for array in self.settings.arrays
        ]


@dataclass(frozen=True, kw_only=True)
class CacheManifest(Manifest):
    """What a finished cache holds.

    errors: figures by anatomy. spread: of each anatomy with several teachers, see `SPREAD`, the mean over its maps, in logits.
    view_gap_kl_nats: {anatomy: {part: nats}}, see `mtkd_cache.cache.view_gap`: how far what a student is shown lies from what
    live teachers would say. seen: the samples that the teachers have seen; overlap: those that the store holds out.
    """

    LONG: ClassVar[tuple[str, ...]] = (*Manifest.LONG, "seen")
    kind: str = "logit cache"
    format: int = 2  # the newest; a cache is written with the first that holds it, see `CacheSpec.format`
    settings: CacheSpec
    teachers: dict[str, TeacherInfo]
    temperature: float
    errors: dict[str, dict[str, float]]
    view_gap_kl_nats: dict[str, dict[str, float]] | None = None
    spread: dict[str, float] | None = None
    seen: Seen | None = None
    overlap: Overlap | None = None


def holds_cache(folder: Folder) -> bool:
    """Whether a folder is that of a cache, unfinished and damaged ones too, or of a sample store, which has the same names."""
    return any(folder.exists(key) for key in (MANIFEST, PLAN, GROUP))


def fingerprint(spec: CacheSpec, teachers: dict[str, TeacherInfo], hashes: Iterable[str]) -> str:
    """The hash that ties a cache to its samples, preprocessing, views, teachers and codec; the order of rows is no part of it."""
    samples = hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
    return digest({"settings": spec.to_json(), "teachers": teachers, "samples": samples})
