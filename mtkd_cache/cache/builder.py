"""The shard files of a logit cache, one after the other: what is missing of each is computed, the rest kept."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numcodecs import Blosc
from torch import Tensor
from tqdm import tqdm

from mtkd_cache.cache.layout import FIGURES, ShardTask, logits_spec, recorded_views
from mtkd_cache.cache.loader import Batch, BatchReader, prefetch
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.teacher_runner import TeacherRunner, Teachers
from mtkd_cache.data.augment import apply_views, to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import map_kl
from mtkd_cache.runtime.accelerator import run_on_all_ranks
from mtkd_cache.storage.checked_json import digest, dump_checked_json, file_entry, mark_incomplete, read_checked_json
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.shard_writer import UNREADABLE, row_checksum

BATCH = 8
ALONE = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)  # the cache's codec on one map, to tell the anatomies' sizes apart


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
    """A unit as far as it is prepared: what is kept, and the batches of pictures for what is missing.

    missing: bool (samples, anatomies). values: int16 (samples, 1, A, h, w). rows: the figures of each sample. parts: which
    samples each batch is of.
    """

    unit: ShardTask
    missing: np.ndarray
    values: np.ndarray
    rows: list[dict]
    parts: list[np.ndarray]
    batches: list[Batch]


class Builder:
    """Runs teachers for what is missing of each unit.

    Reading, quantising with its figures, and compressing with writing have a thread each beside the forward passes, so that the
    device need not wait for them; a few units are in memory at a time.
    """

    def __init__(
        self,
        folder: Folder,
        store: SampleStore,
        teachers: Teachers,
        settings: dict,
        temperature: float,
        accelerator: Accelerator,
        batch: int,
        compiled: bool = False,
    ):
        self.folder, self.store, self.teachers, self.settings = folder, store, teachers, settings
        self.temperature, self.accelerator, self.batch = temperature, accelerator, batch
        self.ensemble = TeacherRunner(teachers.networks, accelerator, compiled)
        self.spec = logits_spec(settings["views"]["count"], len(store.anatomies), tuple(settings["grid"]), settings["step"])
        self.row_of = {str(sha256): row for row, sha256 in enumerate(store.hashes)}
        self.stream = BatchReader(store)
        self.maps = 0

    def run(self, wanted: list[ShardTask]) -> None:
        """Bring this process's share of the units up to date."""
        todo = run_on_all_ranks(self.accelerator, lambda: self._todo(wanted))
        total = sum(len(unit.hashes) for unit in wanted) * len(self.store.anatomies)
        done = total - sum(int(missing.sum()) for _, _, missing in todo)
        todo = todo[self.accelerator.process_index :: self.accelerator.num_processes]
        progress = tqdm(
            total=total, initial=done, desc="build", unit="map", disable=None if self.accelerator.is_main_process else True
        )
        if todo:
            mark_incomplete(self.folder)
        with one_core("figures") as figures, ThreadPoolExecutor(1, "write") as writer:
            writing: Future | None = None
            for work in prefetch(todo, self._prepare, depth=1):
                recorded = self._run_teachers(work, figures, progress)
                if writing:
                    writing.result()
                writing = writer.submit(self._finish, work, recorded)
            if writing:
                writing.result()
        progress.close()

    def _todo(self, wanted: list[ShardTask]) -> list[tuple[ShardTask, dict | None, np.ndarray]]:
        """The units that lack maps, with the record of what is there and which maps are missing."""
        there = set(self.folder.keys())
        found = []
        for unit in wanted:
            old = self._old(unit, there)
            missing = self._missing(unit, old)
            if missing.any():
                found.append((unit, old, missing))
        return found

    def _old(self, unit: ShardTask, there: set[str]) -> dict | None:
        """The record of what is there of a unit; None where it has to be made from nothing."""
        if not {unit.record_key, unit.shard_key} <= there:
            return None
        try:
            record = read_checked_json(self.folder, unit.record_key, "rows")
        except MtkdError:
            return None
        return record if record and unit.owns(record, self.settings) else None

    def _missing(self, unit: ShardTask, old: dict | None) -> np.ndarray:
        """Which maps have to be computed: bool (samples, anatomies)."""
        missing = np.ones((len(unit.hashes), len(self.store.anatomies)), bool)
        if old:
            there = [row["sha256"] for row in old["rows"]]
            stale = [old["teachers"].get(anatomy) != about for anatomy, about in self.teachers.about.items()]
            for index, sha256 in enumerate(unit.hashes):
                if index < len(there) and there[index] == sha256:
                    missing[index] = stale
        return missing

    def _prepare(self, unit: ShardTask, old: dict | None, missing: np.ndarray) -> PendingShard:
        """Take over what is there of a unit, and read the pictures for the rest."""
        values = np.empty((len(unit.hashes), *self.spec.chunk_item), np.int16)
        rows = [{"sha256": sha256, **{key: [0] * missing.shape[1] for key in FIGURES}} for sha256 in unit.hashes]
        if old and not missing.all():
            self._reuse_maps(old, missing, values, rows)
        needed = np.flatnonzero(missing.any(1))
        parts = [needed[start : start + self.batch] for start in range(0, len(needed), self.batch)]
        batches = [self.stream.read(np.array([self.row_of[unit.hashes[index]] for index in part])) for part in parts]
        return PendingShard(unit, missing, values, rows, parts, batches)

    def _run_teachers(self, work: PendingShard, figures: ThreadPoolExecutor, progress: tqdm) -> list[Future]:
        """Run one teacher after the other over a unit's pictures. The futures are done when all maps are recorded."""
        pictures = [self.images(work.unit.view, batch) for batch in work.batches]
        recorded: deque[Future] = deque()
        for anatomy in map(int, np.flatnonzero(work.missing.any(0))):
            for part, images in zip(work.parts, pictures, strict=True):
                chosen = np.flatnonzero(work.missing[part, anatomy])
                if len(chosen):
                    logits = self.ensemble.native(anatomy, images[torch.from_numpy(chosen).to(images.device)])
                    recorded.append(figures.submit(self._record, work, anatomy, part[chosen], logits, progress))
                while recorded and recorded[0].done():
                    recorded.popleft().result()
        return list(recorded)

    def _record(self, work: PendingShard, anatomy: int, places: np.ndarray, logits: Tensor, progress: tqdm) -> None:
        """Quantise what a teacher said of a unit's samples at some places, float (n, h, w), and note its figures."""
        name, step = self.store.anatomies[anatomy], self.settings["step"]
        try:
            integers = quantize(logits, step)
        except MtkdError as error:
            raise MtkdError(f"teacher of {name}: {error}") from error
        kept = dequantize(integers, step)
        errors = (kept - logits).abs().amax((1, 2)).tolist()
        if not max(errors) <= step / 2:
            raise MtkdError(
                f"teacher of {name}: a logit is stored {max(errors):.4g} off, more than half of the step {step}. "
                "The device miscalculates; try another --device."
            )
        kls = map_kl(kept[:, None], logits[:, None], self.temperature)[:, 0].tolist()
        for place, one, error, kl in zip(places, integers.cpu().numpy(), errors, kls, strict=True):
            work.values[place, 0, anatomy] = one
            found = {"crc32c": row_checksum(one), "max_error": error, "kl": max(kl, 0.0), "bits": 8 * len(ALONE.encode(one))}
            for key, value in found.items():
                work.rows[place][key][anatomy] = value
        self.maps += len(places)
        progress.update(len(places))

    def _finish(self, work: PendingShard, recorded: list[Future]) -> None:
        for one in recorded:
            one.result()
        self._write(work.unit, work.values, work.rows)

    def _reuse_maps(self, old: dict, missing: np.ndarray, values: np.ndarray, rows: list[dict]) -> None:
        """Take over the maps that are there; those that turn out damaged are marked missing."""
        array = self.spec.decode_shard(self.folder.read(old["key"]))
        for index in np.flatnonzero(~missing.all(1)):
            try:
                maps = array[index, 0]
            except UNREADABLE:
                missing[index] = True
                continue
            for anatomy in np.flatnonzero(~missing[index]):
                was = old["rows"][index]
                if row_checksum(maps[anatomy]) != was["crc32c"][anatomy]:
                    missing[index, anatomy] = True
                    continue
                values[index, 0, anatomy] = maps[anatomy]
                for key in FIGURES:
                    rows[index][key][anatomy] = was[key][anatomy]

    def images(self, view: int, batch: Batch) -> Tensor:
        """The pictures of a batch in a view, as the teachers see them: float (B, 3, H, W)."""
        batch = batch.to(self.accelerator.device)
        if view == 0:
            return to_float(batch.images)
        views = recorded_views(self.settings, self.store.hashes[batch.rows], view).to(self.accelerator.device)
        return apply_views(batch.images, batch.masks, views)[0]

    def _write(self, unit: ShardTask, values: np.ndarray, rows: list[dict]) -> None:
        data = self.spec.encode_shard(values)
        self.folder.delete(unit.record_key)
        self.folder.write(unit.shard_key, data)
        about = {"key": unit.shard_key, **file_entry(data), "settings": digest(self.settings), "teachers": self.teachers.about}
        self.folder.write(unit.record_key, dump_checked_json({**about, "rows": rows}))
