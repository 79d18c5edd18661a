"""What a logit cache consists of: its settings, its shard files, and the JSON records that describe them (docs/format.md).

plan.json               CachePlan      settings, and which sample each row is of
records/BLOCK-VIEW.json ShardRecord    of one shard file, written after it: samples, teachers, figures of each map
manifest.json           CacheManifest  written last: settings, teachers, errors, size and SHA-256 of every file
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import numpy as np
from zarr.codecs import BloscCodec

from mtkd_cache.cache.quantize import FILL
from mtkd_cache.data.augment import Views, draw_views, identity_views
from mtkd_cache.data.sample_store import PREPROCESSING, SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.seen import Overlap, Seen
from mtkd_cache.recipe import Recipe, augmentation_from
from mtkd_cache.storage.checked_json import FileEntry, Manifest, digest
from mtkd_cache.storage.record import JsonRecord
from mtkd_cache.storage.shard_writer import ArraySpec, shard_key

PLAN = "plan.json"
BLOCK = 32  # samples in a shard file
CODEC = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2)
CODEC_NAME = "int16, blosc zstd-5 bitshuffle, crc32c"
SOBOL = "scrambled Sobol"
UPSAMPLING = "bilinear, corner-aligned"


class TeacherInfo(TypedDict):
    """Which teacher computed an anatomy's maps."""

    arch: str
    weights_sha256: str


# Of a map: checksum, largest error of a stored logit, KL of the stored from the exact map in nats, bits when compressed
FIGURES = {"crc32c": np.uint32, "max_error": np.float64, "kl": np.float64, "bits": np.int64}


@dataclass(frozen=True, kw_only=True)
class RecordedViews(JsonRecord):
    """How many views of each sample are recorded; augmentation and sequence determine those after the plain one.

    sequence: `SOBOL`, see `draw_views` without a seed. Caches of earlier versions have a seed, of independent draws.
    """

    count: int
    sequence: str | None = None
    seed: int | None = None
    augmentation: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class CacheSpec(JsonRecord):
    """Everything but samples and teachers that decides what a cache holds.

    Attributes:
        anatomies: of the maps, in order.
        size: (width, height) of the images.
        stride: pixels of the image for each native logit.
        grid: native logits of a map, (height, width).
        step: of the quantizer, in logits; the largest error is half of it.
        precision: in which the teachers run: "no", "bf16" or "fp16"; "external" where other programs computed the logits.
        source, license: of such logits, as the caller of `CacheWriter` states them; None where a build ran the teachers.
    """

    anatomies: tuple[str, ...]
    size: tuple[int, int]
    preprocessing: dict[str, str]
    stride: int
    grid: tuple[int, int]
    upsampling: str
    step: float
    codec: str
    views: RecordedViews
    precision: str
    source: str | None = None
    license: str | None = None

    @classmethod
    def of(cls, store: SampleStore, stride: int, recipe: Recipe, precision: str = "no") -> "CacheSpec":
        """The spec of a new cache.

        Args:
            store: its samples.
            stride: of the teachers' native logits, `Teachers.stride`.
            recipe: step and number of views; with several views also the augmentation.
            precision: in which the teachers run, `Accelerator.mixed_precision`.
        """
        width, height = store.size
        drawn = {"sequence": SOBOL, "augmentation": recipe.as_dict()["augmentation"]}
        return cls(
            anatomies=store.anatomies,
            size=store.size,
            preprocessing=PREPROCESSING,
            stride=stride,
            grid=(height // stride, width // stride),
            upsampling=UPSAMPLING,
            step=recipe.cache.step,
            codec=CODEC_NAME,
            views=RecordedViews(count=recipe.cache.views, **(drawn if recipe.cache.views > 1 else {})),
            precision=precision,
        )

    @property
    def n_views(self) -> int:
        """How many views of each sample are recorded, the plain sample included."""
        return self.views.count

    def recorded_views(self, hashes: Sequence[str], view: int) -> Views:
        """The recorded view with a number, of the samples with these content hashes."""
        if view == 0:
            return identity_views(len(hashes))
        if self.views.augmentation is None:
            raise MtkdError(f"view {view}: the cache records only the plain samples. Build one with --views.")
        if (self.views.sequence, self.views.seed is None) not in ((SOBOL, True), (None, False)):
            raise MtkdError(f"the cache's views are drawn as {self.views.sequence!r}, by a newer version. Install that one.")
        return draw_views(augmentation_from(self.views.augmentation), self.views.seed, hashes, view, self.size)


def logits_spec(views: int, anatomies: int, grid: tuple[int, int], step: float) -> ArraySpec:
    """The array `logits` for maps of grid = (h, w) native logits."""
    return ArraySpec(
        "logits",
        "int16",
        (views, anatomies, *grid),
        ("sample", "view", "anatomy", "y", "x"),
        fill=FILL,
        shard=BLOCK,
        chunk_item=(1, anatomies, *grid),
        codec=CODEC,
        attributes=(("scale_factor", step), ("add_offset", 0.0), ("units", "logit"), ("long_name", "teachers' logits")),
    )


@dataclass(frozen=True, kw_only=True)
class ShardRecord(JsonRecord):
    """What is in one shard file. settings: digest of the cache's; the first versions did not write it.

    rows: for each sample its sha256, and under the names of `FIGURES` a list with a number for each anatomy.
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


@dataclass(frozen=True)
class ShardTask:
    """One shard file of a cache: BLOCK samples (fewer in the last one) in one view."""

    block: int
    view: int
    hashes: Sequence[str]

    @property
    def record_key(self) -> str:
        return f"records/{self.block:05d}-{self.view:03d}.json"

    @property
    def shard_key(self) -> str:
        return shard_key("logits", 5, self.block, self.view)

    @property
    def rows(self) -> slice:
        """The cache's rows it holds."""
        return slice(self.block * BLOCK, self.block * BLOCK + len(self.hashes))

    def owns(self, record: ShardRecord, spec: CacheSpec) -> bool:
        """Whether a record was written for this shard file of a cache with these settings, and keeps to their error bound.

        The records of the first versions do not name their settings; only the bound tells them from another cache's.
        """
        of_the_cache = record.key == self.shard_key and record.settings in (None, digest(spec.to_json()))
        return of_the_cache and all(0 <= error <= spec.step / 2 for row in record.rows for error in row["max_error"])


@dataclass(frozen=True, kw_only=True)
class CachePlan(JsonRecord):
    """What a cache is to hold. temperature: of the KL in its figures. samples: the content hash of each row's sample."""

    settings: CacheSpec
    temperature: float
    samples: tuple[str, ...]

    @property
    def shard_tasks(self) -> list[ShardTask]:
        blocks = range(0, len(self.samples), BLOCK)
        views = range(self.settings.n_views)
        return [ShardTask(start // BLOCK, view, self.samples[start : start + BLOCK]) for start in blocks for view in views]


@dataclass(frozen=True, kw_only=True)
class CacheManifest(Manifest):
    """What a finished cache holds.

    errors: figures by anatomy. seen: the samples that the teachers have seen; overlap: those that the store holds out.
    """

    LONG: ClassVar[tuple[str, ...]] = (*Manifest.LONG, "seen")
    kind: str = "logit cache"
    format: int = 1
    settings: CacheSpec
    teachers: dict[str, TeacherInfo]
    temperature: float
    errors: dict[str, dict[str, float]]
    seen: Seen | None = None
    overlap: Overlap | None = None


def fingerprint(spec: CacheSpec, teachers: dict[str, TeacherInfo], hashes: Iterable[str]) -> str:
    """The hash that ties a cache to its samples, preprocessing, views, teachers and codec; the order of rows is no part of it."""
    samples = hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
    return digest({"settings": spec.to_json(), "teachers": teachers, "samples": samples})
