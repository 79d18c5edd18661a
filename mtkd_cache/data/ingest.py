"""Dataset folder -> sample store. Images are decoded and resized here once, and never during training."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mtkd_cache.data.dresden import SPLITS, Source, Split, check_split, find_samples, read_image, read_mask
from mtkd_cache.data.sample_store import (
    COORDINATES,
    PREPROCESSING,
    SETTINGS,
    SHARD,
    StoreManifest,
    StoreSettings,
    content_hash,
    picture_specs,
)
from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime.processes import run_in_processes
from mtkd_cache.storage.checked_json import (
    MANIFEST,
    FileEntry,
    digest,
    dump_checked_json,
    file_entry,
    finalize,
    if_intact,
    is_whole,
    mark_incomplete,
    read_record,
)
from mtkd_cache.storage.columns import encode_column, encode_hashes
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.storage.record import JsonRecord
from mtkd_cache.storage.shard_writer import row_checksum

IDENTITY = ("anatomy", "surgery", "frame", "split", "sha256")  # what the fingerprint takes of each sample


@dataclass(frozen=True, kw_only=True)
class IngestedShard(JsonRecord):
    """What the shard files with a number hold.

    sources: see `_stamp`. samples: {anatomy, surgery, frame, sha256, crc32c} each, the last of the decoded image and mask.
    """

    sources: str
    samples: tuple[dict[str, Any], ...]
    files: dict[str, FileEntry]


def ingest(
    dataset: Path,
    store: str,
    *,
    size: tuple[int, int] = (640, 512),
    split: Split | None = None,
    threshold: int | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Write the sample store of a dataset folder. What an earlier call wrote of unchanged files, and is whole, is kept.

    Args:
        dataset: folder with ANATOMY/SURGERY/imageNN.png and maskNN.png.
        store: folder, or fsspec URL, of the sample store.
        size: (width, height) of the stored images and masks.
        split: surgeries of validation and test; by default those of the reference split.
        threshold: see `read_mask`.
        workers: processes that read and resize.

    Returns:
        What `mtkd-cache ingest --json` prints: samples, by_split, by_anatomy, skipped, bytes, fingerprint, store.

    Raises:
        MtkdError: the dataset is faulty, another process writes the store, or it was started with other settings.
    """
    split = split or Split()
    sources, skipped = find_samples(dataset)
    check_split(sources, split)
    folder = Folder(store)
    settings = StoreSettings(size=size, threshold=threshold, preprocessing=PREPROCESSING)
    with locked(folder):
        _check_settings(folder, settings)
        folder.delete_temporaries()
        shards = [sources[start : start + SHARD] for start in range(0, len(sources), SHARD)]
        records = _write_shards(folder, shards, settings, workers)
        manifest = _finalize(folder, dataset.resolve().name, records, split, settings)
    return {
        "samples": len(sources),
        "by_split": dict(Counter(split.of(source.surgery) for source in sources)),
        "by_anatomy": dict(Counter(source.anatomy for source in sources)),
        "skipped": skipped,
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
        "fingerprint": manifest.fingerprint,
        "store": store,
    }


def _check_settings(folder: Folder, settings: StoreSettings) -> None:
    """Write the settings of a new store. Raises MtkdError where the folder holds one with other settings, or something else."""
    written = if_intact(read_record, folder, SETTINGS, StoreSettings)
    existing = written or if_intact(read_record, folder, MANIFEST, StoreSettings)
    if existing and replace(existing, extra={}) != settings:
        raise MtkdError(
            f"{folder} was started with other settings (size {existing.size}, threshold {existing.threshold}, preprocessing "
            f"{existing.preprocessing}). Name another --store, or delete that one."
        )
    if not existing and any(True for _ in folder.keys()):
        raise MtkdError(f"{folder} is not empty and is not a sample store, or a damaged one. Name another --store.")
    if written != settings:
        folder.write(SETTINGS, dump_checked_json(settings.to_json()))


def _write_shards(
    folder: Folder, shards: Sequence[Sequence[Source]], settings: StoreSettings, workers: int
) -> list[IngestedShard]:
    """Write the shards that are missing, outdated or damaged, and return every shard's record in order."""
    records = [_kept_record(folder, number, sources) for number, sources in enumerate(shards)]
    todo = [(number, sources) for number, sources in enumerate(shards) if records[number] is None]
    kept = sum(len(record.samples) for record in records if record)
    progress = tqdm(total=sum(map(len, shards)), initial=kept, desc="ingest", unit="image", disable=None)
    if todo:
        mark_incomplete(folder)
    for number, record in run_in_processes(partial(_write_shard, folder.url, settings), todo, workers):
        records[number] = record
        progress.update(len(record.samples))
    progress.close()
    return [record for record in records if record]


def _record_key(number: int) -> str:
    return f"records/{number:05d}.json"


def _kept_record(folder: Folder, number: int, sources: Sequence[Source]) -> IngestedShard | None:
    """The record of a shard that is whole and was written from the very same files, or None."""
    record = if_intact(read_record, folder, _record_key(number), IngestedShard)
    if record is None or record.sources != _stamp(sources):
        return None
    return record if all(is_whole(folder, key, entry) for key, entry in record.files.items()) else None


def _stamp(sources: Sequence[Source]) -> str:
    """Changes when a file changes after it was ingested: digest of paths, sizes and times."""
    stats = [(path.stat(), path) for source in sources for path in (source.image, source.mask)]
    return digest([[str(path.absolute()), stat.st_size, stat.st_mtime_ns] for stat, path in stats])


def _write_shard(url: str, settings: StoreSettings, shard: tuple[int, Sequence[Source]]) -> tuple[int, IngestedShard]:
    """Read the samples of a shard and write its files and, last, its record. shard: its number and its samples."""
    number, sources = shard
    stamp = _stamp(sources)
    folder = Folder(url)
    width, height = settings.size
    images = np.empty((len(sources), height, width, 3), np.uint8)
    masks = np.empty((len(sources), height, width), np.uint8)
    samples: list[dict[str, Any]] = []
    for source, image, mask in zip(sources, images, masks, strict=True):
        image[:], image_size = read_image(source.image, settings.size)
        mask[:], mask_size = read_mask(source.mask, settings.size, settings.threshold)
        if image_size != mask_size:
            raise MtkdError(
                f"{source.mask} is {mask_size[0]}x{mask_size[1]}, its image {image_size[0]}x{image_size[1]}. "
                "Replace it by the mask of that image."
            )
        name = {"anatomy": source.anatomy, "surgery": source.surgery, "frame": source.frame}
        sha256 = content_hash(image, mask, source.anatomy, source.surgery, source.frame)
        samples.append({**name, "sha256": sha256, "crc32c": row_checksum(image, mask)})
    files: dict[str, FileEntry] = {}
    for spec, values in zip(picture_specs(settings.size), (images, masks), strict=True):
        data = spec.encode_shard(values)
        folder.write(spec.shard_key(number), data)
        files[spec.shard_key(number)] = file_entry(data)
    record = IngestedShard(sources=stamp, samples=tuple(samples), files=files)
    folder.write(_record_key(number), dump_checked_json(record.to_json()))
    return number, record


def _finalize(
    folder: Folder, name: str, records: Sequence[IngestedShard], split: Split, settings: StoreSettings
) -> StoreManifest:
    """Write the columns, the metadata and, last, the manifest that makes the store a finished one."""
    samples: list[dict[str, Any]] = [
        {**sample, "split": split.of(sample["surgery"])} for record in records for sample in record.samples
    ]
    manifest = StoreManifest(
        name=name,
        anatomies=tuple(sorted({sample["anatomy"] for sample in samples})),
        fingerprint="",
        files={key: entry for record in records for key, entry in record.files.items()},
        **settings.to_json(),
    )
    identity = {key: value for key, value in manifest.to_json().items() if key not in ("name", "fingerprint", "files")}
    identity["samples"] = sorted([sample[key] for key in IDENTITY] for sample in samples)

    codes = {"anatomy": manifest.anatomies.index, "split": SPLITS.index}
    arrays = encode_hashes(sample["sha256"] for sample in samples)
    for column, dtype in COORDINATES.items():
        arrays |= encode_column(column, np.array([codes.get(column, int)(sample[column]) for sample in samples], dtype))
    for spec in picture_specs(settings.size):
        arrays |= spec.metadata(len(samples))
    if outdated := _outdated(folder, len(records), settings.size):
        mark_incomplete(folder)
        for key in outdated:
            folder.delete(key)
    attributes = {"splits": list(SPLITS), "split": asdict(split)}
    return finalize(folder, replace(manifest, fingerprint=digest(identity)), arrays, attributes)


def _outdated(folder: Folder, shards: int, size: tuple[int, int]) -> list[str]:
    """The files of shards that the dataset no longer has; files with other names are somebody else's."""
    present = set(folder.keys())
    numbers = {int(digits) for key in present for digits in re.findall("[0-9]+", key) if int(digits) >= shards}
    keys = {key for n in numbers for key in (_record_key(n), *(spec.shard_key(n) for spec in picture_specs(size)))}
    return sorted(keys & present)
