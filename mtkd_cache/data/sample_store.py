"""The sample store: the ingested dataset as one Zarr v3 group.

image    (sample, y, x, channel) uint8   RGB at training size
mask     (sample, y, x)          uint8   1 where the sample's own anatomy is, 0 elsewhere
anatomy, surgery, frame, split   (sample)   integers; `anatomy` and `split` index the attributes `anatomies` and `splits`;
                                 `surgery` is the patient's number, or indexes the attribute `patients` where there is one
sha256   (sample, byte)          uint8   the content hash, see `content_hash`
present  (sample, structure)     int8    1 where the image shows an anatomy, 0 where not, -1 unknown; absent without labels
crc32c   (sample)                uint32  of the decoded image and mask, checked at every read
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from mtkd_cache.data.samples import SPLITS, check_anatomies
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, Manifest, check_files, read_record
from mtkd_cache.storage.columns import array_in, read_column, read_hashes
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.record import JsonRecord
from mtkd_cache.storage.shard_reader import ShardReader, readers
from mtkd_cache.storage.shard_writer import UNREADABLE, ArraySpec, row_checksum

SETTINGS = "settings.json"
SHARD = 64
PREPROCESSING = {"image": "pillow bilinear", "mask": "pillow nearest, > threshold"}
COORDINATES = {"anatomy": "int16", "surgery": "int32", "frame": "int32", "split": "int8", "crc32c": "uint32"}
PRESENT = "present"
REMEDY = "Run mtkd-cache ingest again."


def picture_specs(size: tuple[int, int]) -> tuple[ArraySpec, ArraySpec]:
    """The arrays `image` and `mask`. size: (width, height)."""
    width, height = size
    axes = ("sample", "y", "x")
    image_codec = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=3)
    mask_codec = BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle")
    image = ArraySpec("image", "uint8", (height, width, 3), (*axes, "channel"), shard=SHARD, codec=image_codec)
    mask = ArraySpec("mask", "uint8", (height, width), axes, fill=255, shard=SHARD, codec=mask_codec)
    return image, mask


def content_hash(image: np.ndarray, mask: np.ndarray, anatomy: str, patient: str | int, frame: int) -> str:
    """SHA-256 over what makes a sample: its name in the dataset and the pixels of image and mask at training size."""
    name = f"{anatomy}/{patient}/{frame}:{image.shape}".encode()
    return hashlib.sha256(name + image.tobytes() + mask.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StoreSettings(JsonRecord):
    """How images and masks are prepared. size: (width, height). threshold: see `read_mask`."""

    size: tuple[int, int]
    threshold: int | None
    preprocessing: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StoreManifest(Manifest, StoreSettings):
    """What a finished sample store holds.

    name: of the dataset's folder. patients: their names, which `surgery` indexes; None where all are numbers, as in the Dresden
    layout: `surgery` then holds the numbers, as it does in every store of version 0.1. labels_fingerprint: of the column
    `present`; None without labels, where the column is absent.
    """

    kind: str = "sample store"
    format: int = 2  # 1 where patients are numbers
    name: str
    anatomies: tuple[str, ...]
    patients: tuple[str, ...] | None = None
    labels_fingerprint: str | None = None


@dataclass(frozen=True)
class SampleStore:
    """A finished sample store, open for reading. It can be pickled and read by several threads and processes.

    Attributes:
        url: folder, or fsspec URL, of the store.
        name: of the dataset.
        anatomies: the structures, in order.
        size: (width, height) of the images.
        fingerprint: SHA-256 of samples, split and preprocessing.
        anatomy: int (n,), of each row the index of its anatomy.
        patients: str (n,), the patient of each row; in the Dresden set the number of the surgery, as "3".
        surgery: int (n,), the number of the surgery; where patients have names, the index of the patient among them.
        frame: int (n,), the number of the image among those of its patient.
        split: int (n,), 0 for training, 1 for validation, 2 for test.
        hashes: str (n,), the content hash of each row.
        present: int8 (n, A), whether the image shows each of the anatomies according to its labels: 1, 0, or -1 for unknown.
        labels_fingerprint: SHA-256 of hashes and `present`, or None without any label. It is not part of `fingerprint`: whoever
            learns from the labels records it too.
    """

    url: str
    name: str
    anatomies: tuple[str, ...]
    size: tuple[int, int]
    fingerprint: str
    anatomy: np.ndarray
    patients: np.ndarray
    surgery: np.ndarray
    frame: np.ndarray
    split: np.ndarray
    crc32c: np.ndarray
    hashes: np.ndarray
    present: np.ndarray
    labels_fingerprint: str | None
    group: zarr.Group
    image: ShardReader
    mask: ShardReader

    @classmethod
    def open(cls, url: str) -> "SampleStore":
        """Open a store.

        Args:
            url: a folder or an fsspec URL.

        Raises:
            MtkdError: the store is absent, unfinished, damaged or of a newer format.
        """
        folder = Folder(url)
        manifest = read_record(folder, MANIFEST, StoreManifest)
        if manifest is None:
            what = "is not finished" if folder.exists(SETTINGS) else "is not a sample store"
            raise MtkdError(f"{url} {what}. Run mtkd-cache ingest DATASET --store {url}.")
        check_files(folder, manifest.files, ("image/c/", "mask/c/"), REMEDY)
        check_anatomies(manifest.anatomies, url)
        group = folder.zarr()
        columns = {name: read_column(group, name) for name in COORDINATES}
        surgery = columns["surgery"]
        unknown = (len(surgery), len(manifest.anatomies))
        return cls(
            url=str(url),
            name=manifest.name,
            anatomies=manifest.anatomies,
            size=manifest.size,
            fingerprint=manifest.fingerprint,
            patients=np.array(manifest.patients)[surgery] if manifest.patients else surgery.astype(str),
            hashes=np.array(read_hashes(group)),
            present=read_column(group, PRESENT) if manifest.labels_fingerprint else np.full(unknown, -1, np.int8),
            labels_fingerprint=manifest.labels_fingerprint,
            group=group,
            image=ShardReader(url, array_in(group, "image")),
            mask=ShardReader(url, array_in(group, "mask")),
            **columns,
        )

    def __len__(self) -> int:
        return len(self.anatomy)

    def rows(self, split: str, anatomy: str | None = None) -> np.ndarray:
        """Row numbers of a split.

        Args:
            split: "train", "validation" or "test".
            anatomy: only the samples whose mask is of this anatomy.

        Returns:
            int64 (n,), in ascending order.

        Raises:
            MtkdError: there is no such split or anatomy.
        """
        for value, known in ((split, SPLITS), (self.anatomies[0] if anatomy is None else anatomy, self.anatomies)):
            if value not in known:
                raise MtkdError(f"{self.url} has no {value!r}. Name one of {', '.join(known)}.")
        chosen = self.split == SPLITS.index(split)
        if anatomy is not None:
            chosen &= self.anatomy == self.anatomies.index(anatomy)
        return np.flatnonzero(chosen)

    def describe(self, row: int) -> str:
        """A sample's name in the dataset, as ``liver/03/image12``."""
        patient = str(self.patients[row])
        return f"{self.anatomies[self.anatomy[row]]}/{patient.zfill(2 * patient.isdecimal())}/image{self.frame[row]:02d}"

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read samples and compare their checksums.

        Args:
            rows: int (n,).

        Returns:
            images uint8 (n, height, width, 3) and masks uint8 (n, height, width), 1 where the row's anatomy is.

        Raises:
            MtkdError: a sample is damaged or missing, or there is no such row.
        """
        if len(rows) and not 0 <= np.min(rows) <= np.max(rows) < len(self):
            raise MtkdError(f"{self.url} has no row {np.min(rows)} to {np.max(rows)}: its {len(self)} are counted from 0.")
        width, height = self.size
        images = np.empty((len(rows), height, width, 3), np.uint8)
        masks = np.empty((len(rows), height, width), np.uint8)
        list(readers().map(self._read, rows, images, masks))
        return images, masks

    def _read(self, row: int, image: np.ndarray, mask: np.ndarray) -> None:
        """Read one sample into an image and a mask."""
        try:
            self.image.read(int(row), image)
            self.mask.read(int(row), mask)
        except UNREADABLE as error:
            raise MtkdError(f"{self.url}: sample {self.describe(row)} is damaged or missing ({error}). {REMEDY}") from error
        if row_checksum(image, mask) != self.crc32c[row]:
            raise MtkdError(f"{self.url}: sample {self.describe(row)} is damaged or missing. {REMEDY}")
