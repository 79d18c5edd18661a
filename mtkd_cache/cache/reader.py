"""The logit cache: the logits of every teacher for every cached sample and view, as one Zarr v3 group (docs/format.md).

logits   (sample, view, anatomy, y, x)  int16    multiples of the attribute `scale_factor`, at the teachers' native stride;
                                                 of teachers of several strides, an array logits_STRIDE each
sha256   (sample, byte)                 uint8    content hash of the sample a row belongs to
crc32c   (sample, view, anatomy)        uint32   of the decoded integers of each map, checked at every read
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mtkd_cache.cache.layout import PLAN, CacheManifest, CachePlan
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.data.augment import Views, warp
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.samples import check_anatomies
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, check_files, if_intact, read_record
from mtkd_cache.storage.columns import array_in, read_column, read_hashes
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.pcodec import check_pcodec
from mtkd_cache.storage.shard_reader import ShardReader, readers
from mtkd_cache.storage.shard_writer import UNREADABLE, row_checksum

if TYPE_CHECKING:
    import xarray


class CorruptMapError(MtkdError):
    """A map that is not the one that was written; sha256: its sample's content hash."""

    def __init__(self, sha256: str, text: str):
        super().__init__(text)
        self.sha256 = sha256


@dataclass(frozen=True)
class LogitCache:
    """A finished logit cache, open for reading. It can be pickled and read by several threads and processes.

    Attributes:
        url: folder, or fsspec URL, of the cache.
        row_of: by content hash, the row of a sample.
    """

    url: str
    manifest: CacheManifest
    row_of: dict[str, int]
    crc32c: np.ndarray
    readers: tuple[ShardReader, ...]

    @classmethod
    def open(cls, url: str) -> "LogitCache":
        """Open a cache.

        Args:
            url: a folder or an fsspec URL.

        Raises:
            MtkdError: the cache is absent, unfinished, damaged or of a newer format.
        """
        folder = Folder(url)
        manifest = read_record(folder, MANIFEST, CacheManifest)
        if manifest is None:
            what = "is not finished" if folder.exists(PLAN) else "is not a logit cache"
            plan = if_intact(read_record, folder, PLAN, CachePlan)
            raise MtkdError(f"{url} {what}. {(plan and plan.settings.rewrite) or f'Run mtkd-cache build --cache {url}.'}")
        arrays = manifest.settings.arrays
        shards = tuple(f"{array.name}/c/" for array in arrays)
        remedy = manifest.settings.rewrite or f"Run mtkd-cache verify --repair --cache {url}."
        check_files(folder, manifest.files, (*shards, "records/"), remedy)
        check_anatomies(manifest.settings.anatomies, url)
        if manifest.settings.pcodec:
            check_pcodec()
        group = folder.zarr()
        return cls(
            url=str(url),
            manifest=manifest,
            row_of={sha256: row for row, sha256 in enumerate(read_hashes(group))},
            crc32c=read_column(group, "crc32c"),
            readers=tuple(ShardReader(url, array_in(group, array.name)) for array in arrays),
        )

    @property
    def spec(self) -> CacheSpec:
        """The settings it was built with."""
        return self.manifest.settings

    @property
    def anatomies(self) -> tuple[str, ...]:
        """Of the maps, in order."""
        return self.spec.anatomies

    @property
    def fingerprint(self) -> str:
        """SHA-256 of settings, teachers and samples."""
        return self.manifest.fingerprint

    @property
    def step(self) -> float:
        """What a stored integer is multiplied with to get a logit."""
        return self.spec.step

    @property
    def views(self) -> int:
        """How many views of each sample are recorded; 1: only the plain sample."""
        return self.spec.n_views

    def draw_views(self, hashes: Sequence[str], view: int) -> Views:
        """The recorded view with a number, for a batch of samples."""
        return self.spec.recorded_views(hashes, view)

    def check_belongs(self, store: SampleStore, rows: np.ndarray) -> None:
        """Raises MtkdError, naming what differs, unless the cache was built from these samples of this store."""
        for what, own, stores in (("anatomies", self.anatomies, store.anatomies), ("image size", self.spec.size, store.size)):
            if own != stores:
                raise MtkdError(
                    f"{self.url} was built for the {what} {list(own)}, {store.url} has {list(stores)}. "
                    "Build a cache of this store."
                )
        absent = [row for row in rows if store.hashes[row] not in self.row_of]
        if absent:
            raise MtkdError(
                f"{self.url} holds {len(absent)} of {len(rows)} samples of {store.url} not at all or with other pixels, "
                f"first {store.describe(absent[0])}. Run mtkd-cache build again."
            )
        if unknown := set(self.row_of) - set(store.hashes):
            raise MtkdError(f"{self.url} holds {len(unknown)} samples that {store.url} has not. Build a cache of this store.")

    def read(self, hashes: Sequence[str], view: int = 0) -> np.ndarray:
        """Quantized maps int16 (n, A, h, w) of samples named by content hash; times `step` they are the logits.

        Raises CorruptMapError, naming sample and anatomy, where a map is not the one that was written, and MtkdError where the
        cache has no such sample or view, was written again, or deleted, since it was opened, or has maps of several strides (see
        `read_arrays`).
        """
        if len(self.readers) > 1:
            names = ", ".join(array.name for array in self.spec.arrays)
            raise MtkdError(f"{self.url} has maps of several strides, in {names}. Read them with read_arrays.")
        return self.read_arrays(hashes, view)[0]

    def to_xarray(self, store: SampleStore | None = None) -> "xarray.DataArray | xarray.Dataset":
        """The logits with names, for xarray, which has to be installed; nothing is read before it is needed.

        Args:
            store: the samples' store, which knows their names in the dataset.

        Returns:
            float32 (sample, view, anatomy, y, x): `.sel(anatomy="liver")`, `.sel(sample=sha256)`. Coordinates: sample, content
            hashes; view; anatomy; and, with a store, name along sample, as "liver/03/image12". A map whose shard file is missing
            is NaN; the maps' checksums are not compared. Of maps of several strides a Dataset with a variable for each array of
            `spec.arrays`, their dimensions named as there (anatomy_4).

        Raises:
            MtkdError: xarray is not installed.
        """
        from mtkd_cache.cache.labeled import labeled

        return labeled(self, store)

    def read_arrays(self, hashes: Sequence[str], view: int = 0) -> tuple[np.ndarray, ...]:
        """Quantized maps as they are stored, for each of `spec.arrays` int16 (n, A', h, w) of its own A' anatomies.

        Raises what `read` raises.
        """
        if not 0 <= view < self.views:
            raise MtkdError(f"{self.url} has no view {view}: its {self.views} are counted from 0.")
        if absent := [sha256 for sha256 in hashes if sha256 not in self.row_of]:
            raise MtkdError(
                f"{self.url} holds no sample {absent[0][:12]} ({len(absent)} of {len(hashes)}). "
                "Name content hashes of samples of the splits it was built for."
            )
        maps = tuple(np.empty((len(hashes), *reader.item[1:]), np.int16) for reader in self.readers)
        items = [
            (number, sha256, view, maps[number][index]) for number in range(len(maps)) for index, sha256 in enumerate(hashes)
        ]
        list(readers().map(lambda item: self._read(*item), items))
        return maps

    def warp(self, maps: Tensor | Sequence[Tensor], affine: Tensor, size: tuple[int, int]) -> Tensor:
        """All teachers' logits warped at the images' size, each from its own stride; see `mtkd_cache.warp`.

        Args:
            maps: logits, float (B, A', h, w) for each of `spec.arrays`; of a cache of one stride also the one tensor alone.
            affine: float (B, 2, 3), `Views.affine`.
            size: (H, W) of the result.

        Returns:
            float (B, A, H, W), the anatomies in the cache's order.
        """
        maps = [maps] if isinstance(maps, Tensor) else maps
        if len(self.readers) == 1:
            return warp(maps[0], affine, size)
        warped = maps[0].new_empty(len(affine), len(self.anatomies), *size)
        for array, own in zip(self.spec.arrays, maps, strict=True):
            warped[:, list(array.anatomies)] = warp(own, affine, size)
        return warped

    def _read(self, number: int, sha256: str, view: int, maps: np.ndarray) -> None:
        """Read one sample's maps in an array into (A', h, w)."""
        row, anatomies = self.row_of[sha256], self.spec.arrays[number].anatomies
        try:
            self.readers[number].read(row, maps, view)
        except UNREADABLE as error:
            names = "all anatomies" if len(self.readers) == 1 else ", ".join(self.spec.names_of(self.spec.arrays[number]))
            raise self._corrupt(sha256, view, f"{names} ({error})") from error
        for values, anatomy in zip(maps, anatomies, strict=True):
            if row_checksum(values) != self.crc32c[row, view, anatomy]:
                raise self._corrupt(sha256, view, self.anatomies[anatomy])

    def _corrupt(self, sha256: str, view: int, anatomy: str) -> MtkdError:
        """What to raise for a map that is not as this cache's manifest has it."""
        try:
            present = read_record(Folder(self.url), MANIFEST, CacheManifest)
        except MtkdError:
            present = self.manifest
        if present is None and not Folder(self.url).exists(PLAN):
            return MtkdError(f"{self.url} was deleted or moved since it was opened. Put it back, or build it again.")
        if present != self.manifest:
            return MtkdError(
                f"{self.url} was written again since it was opened. Once that has finished, train into a new --run: "
                "an interrupted run resumes only with the cache it started with."
            )
        return CorruptMapError(
            sha256,
            f"{self.url}: the map of sample {sha256[:12]}, view {view}, {anatomy}, is damaged or missing. "
            f"{self.spec.rewrite or f'Run mtkd-cache verify --repair --cache {self.url}.'}",
        )
