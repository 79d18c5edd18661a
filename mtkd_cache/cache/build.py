"""Teachers + sample store -> logit cache.

The unit of work is one shard file: the maps of BLOCK samples in one view. A unit's record, written after its shard, says of which
samples and which teachers it is; what a build has to do is the difference between that and what is wanted. So an interrupted
build, a teacher that was trained again, a dataset that grew and a repair are one mechanism, and nothing that is there already is
computed again.
"""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from mtkd_cache.cache.builder import BATCH, Builder
from mtkd_cache.cache.layout import FORMAT, KIND, PLAN, cache_settings, fingerprint, logits_spec, shard_tasks
from mtkd_cache.cache.quantize import check_step
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.accelerator import run_on_all_ranks
from mtkd_cache.storage.checked_json import MANIFEST, dump_checked_json, file_entry, mark_incomplete, read_checked_json
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.storage.shard_writer import ArraySpec, group_metadata


def build(
    store: SampleStore,
    teachers: Path,
    cache: str,
    recipe: Recipe,
    accelerator: Accelerator,
    splits: Sequence[str] = ("train",),
    batch: int = BATCH,
    compiled: bool = False,
) -> dict:
    """Bring a logit cache up to date with its samples and teachers; where it is, nothing is computed.

    splits: whose samples it holds. compiled: the teachers are, see `mtkd_cache.cache.teacher_runner`; their logits differ in the last digits.
    Several processes (accelerate launch) share the shard files.
    Returns what the `--json` contract names; teacher_seconds and maps_computed are summed over the processes.
    Raises MtkdError for a step or teachers that do not fit, and for a cache that was begun with other settings.
    """
    check_step(recipe.cache.step)
    started = time.perf_counter()
    loaded = Teachers.load(teachers, store)
    settings = cache_settings(store, loaded, recipe, accelerator.mixed_precision)
    wanted = hashes_of(store, splits)
    folder = Folder(cache)
    with ExitStack() as stack:
        run_on_all_ranks(accelerator, lambda: stack.enter_context(locked(folder)) if accelerator.is_main_process else None)
        builder = update(folder, store, loaded, settings, recipe.distillation.temperature, wanted, accelerator, batch, compiled)
    shares = gather_object([(builder.ensemble.seconds, builder.maps)])
    return {
        **summary(LogitCache.open(cache)),
        "seconds": time.perf_counter() - started,
        "teacher_seconds": sum(seconds for seconds, _ in shares),
        "maps_computed": sum(maps for _, maps in shares),
    }


def update(
    folder: Folder,
    store: SampleStore,
    teachers: Teachers,
    settings: dict,
    temperature: float,
    wanted: list[str],
    accelerator: Accelerator,
    batch: int = BATCH,
    compiled: bool = False,
) -> Builder:
    """Compute what is missing of a cache that the main process has locked, and seal it. The builder tells what it did.

    wanted: content hashes of the samples the cache shall hold. Raises MtkdError in every process where one of them fails.
    """

    def begin() -> None:
        if accelerator.is_main_process:
            folder.delete_temporaries()
            write_plan(folder, settings, temperature, wanted)

    def finish() -> None:
        if accelerator.is_main_process:
            finalize(folder, plan, teachers.about)

    run_on_all_ranks(accelerator, begin)
    plan = read_checked_json(folder, PLAN)
    builder = Builder(folder, store, teachers, plan["settings"], plan["temperature"], accelerator, batch, compiled)
    run_on_all_ranks(accelerator, lambda: builder.run(shard_tasks(plan["samples"], settings["views"]["count"])))
    run_on_all_ranks(accelerator, finish)
    return builder


def hashes_of(store: SampleStore, splits: Sequence[str]) -> list[str]:
    """The content hashes of the samples of some splits, each once."""
    return list(dict.fromkeys(str(sha256) for split in splits for sha256 in store.hashes[store.rows(split)]))


def write_plan(folder: Folder, settings: dict, temperature: float, wanted: list[str]) -> None:
    """Write which sample each row is of: rows that exist stay where they are, new samples follow.

    Only one process may call it. temperature: at which a new cache's KL is measured; one that exists keeps its own.
    """
    try:
        plan = read_checked_json(folder, PLAN, "samples")
    except MtkdError as error:
        raise MtkdError(
            f"{folder}/{PLAN} is damaged, which tells whose maps the rows are. Run mtkd-cache verify --repair --cache {folder}."
        ) from error
    if plan is None and any(True for _ in folder.keys()):
        raise MtkdError(f"{folder} is not empty and is no logit cache. Name another --cache.")
    known = [] if plan is None else plan["samples"]
    if plan is not None:
        differing = [
            f"{key} {plan['settings'].get(key)} (now {value})"
            for key, value in settings.items()
            if plan["settings"].get(key) != value
        ]
        if differing:
            raise MtkdError(f"{folder} was begun with {', '.join(differing)}. Name another --cache, or delete that one.")
        if gone := set(known) - set(wanted):
            raise MtkdError(
                f"{folder} holds {len(gone)} samples that are not asked for any more (changed, removed, or of another split). "
                "Name another --cache, or delete that one."
            )
    new = [sha256 for sha256 in wanted if sha256 not in set(known)]
    if plan is None or new:
        mark_incomplete(folder)
        at = temperature if plan is None else plan["temperature"]
        folder.write(PLAN, dump_checked_json({"settings": settings, "temperature": at, "samples": known + new}))


def finalize(folder: Folder, plan: dict, teachers: dict[str, dict]) -> None:
    """Write columns and metadata and, last, the manifest that makes the cache a finished one. Only one process may call it."""
    settings, hashes = plan["settings"], plan["samples"]
    anatomies, views = settings["anatomies"], settings["views"]["count"]
    wanted = shard_tasks(hashes, views)
    records = [read_checked_json(folder, unit.record_key) for unit in wanted]
    if not all(record and unit.owns(record, settings) for unit, record in zip(wanted, records, strict=True)):
        raise MtkdError(f"{folder} is not finished: a process did not write its share. Run the same command again.")
    figures = {key: np.zeros((len(hashes), views, len(anatomies))) for key in ("crc32c", "max_error", "kl", "bits")}
    for unit, record in zip(wanted, records, strict=True):
        for key, values in figures.items():
            values[unit.rows, unit.view] = [row[key] for row in record["rows"]]
    errors = {
        anatomy: {
            "max_abs_error": float(figures["max_error"][..., index].max()),
            "mean_kl_nats": float(figures["kl"][..., index].mean()),
            "bits_per_logit": float(figures["bits"][..., index].mean()) / math.prod(settings["grid"]),
        }
        for index, anatomy in enumerate(anatomies)
    }
    about = {
        "kind": KIND,
        "format": FORMAT,
        "settings": settings,
        "teachers": teachers,
        "temperature": plan["temperature"],
        "errors": errors,
        "fingerprint": fingerprint(settings, teachers, hashes),
    }
    names = np.array([list(bytes.fromhex(sha256)) for sha256 in hashes], np.uint8)
    crc32c = figures["crc32c"].astype(np.uint32)
    small = ArraySpec("sha256", "uint8", (32,), ("sample", "byte")).whole(names)
    small |= ArraySpec("crc32c", "uint32", crc32c.shape[1:], ("sample", "view", "anatomy")).whole(crc32c)
    small |= logits_spec(views, len(anatomies), tuple(settings["grid"]), settings["step"]).metadata(len(hashes))
    arrays = {key: data for key, data in small.items() if key.endswith("zarr.json")}
    small["zarr.json"] = group_metadata({**about, "complete": True}, arrays)
    files = {record["key"]: {key: record[key] for key in ("bytes", "sha256")} for record in records}
    files |= {key: file_entry(data) for key, data in small.items()}
    for key in (PLAN, *(unit.record_key for unit in wanted)):
        files[key] = file_entry(folder.read(key))
    for key, data in {**small, MANIFEST: dump_checked_json({**about, "files": files})}.items():
        if not folder.exists(key) or folder.read(key) != data:
            folder.write(key, data)


def summary(cache: LogitCache) -> dict:
    """What a finished cache holds, as `build` reports it."""
    manifest = cache.manifest
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    errors = manifest["errors"].values()
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
        "by_anatomy": manifest["errors"],
        "fingerprint": cache.fingerprint,
    }
