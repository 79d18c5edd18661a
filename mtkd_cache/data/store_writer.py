"""Writes a sample store shard by shard, so that an interrupted ingest resumes and a changed file is read again."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from mtkd_cache.data.dresden import read_image, read_mask
from mtkd_cache.data.sample_store import (
    COORDINATES,
    PRESENT,
    SETTINGS,
    SHARD,
    SampleStore,
    StoreManifest,
    StoreSettings,
    content_hash,
    picture_specs,
)
from mtkd_cache.data.samples import SPLITS, Sample, patient_order, stored_patient
from mtkd_cache.data.weak_labels import check_labels, present
from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime.processes import run_in_processes
from mtkd_cache.runtime.progress import progress_bar
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
from mtkd_cache.storage.record import JsonRecord, differences
from mtkd_cache.storage.shard_writer import row_checksum

IDENTITY = ("anatomy", "surgery", "frame", "split", "sha256")  # what the fingerprint takes of each sample
Name = tuple[str, str, int | None]  # anatomy, patient, frame
IDENTITY_SETTINGS = ("kind", "format", "anatomies", "size", "threshold", "preprocessing")  # and of the manifest


@dataclass(frozen=True, kw_only=True)
class IngestedShard(JsonRecord):
    """What the shard files with a number hold.

    sources: see `_stamp`. samples: {anatomy, surgery, frame, sha256, crc32c, size, foreground} each; surgery is the patient, see
    `stored_patient`; crc32c is of the decoded image and mask; size is the files' [width, height]; foreground, whether the mask
    has any. Version 0.1 did not write the last two.
    """

    sources: str
    samples: tuple[dict[str, Any], ...]
    files: dict[str, FileEntry]


def write_store(
    folder: Folder, name: str, samples: Sequence[Sample], settings: StoreSettings, workers: int, resplit: bool = False
) -> tuple[StoreManifest, list[dict[str, Any]], int]:
    """Write a sample store, except for the shards that are there already.

    samples: complete and in the order of the store. resplit: samples may change their split. Returns the manifest, what
    `IngestedShard` holds of each sample, and how many samples of a finished store were removed.
    Raises MtkdError: see `mtkd_cache.data.ingest.ingest_samples`.
    """
    with locked(folder):
        _check_settings(folder, settings)
        removed = _check_samples(folder, samples, settings, resplit)
        folder.delete_temporaries()
        shards = [samples[start : start + SHARD] for start in range(0, len(samples), SHARD)]
        records = _write_shards(folder, shards, settings, workers)
        rows = [row for record in records for row in record.samples]
        check_labels(samples, [row["foreground"] for row in rows])
        return _finalize(folder, name, records, samples, settings), rows, removed


def _check_settings(folder: Folder, settings: StoreSettings) -> None:
    """Write the settings of a new store. Raises MtkdError where the folder holds one with other settings, or something else."""
    written = if_intact(read_record, folder, SETTINGS, StoreSettings)
    existing = written or if_intact(read_record, folder, MANIFEST, StoreSettings)
    if existing and (told := differences(replace(existing, extra={}).to_json(), settings.to_json())):
        raise MtkdError(f"{folder} was started with other settings: {', '.join(told)}. Name another --store, or delete that one.")
    if not existing and any(True for _ in folder.keys()):
        raise MtkdError(f"{folder} is not empty and is not a sample store, or a damaged one. Name another --store.")
    if written != settings:
        folder.write(SETTINGS, dump_checked_json(settings.to_json()))


def _check_samples(folder: Folder, samples: Sequence[Sample], settings: StoreSettings, resplit: bool) -> int:
    """How many samples of a finished store are not among these, by name. Raises MtkdError where it has none of these.

    Unless resplit, also where it has some of these in another split.
    """
    store = if_intact(SampleStore.open, folder.url)
    if store is None:
        return 0
    names = zip((store.anatomies[index] for index in store.anatomy), store.patients, store.frame, strict=True)
    splits = dict(zip(names, (SPLITS[index] for index in store.split), strict=True))
    known = {name: sample for sample in samples if (name := _opened_name(sample)) in splits}
    hashes, pictures = set(store.hashes), _read(list(known.values()), settings)  # read until one is the same
    named = (_stored_name(sample).values() for sample in known.values())
    if not any(content_hash(image, mask, *name) in hashes for name, (image, mask, _) in zip(named, pictures, strict=True)):
        raise MtkdError(
            f"{folder} holds other samples ({len(store)} of the dataset {store.name}, first {store.describe(0)}). "
            "Name another --store, or delete that one."
        )
    if not resplit:
        _check_splits(folder, {name: (splits[name], str(sample.split)) for name, sample in known.items()})
    return len(splits.keys() - known.keys())


def _check_splits(folder: Folder, splits: Mapping[Name, tuple[str, str]]) -> None:
    """Raises MtkdError where samples would move. splits: of each sample that a store has, that which it had and the new one."""
    moved: dict[tuple[str, str], list[str]] = {}
    for (_, patient, _), (before, split) in splits.items():
        if before != split:
            moved.setdefault((before, split), []).append(patient)
    if moved:
        told = "; ".join(
            f"{len(patients)} samples from {before} to {split} (patients {', '.join(sorted(set(patients), key=patient_order))})"
            for (before, split), patients in moved.items()
        )
        raise MtkdError(
            f"{folder} has another split. This would move {told}; its networks and caches would no longer fit. "
            "Name another --store, or change this one's split with --resplit."
        )


def _write_shards(
    folder: Folder, shards: Sequence[Sequence[Sample]], settings: StoreSettings, workers: int
) -> list[IngestedShard]:
    """Write the shards that are missing, outdated or damaged, and return every shard's record in order."""
    records = [_kept_record(folder, number, samples) for number, samples in enumerate(shards)]
    todo = [(number, samples) for number, samples in enumerate(shards) if records[number] is None]
    kept = sum(len(record.samples) for record in records if record)
    progress = progress_bar("ingest", "sample", sum(map(len, shards)), kept)
    if todo:
        mark_incomplete(folder)
    for number, record in run_in_processes(partial(_write_shard, folder.url, settings), todo, workers):
        records[number] = record
        progress.update(len(record.samples))
    progress.close()
    return [record for record in records if record]


def _record_key(number: int) -> str:
    return f"records/{number:05d}.json"


def _kept_record(folder: Folder, number: int, samples: Sequence[Sample]) -> IngestedShard | None:
    """The record of a shard that is whole and was written of the same samples from the very same files, or None."""
    record = if_intact(read_record, folder, _record_key(number), IngestedShard)
    if record is None or record.sources != _stamp(samples):
        return None
    names = [{key: sample.get(key) for key in ("anatomy", "surgery", "frame")} for sample in record.samples]
    if names != [_stored_name(sample) for sample in samples] or not all("foreground" in sample for sample in record.samples):
        return None
    return record if all(is_whole(folder, key, entry) for key, entry in record.files.items()) else None


def _stamp(samples: Sequence[Sample]) -> str:
    """Changes when a file changes after it was ingested: digest of paths, sizes and times."""
    stats = [(path.stat(), path) for sample in samples for path in (sample.image, sample.mask)]
    return digest([[str(path.absolute()), stat.st_size, stat.st_mtime_ns] for stat, path in stats])


def _stored_name(sample: Sample) -> dict[str, Any]:
    """What a sample is called in records and hashes."""
    return {"anatomy": sample.anatomy, "surgery": stored_patient(sample.patient), "frame": sample.frame}


def _opened_name(sample: Sample) -> Name:
    """What it is called in a `SampleStore`."""
    return sample.anatomy, str(stored_patient(sample.patient)), sample.frame


def _write_shard(url: str, settings: StoreSettings, shard: tuple[int, Sequence[Sample]]) -> tuple[int, IngestedShard]:
    """Read the samples of a shard and write its files and, last, its record. shard: its number and its samples."""
    number, samples = shard
    stamp = _stamp(samples)
    folder = Folder(url)
    width, height = settings.size
    images = np.empty((len(samples), height, width, 3), np.uint8)
    masks = np.empty((len(samples), height, width), np.uint8)
    rows: list[dict[str, Any]] = []
    for sample, image, mask, read in zip(samples, images, masks, _read(samples, settings), strict=True):
        image[:], mask[:], image_size = read
        name = _stored_name(sample)
        hashes = {"sha256": content_hash(image, mask, *name.values()), "crc32c": row_checksum(image, mask)}
        rows.append({**name, **hashes, "size": list(image_size), "foreground": bool(mask.any())})
    files: dict[str, FileEntry] = {}
    for spec, values in zip(picture_specs(settings.size), (images, masks), strict=True):
        data = spec.encode_shard(values)
        folder.write(spec.shard_key(number), data)
        files[spec.shard_key(number)] = file_entry(data)
    record = IngestedShard(sources=stamp, samples=tuple(rows), files=files)
    folder.write(_record_key(number), dump_checked_json(record.to_json()))
    return number, record


def _read(samples: Sequence[Sample], settings: StoreSettings) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """Image, mask and the files' (width, height) of each sample; an image that several samples in a row share is read once."""
    for path, sharing in groupby(samples, lambda sample: sample.image):
        image = None
        for sample in sharing:
            try:
                if image is None:
                    image, image_size = read_image(path, settings.size)
                mask, mask_size = read_mask(sample.mask, settings.size, settings.threshold)
                if image_size != mask_size:
                    raise MtkdError(
                        f"{sample.mask} is {mask_size[0]}x{mask_size[1]}, its image {image_size[0]}x{image_size[1]}. "
                        "Replace it by the mask of that image."
                    )
            except MtkdError as error:
                raise MtkdError(f"{sample.listed}: {error}" if sample.listed else str(error)) from error
            yield image, mask, image_size


def _finalize(
    folder: Folder, name: str, records: Sequence[IngestedShard], listed: Sequence[Sample], settings: StoreSettings
) -> StoreManifest:
    """Write the columns, the metadata and, last, the manifest that makes the store a finished one."""
    rows = (sample for record in records for sample in record.samples)
    samples: list[dict[str, Any]] = [{**row, "split": sample.split} for row, sample in zip(rows, listed, strict=True)]
    named = any(isinstance(sample["surgery"], str) for sample in samples)
    patients = tuple(sorted({str(sample["surgery"]) for sample in samples}, key=patient_order)) if named else None
    manifest = StoreManifest(
        format=2 if patients else 1,
        name=name,
        anatomies=tuple(sorted({sample["anatomy"] for sample in samples})),
        patients=patients,
        fingerprint="",
        files={key: entry for record in records for key, entry in record.files.items()},
        **settings.to_json(),
    )
    patient_codes = {str(patient): code for code, patient in enumerate(patients or ())}
    codes: dict[str, Callable[[Any], int]] = {"anatomy": manifest.anatomies.index, "split": SPLITS.index}
    if patients:
        codes["surgery"] = lambda patient: patient_codes[str(patient)]
    arrays = encode_hashes(sample["sha256"] for sample in samples)
    for column, dtype in COORDINATES.items():
        arrays |= encode_column(column, np.array([codes.get(column, int)(sample[column]) for sample in samples], dtype))
    for spec in picture_specs(settings.size):
        arrays |= spec.metadata(len(samples))
    labels = present(listed, manifest.anatomies)
    labels_fingerprint = None
    if (labels >= 0).any():
        arrays |= encode_column(PRESENT, labels, "structure")
        labels_fingerprint = digest(sorted([row["sha256"], *known] for row, known in zip(samples, labels.tolist(), strict=True)))
    if outdated := _outdated(folder, len(records), settings.size, arrays):
        mark_incomplete(folder)
        for key in outdated:
            folder.delete(key)
    manifest = replace(manifest, fingerprint=_fingerprint(manifest, samples), labels_fingerprint=labels_fingerprint)
    return finalize(folder, manifest, arrays, {"splits": list(SPLITS)})


def _fingerprint(manifest: StoreManifest, samples: Sequence[dict[str, Any]]) -> str:
    """The digest of the settings and, in whatever order they are given, of the samples with their splits."""
    content = manifest.to_json()
    identity = {key: content[key] for key in IDENTITY_SETTINGS}
    identities = [[sample[key] for key in IDENTITY] for sample in samples]
    identity["samples"] = sorted(identities, key=lambda item: (item[0], patient_order(item[1]), item[2:]))
    return digest(identity)


def _outdated(folder: Folder, shards: int, size: tuple[int, int], arrays: Iterable[str]) -> list[str]:
    """The files of shards and labels that the dataset no longer has; files with other names are somebody else's."""
    existing = set(folder.keys())
    numbers = {int(digits) for key in existing for digits in re.findall("[0-9]+", key) if int(digits) >= shards}
    keys = {key for n in numbers for key in (_record_key(n), *(spec.shard_key(n) for spec in picture_specs(size)))}
    labels = set(encode_column(PRESENT, np.zeros((1, 1), np.int8), "structure"))
    return sorted(existing & (keys | labels - set(arrays)))
