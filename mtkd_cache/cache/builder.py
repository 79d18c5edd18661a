"""The shard files of a logit cache, one after the other: what is missing of each is computed, the rest kept."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.cache.layout import SPREAD, CachePlan, ShardRecord, ShardTask, TeacherInfo
from mtkd_cache.cache.loader import Batch, BatchReader, prefetch
from mtkd_cache.cache.shards import merge, new_figures, quantize_maps, take_over, write_shard
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import TeacherRunner, Teachers
from mtkd_cache.data.augment import show_images, to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime.accelerator import run_on_all_ranks
from mtkd_cache.runtime.progress import Bar, progress_bar
from mtkd_cache.storage.checked_json import if_intact, mark_incomplete, read_record
from mtkd_cache.storage.folder import Folder

BATCH = 8


@contextmanager
def one_core(name: str) -> Iterator[ThreadPoolExecutor]:
    """A thread whose torch operations take one core: with all of them, it and the caller would wait for each other."""
    try:
        with ThreadPoolExecutor(1, name, torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(torch.get_num_threads())  # what threads made from now on take


def changed_source(recorded: TeacherInfo | None, now: TeacherInfo) -> TeacherInfo | None:
    """The teacher of the user's own whose code is not the recorded one although its fingerprint is."""
    pairs = zip(recorded.get("members", [recorded]) if recorded else (), now.get("members", [now]), strict=False)
    for old, new in pairs:
        same = (old["arch"], old["weights_sha256"]) == (new["arch"], new["weights_sha256"])
        if same and old.get("source_sha256") != new.get("source_sha256"):
            return new
    return None


def check_source(where: str, recorded: TeacherInfo | None, now: TeacherInfo) -> None:
    """Raises MtkdError for a `changed_source`: nobody knows whether its logits are the same."""
    if changed := changed_source(recorded, now):
        raise MtkdError(
            f"the file of {changed['arch']} is not the one that computed maps of {where}, but its fingerprint is the same. "
            "Restore the file, or change the fingerprint: its maps are then computed again."
        )


def images_in_view(spec: CacheSpec, store: SampleStore, batch: Batch, view: int) -> Tensor:
    """The images of a batch in a recorded view, as the teachers see them: float (B, 3, H, W), on the batch's device."""
    if view == 0:
        return to_float(batch.images)
    views = spec.recorded_views(store.hashes[batch.rows], view).to(batch.images.device)
    return show_images(batch.images, views)


@dataclass(frozen=True)
class Todo:
    """The shard files of one block and view that lack maps.

    files: each with the record of its present file, if that is the cache's. missing: bool (samples, anatomies), which maps.
    """

    files: list[tuple[ShardTask, ShardRecord | None]]
    missing: np.ndarray


@dataclass
class PendingBlock:
    """A block of samples in one view while its maps are computed.

    files: the shard files to be written. missing: bool (samples, A), of all anatomies. values: for each file, int16
    (samples, 1, A', h, w), its own anatomies' maps. figures: (samples, A), of each map. parts: the indices of the samples in each
    of the batches, which hold the images for what is missing.
    """

    files: list[ShardTask]
    missing: np.ndarray
    values: list[np.ndarray]
    figures: np.ndarray
    parts: list[np.ndarray]
    batches: list[Batch]

    @property
    def view(self) -> int:
        return self.files[0].view

    def map_of(self, index: int, anatomy: int) -> np.ndarray:
        """Where the map of a sample goes, (h, w)."""
        number, task = next(item for item in enumerate(self.files) if anatomy in item[1].array.anatomies)
        place: np.ndarray = self.values[number][index, 0, task.array.anatomies.index(anatomy)]
        return place


class Builder:
    """Runs the teachers for what is missing of each block of samples in each view.

    Reading, quantizing with its figures, and compressing with writing have a thread each beside the forward passes, so that the
    device need not wait for them; a few blocks are in memory at a time.
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
        index = {anatomy: number for number, anatomy in enumerate(self.spec.anatomies)}
        self.channels = [{index[anatomy]: channel for anatomy, channel in heads.items()} for heads in teachers.heads]
        self.members = Counter(anatomy for heads in self.channels for anatomy in heads)
        self.grids = [self.spec.array_of(anatomy).grid for anatomy in self.spec.anatomies]
        self.row_of = {str(sha256): row for row, sha256 in enumerate(store.hashes)}
        self.reader = BatchReader(store)
        self.maps = 0

    def run(self, tasks: Sequence[ShardTask]) -> None:
        """Bring this process's share of the shard files up to date."""
        todo = run_on_all_ranks(self.accelerator, lambda: self._todo(tasks))
        total = sum(len(task.hashes) * len(task.array.anatomies) for task in tasks)
        done = total - sum(int(block.missing.sum()) for block in todo)
        todo = todo[self.accelerator.process_index :: self.accelerator.num_processes]
        progress = progress_bar("build", "map", total, done, shown=self.accelerator.is_main_process)
        if todo:
            mark_incomplete(self.folder)
        with one_core("figures") as figures:
            blocks = prefetch(((block,) for block in todo), self._prepare, depth=1)
            computed = ((pending, self._run_teachers(pending, figures, progress)) for pending in blocks)
            for _ in prefetch(computed, self._write, depth=1):
                pass
        progress.close()

    def _todo(self, tasks: Sequence[ShardTask]) -> list[Todo]:
        """What lacks maps, block by block and view by view."""
        present = set(self.folder.keys())
        todo = []
        for _, group in groupby(tasks, lambda task: (task.block, task.view)):
            files = list(group)
            missing = np.zeros((len(files[0].hashes), len(self.spec.anatomies)), bool)
            lacking: list[tuple[ShardTask, ShardRecord | None]] = []
            for task in files:
                record = self._present(task, present)
                own = self._missing(task, record)
                if own.any():
                    missing[:, task.array.anatomies] = own
                    lacking.append((task, record))
            if lacking:
                todo.append(Todo(lacking, missing))
        return todo

    def _present(self, task: ShardTask, present: set[str]) -> ShardRecord | None:
        """The record of a shard file that is there, if that is the cache's."""
        if not {task.record_key, task.shard_key} <= present:
            return None
        record = if_intact(read_record, self.folder, task.record_key, ShardRecord)
        return record if record and task.owns(record, self.spec) else None

    def _missing(self, task: ShardTask, record: ShardRecord | None) -> np.ndarray:
        """Which maps of a shard file have to be computed: bool (samples, anatomies of its array)."""
        missing = np.ones((len(task.hashes), len(task.array.anatomies)), bool)
        if record:
            names = self.spec.names_of(task.array)
            for name in names:
                check_source(str(self.folder), record.teachers.get(name), self.teachers.info[name])
            outdated = [record.teachers.get(name) != self.teachers.info[name] for name in names]
            for index, (sha256, row) in enumerate(zip(task.hashes, record.rows, strict=False)):
                if row["sha256"] == sha256:
                    missing[index] = outdated
        return missing

    def _prepare(self, todo: Todo) -> PendingBlock:
        """Keep the maps that are present, and read the images for the rest."""
        files, missing = [task for task, _ in todo.files], todo.missing
        figures = new_figures(*missing.shape)
        values = []
        for task, record in todo.files:
            columns = list(task.array.anatomies)
            own, own_figures = missing[:, columns], figures[:, columns]
            values.append(np.empty((len(task.hashes), 1, len(columns), *task.array.grid), np.int16))
            if record and not own.all():
                take_over(self.folder, self.spec, task, record, own, values[-1], own_figures)
                missing[:, columns], figures[:, columns] = own, own_figures
        needed = np.flatnonzero(missing.any(1))
        parts = [needed[start : start + self.batch] for start in range(0, len(needed), self.batch)]
        hashes = files[0].hashes
        store_rows = [np.array([self.row_of[hashes[index]] for index in part]) for part in parts]
        batches = [self.reader.read(part).pinned(self.accelerator.device) for part in store_rows]
        return PendingBlock(files, missing, values, figures, parts, batches)

    def _run_teachers(self, pending: PendingBlock, figures: ThreadPoolExecutor, progress: Bar) -> list[Future[None]]:
        """Run one teacher after the other over a block's images. The futures are done when all maps are recorded."""
        batches = [self.images(pending.view, batch) for batch in pending.batches]
        recorded: deque[Future[None]] = deque()
        answers: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for number in range(len(self.channels)):
            for place, (part, images) in enumerate(zip(pending.parts, batches, strict=True)):
                for anatomy, chosen, logits in self._answers(number, pending.missing[part], images):
                    answers[place, anatomy].append(logits)
                    if len(answers[place, anatomy]) == self.members[anatomy]:
                        own = answers.pop((place, anatomy))
                        recorded.append(figures.submit(self._record, pending, anatomy, part[chosen], own, progress))
                while recorded and recorded[0].done():
                    recorded.popleft().result()
        return list(recorded)

    def _answers(self, number: int, missing: np.ndarray, images: Tensor) -> Iterator[tuple[int, np.ndarray, Tensor]]:
        """What one network says of the images for which maps are missing, bool (images, anatomies); it runs once.

        Yields an anatomy, the images' indices (n,), and the logits, float (n, h, w).
        """
        anatomies = [anatomy for anatomy in self.channels[number] if missing[:, anatomy].any()]
        if not anatomies:
            return
        rows = np.flatnonzero(missing[:, anatomies].any(1))
        channels = [self.channels[number][anatomy] for anatomy in anatomies]
        needed = images if len(rows) == len(images) else images[torch.from_numpy(rows).to(images.device)]
        logits = self.runner.logits(number, needed, channels)
        for place, anatomy in enumerate(anatomies):
            own = np.flatnonzero(missing[rows, anatomy])
            maps = logits[:, place]
            yield anatomy, rows[own], maps if len(own) == len(rows) else maps[torch.from_numpy(own).to(maps.device)]

    def live(self, images: Tensor) -> list[Tensor]:
        """The teachers' logits of images, float (B, h, w) for each anatomy: what a cache is to hold, before it is quantized."""
        answers: defaultdict[int, list[Tensor]] = defaultdict(list)
        everything = np.ones((len(images), len(self.spec.anatomies)), bool)
        for number in range(len(self.channels)):
            for anatomy, _, logits in self._answers(number, everything, images):
                answers[anatomy].append(logits)
        return [merge(answers[anatomy], grid)[0] for anatomy, grid in enumerate(self.grids)]

    def _record(self, pending: PendingBlock, anatomy: int, indices: np.ndarray, answers: list[Tensor], progress: Bar) -> None:
        """Quantize the mean of teachers' logits of the samples with these indices in a block, and note its figures."""
        logits, spread = merge(answers, self.grids[anatomy])
        who = f"teacher of {self.spec.anatomies[anatomy]}"
        values, figures = quantize_maps(who, logits, self.spec, self.temperature)
        figures[SPREAD] = spread
        for index, one, own in zip(indices, values, figures, strict=True):
            pending.map_of(index, anatomy)[:] = one
            pending.figures[index, anatomy] = own
        self.maps += len(indices)
        progress.update(len(indices))

    def images(self, view: int, batch: Batch) -> Tensor:
        """The images of a batch in a recorded view, as the teachers see them: float (B, 3, H, W)."""
        return images_in_view(self.spec, self.store, batch.to(self.accelerator.device), view)

    def _write(self, pending: PendingBlock, recorded: list[Future[None]]) -> None:
        """Write a block's shard files, once all of its maps are recorded."""
        for future in recorded:
            future.result()
        for task, values in zip(pending.files, pending.values, strict=True):
            figures = pending.figures[:, list(task.array.anatomies)]
            write_shard(self.folder, self.spec, task, values, figures, self.teachers.info)
