"""Is a logit cache whole, is it current, does it hold what the teachers say? And how what is not is made again.

A repair deletes what is broken and hands over to `mtkd_cache.cache.build.update`, which computes what is missing.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from mtkd_cache.cache.build import hashes_of, update
from mtkd_cache.cache.builder import BATCH, Builder
from mtkd_cache.cache.integrity import METADATA, IntegrityReport, check_integrity
from mtkd_cache.cache.layout import PLAN, fingerprint
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.sample_store import PREPROCESSING, SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.storage.checked_json import MANIFEST, dump_checked_json, mark_incomplete
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked

ROUNDING = {"no": 1e-5, "fp16": 4e-3, "bf16": 3e-2}  # of the largest logit: what another batch size may change
TF32 = 4e-3  # the same on a GPU, whose convolutions round to TF32 by default
OTHER_STORE = "other store"  # the kind of problem that no repair can mend


def verify(
    cache: str,
    *,
    store: SampleStore | None = None,
    teachers: Path | None = None,
    splits: Sequence[str] = ("train",),
    live: int = 0,
    repair: bool = False,
    seed: int = 0,
    device: str | None = None,
) -> dict:
    """Check every file of a logit cache, and whatever else can be checked with what is named.

    store: are its samples of these splits in the cache, and no others? teachers: are they the ones that spoke?
    live: let the teachers speak again on that many random samples, drawn with the seed. repair: make again what is broken or
    not current (live and repair need store and teachers; device: where they run).

    Returns ok; problems, a list of {kind, where, what_to_do}; repaired, those that are no more; maps_computed by the repair;
    cache, finished, fingerprint, files, bytes, seconds; live, None or {samples, maps, max_difference, seed}.
    Raises MtkdError where there is no cache, and where a repair cannot know what the cache held.
    """
    if (live or repair) and (store is None or teachers is None):
        raise MtkdError("--live and --repair run the teachers on the samples. Name both, --store and --teachers.")
    started = time.perf_counter()
    folder = Folder(cache)
    if not any(folder.exists(key) for key in (MANIFEST, PLAN, "zarr.json")):
        raise MtkdError(f"{folder} is no logit cache. Run mtkd-cache build --cache {folder}.")
    before, computed = [], 0
    with locked(folder) if repair else nullcontext():
        found = _check(folder, store, teachers, splits)
        if repair and found.problems and all(problem["kind"] != OTHER_STORE for problem in found.problems):
            before = found.problems
            computed = _repair(folder, found, store, teachers, splits, device)
            found = _check(folder, store, teachers, splits)
    heard = None
    if live and found.manifest and not found.broken:
        heard = _spot_check(LogitCache.open(cache), store, teachers, live, seed, device, found)
    return {
        "ok": not found.problems,
        "problems": found.problems,
        "repaired": [problem for problem in before if problem not in found.problems],
        "cache": str(folder),
        "finished": found.manifest is not None,
        "fingerprint": found.manifest and found.manifest["fingerprint"],
        "files": found.files,
        "bytes": found.bytes,
        "maps_computed": computed,
        "live": heard,
        "seconds": time.perf_counter() - started,
    }


def _check(folder: Folder, store: SampleStore | None, teachers: Path | None, splits: Sequence[str]) -> IntegrityReport:
    found = check_integrity(folder)
    if store is not None:
        _compare_samples(found, store, splits)
    if teachers is not None:
        _compare_teachers(found, Path(teachers))
    return found


def _compare_samples(found: IntegrityReport, store: SampleStore, splits: Sequence[str]) -> None:
    settings = (found.manifest or found.plan or {"settings": {}})["settings"]
    here = {"anatomies": list(store.anatomies), "size": list(store.size), "preprocessing": PREPROCESSING}
    for key, value in here.items():
        if settings and settings[key] != value:
            found.add(OTHER_STORE, key, f"The cache is of {settings[key]}, the store of {value}. Build a cache of this store.")
    if found.plan:
        cached = set(found.plan["samples"])
        if gone := cached - set(store.hashes):
            text = f"{len(gone)} cached samples are changed there, or gone. Build a cache of this store under another name."
            found.add(OTHER_STORE, store.url, text)
        if new := sum(sha256 not in cached for sha256 in hashes_of(store, splits)):
            found.add("samples", store.url, f"{new} samples are not cached. Run mtkd-cache build.")


def _compare_teachers(found: IntegrityReport, teachers: Path) -> None:
    spoke = [found.manifest["teachers"]] if found.manifest else [record["teachers"] for record in found.records.values()]
    for anatomy in spoke[0] if spoke else ():
        path = teachers / anatomy / WEIGHTS
        if not path.is_file():
            found.add("teacher", str(path), "It is missing. Train it, or name another --teachers.")
        elif {one[anatomy]["weights_sha256"] for one in spoke} != {file_sha256(path)}:
            text = "It was trained since. Run mtkd-cache build, which computes this teacher's maps again and no others."
            found.add("teacher", str(path), text)


def _repair(
    folder: Folder, found: IntegrityReport, store: SampleStore, teachers: Path, splits: Sequence[str], device: str | None
) -> int:
    """Delete what is broken in a locked folder and compute what then is missing. Returns the number of maps computed."""
    if not found.plan:
        found.plan = _recover_plan(folder, found)
    settings = found.plan["settings"]
    loaded = Teachers.load(Path(teachers), store)
    if loaded.networks[0].stride != settings["stride"]:
        raise MtkdError(f"{folder} has maps at stride {settings['stride']}, {teachers} others. Build a cache of these teachers.")
    folder.write(PLAN, dump_checked_json(found.plan))
    record_of = {unit.shard_key: unit.record_key for unit in found.shard_tasks}
    for key in sorted(found.broken - {PLAN}):
        if key in record_of:
            folder.delete(record_of[key])
        folder.delete(key)
    mark_incomplete(folder)
    wanted = list(dict.fromkeys([*found.plan["samples"], *hashes_of(store, splits)]))
    accelerator = make_accelerator(device, settings["precision"])
    return update(folder, store, loaded, settings, found.plan["temperature"], wanted, accelerator).maps


def _recover_plan(folder: Folder, found: IntegrityReport) -> dict:
    """The plan from what else tells of it, proved by the cache's fingerprint. Raises MtkdError where that fails.

    The manifest and the group's attributes hold the settings, the column of hashes and the records whose maps the rows are.
    """
    about = found.manifest
    if about is None:
        try:
            about = json.loads(folder.read("zarr.json"))["attributes"]
        except (ValueError, KeyError, TypeError, OSError):
            about = {}
    plain = sorted(key for key in found.records if key.endswith("-000.json"))
    columns = [[row["sha256"] for key in plain for row in found.records[key]["rows"]]]
    if found.manifest and not found.broken & set(METADATA):
        columns.append([row.tobytes().hex() for row in folder.zarr()["sha256"][:]])
    for hashes in columns:
        if about and fingerprint(about.get("settings"), about.get("teachers"), hashes) == about.get("fingerprint"):
            return {"settings": about["settings"], "temperature": about["temperature"], "samples": hashes}
    raise MtkdError(f"{folder}/{PLAN} is lost, and with it whose maps the rows are. Delete the cache and build it again.")


def _spot_check(
    cache: LogitCache, store: SampleStore, folder: Path, count: int, seed: int, device: str | None, found: IntegrityReport
) -> dict:
    """Let the teachers speak again on random samples and views, and compare with what the cache says they said."""
    teachers = Teachers.load(Path(folder), store)
    accelerator = make_accelerator(device, cache.settings["precision"])
    builder = Builder(Folder(cache.url), store, teachers, cache.settings, 1.0, accelerator, BATCH)
    rounding = max(ROUNDING[cache.settings["precision"]], TF32 if accelerator.device.type == "cuda" else 0)
    random = np.random.default_rng(seed)
    known = sorted(set(cache.row_of) & set(builder.row_of))
    chosen = random.choice(known, min(count, len(known)), replace=False) if known else []
    largest = 0.0
    for sha256 in map(str, chosen):
        row, view = builder.row_of[sha256], int(random.integers(cache.views))
        images = builder.images(view, builder.stream.read(np.array([row])))
        kept = dequantize(torch.from_numpy(cache.read([sha256], view)[0]), cache.step)
        for index, anatomy in enumerate(cache.anatomies):
            said = builder.ensemble.native(index, images)[0].cpu()
            difference = float((said - kept[index]).abs().max())
            largest = max(largest, difference)
            if not difference <= cache.step / 2 + rounding * float(said.abs().max()):
                where = f"{store.describe(row)}, view {view}, teacher of {anatomy}"
                text = f"They differ by {difference:.4g}, more than {cache.step / 2:g}. Delete the cache and build it again."
                found.add("live", where, text)
    return {"samples": len(chosen), "maps": len(chosen) * len(cache.anatomies), "max_difference": largest, "seed": seed}
