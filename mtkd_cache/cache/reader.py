"""The logit cache: the logits of every teacher for every cached sample and view, as one Zarr v3 group (docs/format.md).

logits   (sample, view, anatomy, y, x)  int16    multiples of the attribute `scale_factor`, at the teachers' native stride
sha256   (sample, byte)                 uint8    content hash of the sample a row belongs to
crc32c   (sample, view, anatomy)        uint32   of the decoded integers of each map, checked at every read
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import zarr

from mtkd_cache.cache.layout import PLAN, CacheManifest, CacheSpec
from mtkd_cache.data.augment import Views
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.samples import check_anatomies
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, check_files, read_record
from mtkd_cache.storage.columns import array_in, read_column, read_hashes
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.shard_reader import ShardReader, readers
from mtkd_cache.storage.shard_writer import UNREADABLE, row_checksum


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
    logits: zarr.Array[Any]
    reader: ShardReader

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
            raise MtkdError(f"{url} {what}. Run mtkd-cache build --cache {url}.")
        check_files(folder, manifest.files, ("logits/c/", "records/"), f"Run mtkd-cache verify --repair --cache {url}.")
        check_anatomies(manifest.settings.anatomies, url)
        group = folder.zarr()
        logits = array_in(group, "logits")
        return cls(
            url=str(url),
            manifest=manifest,
            row_of={sha256: row for row, sha256 in enumerate(read_hashes(group))},
            crc32c=read_column(group, "crc32c"),
            logits=logits,
            reader=ShardReader(url, logits),
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
        cache was written again, or deleted, since it was opened.
        """
        maps = np.empty((len(hashes), *self.reader.item[1:]), np.int16)
        list(readers().map(self._read, hashes, repeat(view), maps))
        return maps

    def _read(self, sha256: str, view: int, maps: np.ndarray) -> None:
        """Read one sample's maps into an array (A, h, w)."""
        row = self.row_of[sha256]
        try:
            self.reader.read(row, maps, view)
        except UNREADABLE as error:
            raise self._corrupt(sha256, view, f"all anatomies ({error})") from error
        for anatomy, name in enumerate(self.anatomies):
            if row_checksum(maps[anatomy]) != self.crc32c[row, view, anatomy]:
                raise self._corrupt(sha256, view, name)

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
            f"Run mtkd-cache verify --repair --cache {self.url}.",
        )
