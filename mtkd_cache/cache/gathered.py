"""The shard files of a cache whose maps come one by one, in any order: gathered in memory, written when they are full.

A shard file that lacks maps is written too where too many are in memory, or at the end; its record has 0 bits for a missing map.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtkd_cache.cache.layout import FIGURES, CachePlan, ShardRecord, ShardTask, TeacherInfo
from mtkd_cache.cache.quantize import FILL
from mtkd_cache.cache.shards import new_figures, take_over, write_shard
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import if_intact, is_whole, read_record
from mtkd_cache.storage.folder import Folder

IN_MEMORY = 4  # shard files at a time


@dataclass
class Shard:
    """A shard file in memory. values: int16 (samples, 1, A, h, w)."""

    task: ShardTask
    values: np.ndarray


class GatheredShards:
    """The maps of a cache in a locked folder, and their figures.

    Attributes:
        figures: (rows, views, anatomies), see `FIGURES`; 0 bits for a map that is missing.
    """

    def __init__(self, folder: Folder, plan: CachePlan, teachers: Mapping[str, TeacherInfo]):
        """Reads all files of the folder: maps of a file that is not as its record says are missing."""
        self.folder, self.spec, self.teachers = folder, plan.settings, teachers
        self.figures = new_figures(len(plan.samples), self.spec.n_views, len(self.spec.anatomies))
        self.tasks = {(row, task.view, task.array.name): task for task in plan.shard_tasks for row in _rows(task)}
        self.shards: OrderedDict[str, Shard] = OrderedDict()
        for task in plan.shard_tasks:
            self._note_present(task)

    @property
    def present(self) -> np.ndarray:
        """Which maps are there: bool (rows, views, anatomies)."""
        present: np.ndarray = self.figures["bits"] > 0
        return present

    def task_of(self, row: int, view: int, anatomy: int) -> ShardTask:
        """The shard file of a map."""
        array = next(array for array in self.spec.arrays if anatomy in array.anatomies)
        return self.tasks[row, view, array.name]

    def add(self, row: int, view: int, anatomy: int, values: np.ndarray, figures: np.ndarray) -> None:
        """Add a map that is missing, int16 (h, w), and write its shard file once that is full. See `write` for errors."""
        task = self.task_of(row, view, anatomy)
        if task.shard_key not in self.shards:
            if len(self.shards) >= IN_MEMORY:  # write the one that was not added to for longest
                self.write(next(iter(self.shards)))
            self.shards[task.shard_key] = Shard(task, self._read_present(task))
        self.shards.move_to_end(task.shard_key)
        shard = self.shards[task.shard_key]
        shard.values[row - task.rows.start, 0, task.array.anatomies.index(anatomy)] = values
        self.figures[row, view, anatomy] = figures
        if self._figures_of(task)["bits"].all():
            self.write(task.shard_key)

    def write(self, key: str) -> None:
        """Write a shard file and forget its maps.

        Raises MtkdError where it is full and all its logits lie between 0 and 1; these maps then are missing.
        """
        shard = self.shards.pop(key)
        task, figures = shard.task, self._figures_of(shard.task)
        if figures["bits"].all() and shard.values.min() >= 0 and 0 < shard.values.max() <= 1 / self.spec.step:
            self.figures[task.rows, task.view, list(task.array.anatomies)] = 0
            raise MtkdError(
                f"{self.folder}: all logits of {len(task.hashes)} samples lie between 0 and 1, as probabilities do. "
                "Give log(p) - log(1 - p)."
            )
        write_shard(self.folder, self.spec, task, shard.values, figures, self.teachers)

    def _note_present(self, task: ShardTask) -> None:
        """Note the figures of the maps of a shard file that is as its record says."""
        record = if_intact(read_record, self.folder, task.record_key, ShardRecord)
        if record is None or not task.owns(record, self.spec) or not is_whole(self.folder, record.key, record.entry):
            return
        for row, sha256, figures in zip(_rows(task), task.hashes, record.rows, strict=False):
            if figures["sha256"] == sha256:
                for key in FIGURES:
                    self.figures[key][row, task.view, list(task.array.anatomies)] = figures[key]

    def _figures_of(self, task: ShardTask) -> np.ndarray:
        """The figures of a shard file's maps, (samples, A), a copy."""
        figures: np.ndarray = self.figures[task.rows, task.view][:, list(task.array.anatomies)]
        return figures

    def _read_present(self, task: ShardTask) -> np.ndarray:
        """A shard file's maps, those that are missing filled. Raises MtkdError where the file was changed since it was noted."""
        figures = self._figures_of(task)
        values = np.full((len(task.hashes), 1, len(task.array.anatomies), *task.array.grid), FILL, np.int16)
        missing = figures["bits"] == 0
        if missing.all():
            return values
        record, absent = read_record(self.folder, task.record_key, ShardRecord), missing.copy()
        if record:
            take_over(self.folder, self.spec, task, record, absent, values, figures)
        if record is None or (absent != missing).any():
            raise MtkdError(f"{self.folder}/{task.shard_key} was damaged while the cache was written. Run the program again.")
        return values


def _rows(task: ShardTask) -> range:
    """The cache's rows that a shard file holds."""
    return range(task.rows.start, task.rows.stop)
