"""Checks that a logit cache is whole, current and what its teachers compute, and rebuilds only damaged shards.

A repair deletes what is broken and hands over to `mtkd_cache.cache.build.update`, which computes what is missing.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtkd_cache.cache.build import check_teachers, hashes_of, update
from mtkd_cache.cache.builder import Builder, changed_source
from mtkd_cache.cache.integrity import IntegrityReport, check_integrity, metadata_keys
from mtkd_cache.cache.layout import PLAN, CacheManifest, CachePlan, fingerprint, holds_cache, record_key
from mtkd_cache.cache.overlap import find_overlap, seen_by
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cache.view_gap import gap_of_plan
from mtkd_cache.data.sample_store import PREPROCESSING, SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256
from mtkd_cache.models.records import read_teacher
from mtkd_cache.models.seen import UNKNOWN, Overlap
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.storage.checked_json import GROUP, MANIFEST, dump_checked_json, if_intact, mark_incomplete, read_record
from mtkd_cache.storage.columns import read_hashes
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked

ROUNDING = {"no": 1e-5, "fp16": 4e-3, "bf16": 3e-2}  # of the largest logit: what another batch size may change
TF32 = 4e-3  # the same on a GPU, whose convolutions round to TF32 by default
OTHER_STORE, OVERLAP = "other store", "overlap"  # the kinds of problems that cannot be repaired


def verify_cache(
    url: str,
    *,
    store: SampleStore | None = None,
    teachers: Teachers | Path | None = None,
    splits: Sequence[str] = ("train",),
    live: int = 0,
    repair: bool = False,
    seed: int = 0,
    device: str | None = None,
    allow_overlap: bool = False,
) -> dict[str, Any]:
    """Check every byte of a logit cache, and whatever else can be checked with what is given.

    Args:
        url: folder, or fsspec URL, of the cache.
        store: check that the cache holds its samples of these splits, and no others.
        teachers: check that the maps are theirs; their folder, or the loaded teachers.
        splits: see store.
        live: re-run the teachers on this many random samples and compare; needs store and teachers.
        repair: rebuild what is damaged or not current, and nothing else; needs store and teachers.
        seed: draws the samples of live.
        device: where the teachers run, see `make_accelerator`; None for what is available.
        allow_overlap: that the teachers have seen validation or test samples of the store is no problem.

    Returns:
        ok; problems, a list of {kind, where, what_to_do}; repaired, those that are no more; maps_computed by the repair;
        cache, finished, fingerprint, files, bytes, seconds; live, None or {samples, maps, max_difference, view_gap_kl_nats (of a
        cache that was built for an augmentation, see `CacheManifest`), seed}; overlap, None without store or {seen, of,
        patients, complete}.

    Raises:
        MtkdError: there is no cache, or what was in it is lost, so that it cannot be repaired.
    """
    started, folder = time.perf_counter(), _cache_folder(url, rerun=teachers is not None or bool(live) or repair)
    sources = None if store is None or teachers is None else _Sources(store, teachers, device)
    if (live or repair) and sources is None:
        raise MtkdError("--live and --repair run the teachers on the samples. Name both, --store and --teachers.")
    before, computed, spot_check = [], 0, None
    with locked(folder) if repair else nullcontext():
        report = _check(folder, store, teachers, splits)
        if repair and sources and report.problems and all(problem["kind"] != OTHER_STORE for problem in report.problems):
            before = report.problems
            computed = _repair(folder, report, sources, splits)
            report = _check(folder, store, teachers, splits)
    if live and sources and report.manifest and not report.broken:
        spot_check = _spot_check(LogitCache.open(url), sources, live, seed, report)
    overlap = None if store is None else _compare_seen(report, store, teachers, allow_overlap)
    return {
        "ok": not report.problems,
        "problems": report.problems,
        "repaired": [problem for problem in before if problem not in report.problems],
        "cache": str(folder),
        "finished": report.manifest is not None,
        "fingerprint": report.manifest and report.manifest.fingerprint,
        "files": report.files,
        "bytes": report.bytes,
        "maps_computed": computed,
        "live": spot_check,
        "overlap": overlap and overlap.to_json(),
        "seconds": time.perf_counter() - started,
    }


def _cache_folder(url: str, rerun: bool) -> Folder:
    """The folder of a cache. rerun: whether teachers are to be asked.

    Raises MtkdError where nothing of a cache is there, and where another program computed the logits, so that there is nobody to
    ask.
    """
    folder = Folder(url)
    if not holds_cache(folder):
        raise MtkdError(f"{folder} is not a logit cache. Run mtkd-cache build --cache {folder}.")
    if not rerun:
        return folder
    described = if_intact(read_record, folder, PLAN, CachePlan) or if_intact(read_record, folder, MANIFEST, CacheManifest)
    if described and described.settings.source:
        raise MtkdError(
            f"{folder} has the logits of {described.settings.source}: there is no teacher to ask. "
            "Verify it without --teachers, --live and --repair; damaged maps are written again by the program that wrote them."
        )
    return folder


@dataclass(frozen=True)
class _Sources:
    """What maps are computed from, and where."""

    store: SampleStore
    teachers: Teachers | Path
    device: str | None

    def load(self) -> Teachers:
        return self.teachers if isinstance(self.teachers, Teachers) else Teachers.load(self.teachers, self.store)


def _check(folder: Folder, store: SampleStore | None, teachers: Teachers | Path | None, splits: Sequence[str]) -> IntegrityReport:
    report = check_integrity(folder)
    if store is not None:
        _compare_samples(report, store, splits)
    if teachers is not None:
        _compare_teachers(report, teachers)
    return report


def _compare_samples(report: IntegrityReport, store: SampleStore, splits: Sequence[str]) -> None:
    if described := report.manifest or report.plan:
        spec = described.settings
        for what, cached, stored in (
            ("anatomies", list(spec.anatomies), list(store.anatomies)),
            ("size", list(spec.size), list(store.size)),
            ("preprocessing", spec.preprocessing, PREPROCESSING),
        ):
            if cached != stored:
                report.add(OTHER_STORE, what, f"The cache is of {cached}, the store of {stored}. Build a cache of this store.")
    if report.plan:
        samples = set(report.plan.samples)
        if gone := samples - set(store.hashes):
            text = f"{len(gone)} cached samples are changed there, or gone. Build a cache of this store under another name."
            report.add(OTHER_STORE, store.url, text)
        if new := sum(sha256 not in samples for sha256 in hashes_of(store, splits)):
            report.add("samples", store.url, f"{new} samples are not cached. Run mtkd-cache build.")


def _compare_teachers(report: IntegrityReport, teachers: Teachers | Path) -> None:
    sources = [report.manifest] if report.manifest else list(report.records.values())
    for anatomy in dict.fromkeys(anatomy for source in sources for anatomy in source.teachers):
        recorded = [source.teachers[anatomy] for source in sources if anatomy in source.teachers]
        where, sha256, now = anatomy, None, None
        if isinstance(teachers, Path):
            where = str(teachers / anatomy / WEIGHTS)
            sha256 = file_sha256(Path(where)) if Path(where).is_file() else None
        elif now := teachers.info.get(anatomy):
            sha256 = now["weights_sha256"]
        if isinstance(teachers, Path) and any("members" in info for info in recorded):
            report.add("teacher", anatomy, "Several teachers answered for it. Name them with --teacher.")
        elif sha256 is None:
            report.add("teacher", where, "It is missing. Train it, or name another --teachers, or the teacher with --teacher.")
        elif {info["weights_sha256"] for info in recorded} != {sha256}:
            text = "It was trained since. Run mtkd-cache build, which computes this teacher's maps again and no others."
            report.add("teacher", where, text)
        elif now and any(changed_source(info, now) for info in recorded):
            text = "Its code was changed since, its fingerprint was not. Restore it, or change the fingerprint."
            report.add("teacher", where, text)


def _compare_seen(report: IntegrityReport, store: SampleStore, teachers: Teachers | Path | None, allow: bool) -> Overlap:
    """The store's validation and test samples that the teachers have seen, by the cache's manifest or else by their records.

    Any is a problem, unless that is allowed.
    """
    seen = report.manifest and report.manifest.seen
    if seen is None and isinstance(teachers, Path):
        seen = seen_by([read_teacher(teachers / anatomy) for anatomy in store.anatomies], store.size)
    elif seen is None and isinstance(teachers, Teachers):
        seen = teachers.seen
    overlap = find_overlap(seen or UNKNOWN, store)
    if overlap.found and not allow:
        report.add(OVERLAP, f"the teachers saw {overlap}", "Train teachers on this store, or allow it with --allow-overlap.")
    return overlap


def _repair(folder: Folder, report: IntegrityReport, sources: _Sources, splits: Sequence[str]) -> int:
    """Delete what is broken in a locked folder and compute what then is missing. Returns the number of maps computed."""
    plan = report.plan = report.plan or _recover_plan(folder, report)
    teachers = sources.load()
    check_teachers(folder, plan.settings, teachers)
    folder.write(PLAN, dump_checked_json(plan.to_json()))
    record_of = {task.shard_key: task.record_key for task in report.shard_tasks}
    for key in sorted(report.broken - {PLAN}):
        if key in record_of:
            folder.delete(record_of[key])
        folder.delete(key)
    mark_incomplete(folder)
    wanted = replace(plan, samples=tuple(dict.fromkeys([*plan.samples, *hashes_of(sources.store, splits)])))
    accelerator = make_accelerator(sources.device, plan.settings.precision)
    return update(folder, sources.store, teachers, wanted, accelerator).maps


def _recover_plan(folder: Folder, report: IntegrityReport) -> CachePlan:
    """The plan from other files, proved by the cache's fingerprint. Raises MtkdError where that fails.

    The manifest and the group's attributes hold the settings, the column of hashes and the records the rows' samples.
    """
    manifest = report.manifest or _manifest_of_group(folder)
    end = record_key(0, 0, manifest.settings.arrays[0]).removeprefix("records/00000") if manifest else ""
    plain = sorted(key for key in report.records if key.endswith(end))
    columns = [[row["sha256"] for key in plain for row in report.records[key].rows]]
    if report.manifest and not report.broken & metadata_keys(report.manifest.settings):
        columns.append(read_hashes(folder.zarr()))
    for hashes in columns:
        if manifest and fingerprint(manifest.settings, manifest.teachers, hashes) == manifest.fingerprint:
            return CachePlan(settings=manifest.settings, temperature=manifest.temperature, samples=tuple(hashes))
    raise MtkdError(f"{folder}/{PLAN} is lost, and with it which samples the rows are of. Delete the cache and build it again.")


def _manifest_of_group(folder: Folder) -> CacheManifest | None:
    """What the group's attributes hold of a lost manifest: all but the list of files."""
    try:
        attributes = json.loads(folder.read(GROUP))["attributes"]
        return CacheManifest.from_json({"files": {}, **attributes}, f"{folder}/{GROUP}")
    except (MtkdError, ValueError, KeyError, TypeError, OSError):
        return None


def _spot_check(cache: LogitCache, sources: _Sources, count: int, seed: int, report: IntegrityReport) -> dict[str, Any] | None:
    """Re-run the teachers on random samples and views, and report cached maps that differ by more than rounding.

    None for teachers of other strides than the maps, which is reported.
    """
    spec, store, teachers = cache.spec, sources.store, sources.load()
    if other := [anatomy for anatomy in cache.anatomies if teachers.strides.get(anatomy) != spec.stride_of(anatomy)]:
        text = "The teachers have another stride than the maps. Name those that the cache was built from."
        report.add("live", ", ".join(other), text)
        return None
    accelerator = make_accelerator(sources.device, spec.precision)
    plan = CachePlan(settings=spec, temperature=cache.manifest.temperature, samples=())
    builder = Builder(Folder(cache.url), store, teachers, plan, accelerator)
    rounding = max(ROUNDING[spec.precision], TF32 if accelerator.device.type == "cuda" else 0)
    random = np.random.default_rng(seed)
    known = sorted(set(cache.row_of) & set(builder.row_of))
    chosen = [known[index] for index in random.choice(len(known), min(count, len(known)), replace=False)] if known else []
    largest = 0.0
    for sha256 in chosen:
        row, view = builder.row_of[sha256], int(random.integers(cache.views))
        images = builder.images(view, builder.reader.read(np.array([row])))
        stored = _stored_maps(cache, sha256, view)
        for index, (anatomy, answers) in enumerate(zip(cache.anatomies, builder.live(images), strict=True)):
            logits = answers[0].cpu()
            difference = float((logits - stored[index]).abs().max())
            largest = max(largest, difference)
            if not difference <= cache.step / 2 + rounding * float(logits.abs().max()):
                where = f"{store.describe(row)}, view {view}, teacher of {anatomy}"
                text = f"They differ by {difference:.4g}, more than {cache.step / 2:g}. Delete the cache and build it again."
                report.add("live", where, text)
    return {
        "samples": len(chosen),
        "maps": len(chosen) * len(cache.anatomies),
        "max_difference": largest,
        "view_gap_kl_nats": _live_gap(builder, chosen, report),
        "seed": seed,
    }


def _live_gap(builder: Builder, hashes: Sequence[str], report: IntegrityReport) -> dict[str, dict[str, float]] | None:
    """The view gap of some samples, measured as a build does."""
    return gap_of_plan(builder, replace(report.plan, samples=tuple(hashes)), None, len(hashes)) if report.plan else None


def _stored_maps(cache: LogitCache, sha256: str, view: int) -> dict[int, torch.Tensor]:
    """The stored logits of a sample, (h, w) by the index of the anatomy."""
    arrays = zip(cache.spec.arrays, cache.read_arrays([sha256], view), strict=True)
    return {
        anatomy: dequantize(torch.from_numpy(values), cache.step)
        for array, maps in arrays
        for anatomy, values in zip(array.anatomies, maps[0], strict=True)
    }
