"""Dataset folder -> sample store. PNG decoding and resizing happen here once, and never in an epoch."""

import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtkd_cache.data.dresden import SPLITS, Source, Split, check_split, find_samples, read_image, read_mask
from mtkd_cache.data.sample_store import COORDINATES, FORMAT, PREPROCESSING, SHARD, content_hash, picture_specs
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import (
    MANIFEST,
    digest,
    dump_checked_json,
    file_entry,
    is_whole,
    mark_incomplete,
    read_checked_json,
)
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.storage.shard_writer import ArraySpec, group_metadata, row_checksum


def ingest(
    dataset: Path,
    store: str,
    *,
    size: tuple[int, int] = (640, 512),
    split: Split | None = None,
    threshold: int | None = None,
    workers: int = 1,
) -> dict:
    """Write the sample store of a dataset folder; what an earlier call wrote of the same files, and is whole, is kept.

    size: (width, height) of the store's pictures. threshold: see `read_mask`. workers: processes that read and resize.
    Returns the counts named in the `--json` contract. Raises MtkdError for every fault of the dataset.
    """
    split = split or Split()
    sources, skipped = find_samples(dataset)
    check_split(sources, split)
    folder = Folder(store)
    settings = {"size": list(size), "threshold": threshold, "preprocessing": PREPROCESSING}
    with locked(folder):
        _check_settings(folder, settings)
        folder.delete_temporaries()
        work = [sources[start : start + SHARD] for start in range(0, len(sources), SHARD)]
        records = _write_shards(folder, work, settings, workers)
        manifest = _finalize(folder, dataset.resolve().name, records, split, settings)
    return {
        "samples": len(sources),
        "by_split": dict(Counter(split.of(source.surgery) for source in sources)),
        "by_anatomy": dict(Counter(source.anatomy for source in sources)),
        "skipped": skipped,
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "fingerprint": manifest["fingerprint"],
        "store": store,
    }


def _check_settings(folder: Folder, settings: dict) -> None:
    written = _read_or_none(folder, "settings.json")
    if found := written or _read_or_none(folder, MANIFEST, *settings):
        found = {key: found.get(key) for key in settings}
        if found != settings:
            raise MtkdError(f"{folder} was begun with other settings ({found}). Name another --store, or delete that one.")
    elif any(True for _ in folder.keys()):
        raise MtkdError(f"{folder} is not empty and is no sample store, or a damaged one. Name another --store.")
    if not written:
        folder.write("settings.json", dump_checked_json(settings))


def _write_shards(folder: Folder, work: list[list[Source]], settings: dict, workers: int) -> list[dict]:
    """Write the shards that are not there yet, and return every shard's record in order."""
    records: dict[int, dict] = {}
    todo = []
    progress = tqdm(total=sum(map(len, work)), desc="ingest", unit="image", disable=None)
    for number, sources in enumerate(work):
        record = _kept_record(folder, number, sources)
        if record is None:
            todo.append((number, sources))
        else:
            records[number] = record
            progress.update(len(sources))
    if todo:
        mark_incomplete(folder)
    write = partial(_write_shard, folder.url, tuple(settings["size"]), settings["threshold"])
    for number, record in _run(write, todo, workers):
        records[number] = record
        progress.update(len(record["samples"]))
    progress.close()
    return [records[number] for number in sorted(records)]


def _run(write: partial, todo: list, workers: int) -> Iterable[tuple[int, dict]]:
    if workers <= 1 or len(todo) <= 1:
        yield from map(write, todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_end_with_parent) as pool:
        try:
            yield from pool.map(write, todo)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _record_key(number: int) -> str:
    return f"records/{number:05d}.json"


def _kept_record(folder: Folder, number: int, sources: list[Source]) -> dict | None:
    """The record of a shard that an earlier call finished from the very same files and that is whole, or None."""
    record = _read_or_none(folder, _record_key(number))
    if record is None or record["sources"] != _stamp(sources):
        return None
    return record if all(is_whole(folder, key, entry) for key, entry in record["files"].items()) else None


def _read_or_none(folder: Folder, key: str, *members: str) -> dict | None:
    """The value of a sealed file, or None where it is absent, damaged or lacks a member."""
    try:
        return read_checked_json(folder, key, *members)
    except MtkdError:
        return None


def _stamp(sources: list[Source]) -> str:
    """What tells whether files changed since they were ingested: names, sizes and times."""
    stats = [(path.stat(), path) for source in sources for path in (source.image, source.mask)]
    return digest([[str(path.absolute()), stat.st_size, stat.st_mtime_ns] for stat, path in stats])


def _write_shard(url: str, size: tuple[int, int], threshold: int | None, work: tuple[int, list[Source]]) -> tuple[int, dict]:
    number, sources = work
    stamp = _stamp(sources)
    folder = Folder(url)
    images = np.empty((len(sources), size[1], size[0], 3), np.uint8)
    masks = np.empty((len(sources), size[1], size[0]), np.uint8)
    samples = []
    for index, source in enumerate(sources):
        images[index], image_size = read_image(source.image, size)
        masks[index], mask_size = read_mask(source.mask, size, threshold)
        if image_size != mask_size:
            raise MtkdError(
                f"{source.mask} is {mask_size[0]}x{mask_size[1]}, its image {image_size[0]}x{image_size[1]}. "
                "Bring the mask of that image."
            )
        name = {"anatomy": source.anatomy, "surgery": source.surgery, "frame": source.frame}
        sha256 = content_hash(images[index], masks[index], **name)
        samples.append({**name, "sha256": sha256, "crc32c": row_checksum(images[index], masks[index])})
    files = {}
    for spec, values in zip(picture_specs(size), (images, masks), strict=True):
        data = spec.encode_shard(values)
        folder.write(spec.shard_key(number), data)
        files[spec.shard_key(number)] = file_entry(data)
    record = {"sources": stamp, "samples": samples, "files": files}
    folder.write(_record_key(number), dump_checked_json(record))
    return number, record


def _finalize(folder: Folder, name: str, records: list[dict], split: Split, settings: dict) -> dict:
    """Write the columns, the metadata and, last, the manifest that makes the store a finished one."""
    samples = [sample for record in records for sample in record["samples"]]
    anatomies = sorted({sample["anatomy"] for sample in samples})
    for sample in samples:
        sample["split"] = split.of(sample["surgery"])
    keys = ("anatomy", "surgery", "frame", "split", "sha256")
    described = {"kind": "sample store", "format": FORMAT, "name": name, "anatomies": anatomies, **settings}
    identity = {**described, "samples": sorted([sample[key] for key in keys] for sample in samples)}
    identity.pop("name")
    fingerprint = digest(identity)

    codes = {"anatomy": anatomies.index, "split": SPLITS.index}
    small: dict[str, bytes] = {}
    for column, dtype in COORDINATES.items():
        values = np.array([codes.get(column, int)(sample[column]) for sample in samples], dtype)
        small |= ArraySpec(column, dtype, (), ("sample",)).whole(values)
    hashes = np.array([list(bytes.fromhex(sample["sha256"])) for sample in samples], np.uint8)
    small |= ArraySpec("sha256", "uint8", (32,), ("sample", "byte")).whole(hashes)
    for spec in picture_specs(tuple(settings["size"])):
        small |= spec.metadata(len(samples))
    attributes = {**described, "splits": list(SPLITS), "split": asdict(split), "fingerprint": fingerprint, "complete": True}
    arrays = {key: data for key, data in small.items() if key.endswith("zarr.json")}
    small["zarr.json"] = group_metadata(attributes, arrays)

    files = {key: entry for record in records for key, entry in record["files"].items()}
    files |= {key: file_entry(data) for key, data in small.items()}
    manifest = {**described, "fingerprint": fingerprint, "files": files}
    if _read_or_none(folder, MANIFEST) != manifest or not all(is_whole(folder, key, files[key]) for key in small):
        mark_incomplete(folder)
        for key in _stale(folder, len(records), tuple(settings["size"])):
            folder.delete(key)
        for key, data in small.items():
            folder.write(key, data)
        folder.write(MANIFEST, dump_checked_json(manifest))
    return manifest


def _stale(folder: Folder, shards: int, size: tuple[int, int]) -> list[str]:
    """The files of shards that the dataset no longer has. What the store would not name so belongs to somebody else."""
    stale = []
    for key in folder.keys():
        number = int((re.findall("[0-9]+", key) or [-1])[0])
        if number >= shards and key in (_record_key(number), *(spec.shard_key(number) for spec in picture_specs(size))):
            stale.append(key)
    return stale
