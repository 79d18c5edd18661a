"""The shard files of a logit cache, one after the other: what is missing of each is computed, the rest kept."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numcodecs import Blosc
from torch import Tensor
from tqdm import tqdm

from mtkd_cache.cache.layout import FIGURES, CachePlan, ShardRecord, ShardTask, logits_spec
from mtkd_cache.cache.loader import Batch, BatchReader, prefetch
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.teacher_runner import TeacherRunner, Teachers
from mtkd_cache.data.augment import apply_views, to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import map_kl
from mtkd_cache.runtime.accelerator import run_on_all_ranks
from mtkd_cache.storage.checked_json import digest, dump_checked_json, file_entry, if_intact, mark_incomplete, read_record
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.shard_writer import UNREADABLE, row_checksum

BATCH = 8
MAP_CODEC = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)  # the cache's codec on one map, for its compressed size


@contextmanager
def one_core(name: str) -> Iterator[ThreadPoolExecutor]:
    """A thread whose torch operations take one core: with all of them, it and the caller would wait for each other."""
    try:
        with ThreadPoolExecutor(1, name, torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(torch.get_num_threads())  # what threads made from now on take


@dataclass
class PendingShard:
    """A shard file while its maps are computed.

    missing: bool (samples, anatomies). values: int16 (samples, 1, A, h, w). figures: (samples, anatomies), of each map. parts:
    the indices of the samples in each of the batches, which hold the images for what is missing.
    """

    task: ShardTask
    missing: np.ndarray
    values: np.ndarray
    figures: np.ndarray
    parts: list[np.ndarray]
    batches: list[Batch]


class Builder:
    """Runs the teachers for what is missing of each shard file.

    Reading, quantizing with its figures, and compressing with writing have a thread each beside the forward passes, so that the
    device need not wait for them; a few shards are in memory at a time.
    """

    def __init__(
        self,
        folder: Folder,
        store: SampleStore,
        teachers: Teachers,
        plan: CachePlan,
        accelerator: Accelerator,
        batch: int = BATCH,
        compiled: bool = False,
    ):
        self.folder, self.store, self.teachers = folder, store, teachers
        self.spec, self.temperature = plan.settings, plan.temperature
        self.accelerator, self.batch = accelerator, batch
        self.runner = TeacherRunner(teachers.networks, accelerator, compiled)
        self.array = logits_spec(self.spec.n_views, len(self.spec.anatomies), self.spec.grid, self.spec.step)
        self.row_of = {str(sha256): row for row, sha256 in enumerate(store.hashes)}
        self.reader = BatchReader(store)
        self.maps = 0

    def run(self, tasks: Sequence[ShardTask]) -> None:
        """Bring this process's share of the shard files up to date."""
        todo = run_on_all_ranks(self.accelerator, lambda: self._todo(tasks))
        total = sum(len(task.hashes) for task in tasks) * len(self.spec.anatomies)
        done = total - sum(int(missing.sum()) for _, _, missing in todo)
        todo = todo[self.accelerator.process_index :: self.accelerator.num_processes]
        progress = tqdm(
            total=total, initial=done, desc="build", unit="map", disable=None if self.accelerator.is_main_process else True
        )
        if todo:
            mark_incomplete(self.folder)
        with one_core("figures") as figures:
            shards = prefetch(todo, self._prepare, depth=1)
            computed = ((pending, self._run_teachers(pending, figures, progress)) for pending in shards)
            for _ in prefetch(computed, self._write, depth=1):
                pass
        progress.close()

    def _todo(self, tasks: Sequence[ShardTask]) -> list[tuple[ShardTask, ShardRecord | None, np.ndarray]]:
        """The shards that lack maps, each with the record of its present file, if that is the cache's, and which are missing."""
        present = set(self.folder.keys())
        todo = []
        for task in tasks:
            whole = {task.record_key, task.shard_key} <= present
            record = if_intact(read_record, self.folder, task.record_key, ShardRecord) if whole else None
            if record and not task.owns(record, self.spec):
                record = None
            missing = self._missing(task, record)
            if missing.any():
                todo.append((task, record, missing))
        return todo

    def _missing(self, task: ShardTask, record: ShardRecord | None) -> np.ndarray:
        """Which maps have to be computed: bool (samples, anatomies)."""
        missing = np.ones((len(task.hashes), len(self.spec.anatomies)), bool)
        if record:
            outdated = [record.teachers.get(anatomy) != info for anatomy, info in self.teachers.info.items()]
            for index, (sha256, row) in enumerate(zip(task.hashes, record.rows, strict=False)):
                if row["sha256"] == sha256:
                    missing[index] = outdated
        return missing

    def _prepare(self, task: ShardTask, record: ShardRecord | None, missing: np.ndarray) -> PendingShard:
        """Keep the maps of a shard that are present, and read the images for the rest."""
        values = np.empty((len(task.hashes), 1, missing.shape[1], *self.spec.grid), np.int16)
        figures = np.zeros(missing.shape, list(FIGURES.items()))
        if record and not missing.all():
            self._reuse_maps(record, missing, values, figures)
        needed = np.flatnonzero(missing.any(1))
        parts = [needed[start : start + self.batch] for start in range(0, len(needed), self.batch)]
        store_rows = [np.array([self.row_of[task.hashes[index]] for index in part]) for part in parts]
        batches = [self.reader.read(part).pinned(self.accelerator.device) for part in store_rows]
        return PendingShard(task, missing, values, figures, parts, batches)

    def _run_teachers(self, pending: PendingShard, figures: ThreadPoolExecutor, progress: "tqdm[None]") -> list[Future[None]]:
        """Run one teacher after the other over a shard's images. The futures are done when all maps are recorded."""
        batches = [self.images(pending.task.view, batch) for batch in pending.batches]
        recorded: deque[Future[None]] = deque()
        for anatomy in map(int, np.flatnonzero(pending.missing.any(0))):
            for part, images in zip(pending.parts, batches, strict=True):
                chosen = np.flatnonzero(pending.missing[part, anatomy])
                if len(chosen):
                    logits = self.runner.native(anatomy, images[torch.from_numpy(chosen).to(images.device)])
                    recorded.append(figures.submit(self._record, pending, anatomy, part[chosen], logits, progress))
                while recorded and recorded[0].done():
                    recorded.popleft().result()
        return list(recorded)

    def _record(self, pending: PendingShard, anatomy: int, indices: np.ndarray, logits: Tensor, progress: "tqdm[None]") -> None:
        """Quantize a teacher's logits, float (n, h, w), of the samples with these indices in a shard, and note their figures."""
        name, step = self.spec.anatomies[anatomy], self.spec.step
        try:
            integers = quantize(logits, step)
        except MtkdError as error:
            raise MtkdError(f"teacher of {name}: {error}") from error
        stored = dequantize(integers, step)
        errors = (stored - logits).abs().amax((1, 2)).tolist()
        if not max(errors) <= step / 2:
            raise MtkdError(
                f"teacher of {name}: a logit is stored {max(errors):.4g} off, more than half of the step {step}. "
                "The device computes it wrongly; try another --device."
            )
        kls = map_kl(stored[:, None], logits[:, None], self.temperature)[:, 0].tolist()
        for index, values, max_error, kl in zip(indices, integers.cpu().numpy(), errors, kls, strict=True):
            pending.values[index, 0, anatomy] = values
            pending.figures[index, anatomy] = row_checksum(values), max_error, max(kl, 0.0), 8 * len(MAP_CODEC.encode(values))
        self.maps += len(indices)
        progress.update(len(indices))

    def _reuse_maps(self, record: ShardRecord, missing: np.ndarray, values: np.ndarray, figures: np.ndarray) -> None:
        """Copy the maps that are present; those that turn out damaged are marked missing."""
        array = self.array.decode_shard(self.folder.read(record.key))
        for index in map(int, np.flatnonzero(~missing.all(1))):
            try:
                maps = np.asarray(array[index, 0])
            except UNREADABLE:
                missing[index] = True
                continue
            for anatomy in map(int, np.flatnonzero(~missing[index])):
                if row_checksum(maps[anatomy]) != record.rows[index]["crc32c"][anatomy]:
                    missing[index, anatomy] = True
                    continue
                values[index, 0, anatomy] = maps[anatomy]
                figures[index, anatomy] = tuple(record.rows[index][key][anatomy] for key in FIGURES)

    def images(self, view: int, batch: Batch) -> Tensor:
        """The images of a batch in a recorded view, as the teachers see them: float (B, 3, H, W)."""
        batch = batch.to(self.accelerator.device)
        if view == 0:
            return to_float(batch.images)
        views = self.spec.recorded_views(self.store.hashes[batch.rows], view).to(self.accelerator.device)
        return apply_views(batch.images, batch.masks, views)[0]

    def _write(self, pending: PendingShard, recorded: list[Future[None]]) -> None:
        """Write a shard file and then its record, once all of its maps are recorded."""
        for future in recorded:
            future.result()
        task = pending.task
        data = self.array.encode_shard(pending.values)
        self.folder.delete(task.record_key)
        self.folder.write(task.shard_key, data)
        record = ShardRecord(
            key=task.shard_key,
            **file_entry(data),
            settings=digest(self.spec.to_json()),
            teachers=self.teachers.info,
            rows=tuple(
                {"sha256": sha256, **{key: figures[key].tolist() for key in FIGURES}}
                for sha256, figures in zip(task.hashes, pending.figures, strict=True)
            ),
        )
        self.folder.write(task.record_key, dump_checked_json(record.to_json()))
