"""Teachers + sample store -> logit cache.

Each shard file, with the maps of BLOCK samples in one view, has a record, written after it, of its samples and teachers. A build
computes the difference between what the records say and what is wanted. So an interrupted build, a teacher that was trained
again, a dataset that grew and a repair are one mechanism, and no map is computed twice.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from mtkd_cache.cache.builder import BATCH, Builder
from mtkd_cache.cache.card import write_card
from mtkd_cache.cache.layout import (
    FIGURES,
    PLAN,
    SPREAD,
    CacheManifest,
    CachePlan,
    ShardRecord,
    TeacherInfo,
    array_spec,
    fingerprint,
)
from mtkd_cache.cache.overlap import check_overlap, find_overlap
from mtkd_cache.cache.quantize import check_step
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.shards import new_figures
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cache.view_gap import gap_of_plan, known_gap
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.seen import Overlap, Seen
from mtkd_cache.recipe import Augmentation
from mtkd_cache.runtime.accelerator import run_on_all_ranks
from mtkd_cache.storage.checked_json import FileEntry, dump_checked_json, file_entry, finalize, mark_incomplete, read_record
from mtkd_cache.storage.columns import encode_column, encode_hashes
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.storage.record import differences


def build_cache(
    store: SampleStore,
    teachers: Teachers,
    spec: CacheSpec,
    url: str,
    accelerator: Accelerator,
    *,
    temperature: float,
    splits: Sequence[str] = ("train",),
    batch: int = BATCH,
    compiled: bool = False,
    allow_overlap: bool = False,
    augmentation: Augmentation | None = None,
) -> dict[str, Any]:
    """Write a logit cache, or bring one up to date with its samples and teachers; only missing or outdated maps are computed.

    The same call resumes after an interruption. Several processes (accelerate launch) share the shard files.

    Args:
        store: the samples.
        teachers: of each of the store's anatomies at least one.
        spec: settings of the cache, see `CacheSpec.of`; those of an existing cache have to be the same.
        url: folder, or fsspec URL, of the cache.
        accelerator: where the teachers run, and in which precision.
        temperature: of the softmax over pixels at which the KL of the stored from the exact logits is measured, in nats. An
            existing cache keeps its own.
        splits: whose samples the cache holds.
        batch: images in one forward pass.
        compiled: compile the teachers, see `TeacherRunner`; their logits differ in the last digits.
        allow_overlap: take teachers that have seen validation or test samples of the store; the cache records how many.
        augmentation: of the students; on a few samples, measure how far the stored maps, warped, lie from what live teachers
            would say of the pictures as students see them. None: that of an earlier build, if it had one.

    Returns:
        What `mtkd-cache build --json` prints: samples, views, anatomies, bytes, bytes_per_sample, step, max_abs_error,
        mean_kl_nats, by_anatomy, view_gap_kl_nats and spread (see `CacheManifest`), fingerprint, overlap, seconds, and
        teacher_seconds and maps_computed, both summed over the processes.

    Raises:
        MtkdError: step or teachers do not fit, another process writes there, the cache has other settings or samples, the
            teachers have seen samples that the store holds out for validation or test, or the code of a teacher of the user's own
            was changed since maps were computed and its fingerprint was not.
    """
    check_step(spec.step)
    check_overlap(teachers.seen, store, "these teachers", allow=allow_overlap)
    started = time.perf_counter()
    ranges = asdict(augmentation) if augmentation else None
    plan = CachePlan(settings=spec, temperature=temperature, samples=hashes_of(store, splits), augmentation=ranges)
    folder = Folder(url)
    with ExitStack() as stack:
        run_on_all_ranks(accelerator, lambda: stack.enter_context(locked(folder)) if accelerator.is_main_process else None)
        builder = update(folder, store, teachers, plan, accelerator, batch, compiled)
    shares = gather_object([(builder.runner.seconds, builder.maps)])
    return {
        **summary(LogitCache.open(url)),
        "seconds": time.perf_counter() - started,
        "teacher_seconds": sum(seconds for seconds, _ in shares),
        "maps_computed": sum(maps for _, maps in shares),
    }


def update(
    folder: Folder,
    store: SampleStore,
    teachers: Teachers,
    wanted: CachePlan,
    accelerator: Accelerator,
    batch: int = BATCH,
    compiled: bool = False,
) -> Builder:
    """Compute what is missing of a cache that the main process has locked, and finalize it. Returns the builder that ran.

    wanted: what the cache is to hold. Raises MtkdError in every process where one of them fails.
    """
    check_teachers(folder, wanted.settings, teachers)
    main, known = accelerator.is_main_process, known_gap(folder)
    run_on_all_ranks(accelerator, lambda: write_plan(folder, wanted) if main else None)
    plan = read_record(folder, PLAN, CachePlan)
    assert plan is not None, "it was just written"
    builder = Builder(folder, store, teachers, plan, accelerator, batch, compiled)
    run_on_all_ranks(accelerator, lambda: builder.run(plan.shard_tasks))
    seen = teachers.seen
    overlap = find_overlap(seen, store)
    described = teachers.info, seen, overlap, store.name
    gap = run_on_all_ranks(accelerator, lambda: gap_of_plan(builder, plan, known) if main else None)
    run_on_all_ranks(accelerator, lambda: finalize_cache(folder, plan, *described, view_gap=gap) if main else None)
    return builder


def check_teachers(folder: Folder, spec: CacheSpec, teachers: Teachers) -> None:
    """Raises MtkdError where the teachers are of other anatomies or another stride than a cache."""
    own, theirs = {anatomy: spec.stride_of(anatomy) for anatomy in spec.anatomies}, teachers.strides
    if list(own.items()) != list(theirs.items()):
        raise MtkdError(
            f"{folder} has maps of {told_strides(own)}, these teachers have maps of {told_strides(theirs)}. "
            "Build another cache of these teachers."
        )


def told_strides(strides: Mapping[str, int]) -> str:
    """Anatomies with their strides, for people: "liver, spleen at stride 4 and pancreas at stride 8"."""
    by_stride = {stride: [name for name, own in strides.items() if own == stride] for stride in strides.values()}
    return " and ".join(f"{', '.join(names)} at stride {stride}" for stride, names in by_stride.items())


def hashes_of(store: SampleStore, splits: Sequence[str]) -> tuple[str, ...]:
    """The content hashes of the samples of some splits, each once."""
    return tuple(dict.fromkeys(str(sha256) for split in splits for sha256 in store.hashes[store.rows(split)]))


def write_plan(folder: Folder, wanted: CachePlan) -> None:
    """Write which sample each row is of: existing rows stay where they are, new samples follow. Only one process may call it.

    A cache of fewer views grows: its maps stay, and new views are drawn as it draws them.

    Raises MtkdError where the cache in the folder has other settings, or samples that are not wanted. It keeps its temperature.
    """
    try:
        plan = read_record(folder, PLAN, CachePlan)
    except MtkdError as error:
        raise MtkdError(
            f"{folder}/{PLAN} is damaged, which lists the samples of the rows. Run mtkd-cache verify --repair --cache {folder}."
        ) from error
    if plan is None and any(True for _ in folder.keys()):
        raise MtkdError(f"{folder} is not empty and is not a logit cache. Name another --cache.")
    folder.delete_temporaries()
    current = plan or replace(wanted, samples=())
    if grown := current.settings.grown(wanted.settings):
        current = replace(current, settings=grown)
        wanted = replace(wanted, settings=replace(wanted.settings, views=grown.views))
    old, new = current.settings.to_json(), wanted.settings.to_json()
    if told := differences({key: old.get(key) for key in new}, new):
        raise MtkdError(f"{folder} was started with other settings: {', '.join(told)}. Name another --cache, or delete that one.")
    if gone := set(current.samples) - set(wanted.samples):
        raise MtkdError(
            f"{folder} holds {len(gone)} samples that are no longer selected (changed, removed, or of another split). "
            "Name another --cache, or delete that one."
        )
    new_plan = replace(current, samples=tuple(dict.fromkeys([*current.samples, *wanted.samples])))
    new_plan = replace(new_plan, augmentation=wanted.augmentation or current.augmentation)
    if new_plan != plan:
        mark_incomplete(folder)
        folder.write(PLAN, dump_checked_json(new_plan.to_json()))


def finalize_cache(
    folder: Folder,
    plan: CachePlan,
    teachers: dict[str, TeacherInfo],
    seen: Seen | None,
    overlap: Overlap | None,
    dataset: str,
    view_gap: dict[str, dict[str, float]] | None = None,
) -> None:
    """Write columns and metadata, the manifest that makes the cache a finished one, and its card. Only one process may call."""
    spec = plan.settings
    figures, files = _recorded(folder, plan)
    errors = _errors(figures, spec)
    if plan.augmentation and spec.n_views > 1:
        view_gap = {name: dict.fromkeys(("quantization", "recipe"), error["mean_kl_nats"]) for name, error in errors.items()}
    manifest = CacheManifest(
        format=spec.format,
        settings=spec,
        teachers=teachers,
        temperature=plan.temperature,
        seen=seen,
        overlap=overlap,
        errors=errors,
        view_gap_kl_nats=view_gap,
        spread=_spread(figures, teachers) or None,
        fingerprint=fingerprint(spec, teachers, plan.samples),
        files=files,
    )
    arrays = {**encode_hashes(plan.samples), **encode_column("crc32c", figures["crc32c"], "view", "anatomy")}
    for array in spec.arrays:
        arrays |= array_spec(spec, array).metadata(len(plan.samples))
    write_card(folder, plan, finalize(folder, manifest, arrays), dataset)


def _recorded(folder: Folder, plan: CachePlan) -> tuple[np.ndarray, dict[str, FileEntry]]:
    """The figures of all maps, see `new_figures`, and the entries of all files. Raises MtkdError where a record is missing."""
    spec, tasks = plan.settings, plan.shard_tasks
    figures = new_figures(len(plan.samples), spec.n_views, len(spec.anatomies))
    files: dict[str, FileEntry] = {}
    for task in tasks:
        record = read_record(folder, task.record_key, ShardRecord)
        if record is None or not task.owns(record, spec):
            raise MtkdError(f"{folder} is not finished: a process did not write its share. Run the same command again.")
        files[record.key] = record.entry
        place, none = (task.rows, task.view, task.array.anatomies), [0.0] * len(task.array.anatomies)
        for key in FIGURES:
            figures[key][place] = [row[key] for row in record.rows]
        figures[SPREAD][place] = [row.get(SPREAD, none) for row in record.rows]
    files |= {key: file_entry(folder.read(key)) for key in (PLAN, *(task.record_key for task in tasks))}
    return figures, files


def _errors(figures: np.ndarray, spec: CacheSpec) -> dict[str, dict[str, float]]:
    """The figures of each anatomy's maps, over all samples and views."""
    values = {}
    for array in spec.arrays:
        for index in array.anatomies:
            own = figures[..., index]
            values[spec.anatomies[index]] = {
                "max_abs_error": float(own["max_error"].max()),
                "mean_kl_nats": float(own["kl"].mean()),
                "bits_per_logit": float(own["bits"].mean()) / math.prod(array.grid),
            }
    return {anatomy: values[anatomy] for anatomy in spec.anatomies}


def _spread(figures: np.ndarray, teachers: Mapping[str, TeacherInfo]) -> dict[str, float]:
    """Of each anatomy with several teachers, the mean spread of its maps."""
    several = [(index, anatomy) for index, (anatomy, info) in enumerate(teachers.items()) if "members" in info]
    return {anatomy: float(figures[SPREAD][..., index].mean()) for index, anatomy in several}


def summary(cache: LogitCache) -> dict[str, Any]:
    """What a finished cache holds, as `build` reports it."""
    manifest = cache.manifest
    size = sum(entry["bytes"] for entry in manifest.files.values())
    errors = manifest.errors.values()
    return {
        "cache": cache.url,
        "samples": len(cache.row_of),
        "views": cache.views,
        "anatomies": list(cache.anatomies),
        "bytes": size,
        "bytes_per_sample": size / max(len(cache.row_of), 1),
        "step": cache.step,
        "max_abs_error": max(error["max_abs_error"] for error in errors),
        "mean_kl_nats": sum(error["mean_kl_nats"] for error in errors) / len(cache.anatomies),
        "by_anatomy": manifest.errors,
        "view_gap_kl_nats": manifest.view_gap_kl_nats,
        "spread": manifest.spread,
        "fingerprint": cache.fingerprint,
        "overlap": manifest.overlap and manifest.overlap.to_json(),
    }
