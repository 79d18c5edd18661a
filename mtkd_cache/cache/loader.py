"""Batches for a training: read from the stores ahead of the step that wants them, or held in memory."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from mtkd_cache.cache.reader import CorruptMapError, LogitCache
from mtkd_cache.data.sample_store import SHARD, SampleStore
from mtkd_cache.errors import MtkdError

AHEAD = 3  # batches read before they are asked for
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Stored samples as they lie in the stores.

    rows (B,) in the sample store; images uint8 (B, H, W, 3); masks uint8 (B, H, W); anatomy int64 (B,);
    logits int16 or int8 (B, A, h, w), the quantised maps of one recorded view, or None.
    """

    rows: np.ndarray
    images: Tensor
    masks: Tensor
    anatomy: Tensor
    logits: Tensor | None

    def to(self, device: torch.device) -> "Batch":
        if self.images.device == device:
            return self
        pinned = [None if t is None else _send(t, device) for t in (self.images, self.masks, self.anatomy, self.logits)]
        return Batch(self.rows, *pinned)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class BatchReader:
    """Reads batches from the sample store and, for a student that is distilled, from the logit cache."""

    def __init__(self, store: SampleStore, cache: LogitCache | None = None):
        self.store, self.cache = store, cache

    def bytes_per_sample(self) -> int:
        """Bytes of one sample in memory: image, mask and the maps of every recorded view."""
        width, height = self.store.size
        maps = 0 if self.cache is None else self.cache.logits.dtype.itemsize * int(np.prod(self.cache.logits.shape[1:]))
        return 4 * width * height + maps

    def read(self, rows: np.ndarray, view: int = 0) -> Batch:
        images, masks = self.store.read(rows)
        logits = None if self.cache is None else torch.from_numpy(self._maps(rows, view))
        anatomy = torch.from_numpy(self.store.anatomy[rows].astype(np.int64))
        return Batch(rows, torch.from_numpy(images), torch.from_numpy(masks), anatomy, logits)

    def _maps(self, rows: np.ndarray, view: int) -> np.ndarray:
        hashes = self.store.hashes[rows]
        try:
            return self.cache.read(hashes, view)
        except CorruptMapError as error:
            raise MtkdError(f"{self.store.describe(rows[list(hashes).index(error.sha256)])}: {error}") from error


def epoch_batches(rows: np.ndarray, batch: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """The batches of one epoch for one of `world` processes: every sample once, in an order fixed by (seed, epoch).

    A last batch that is not full is left out (its samples come in other epochs), unless it is the only one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    count = max(len(order) // batch, 1)
    return [order[number * batch : (number + 1) * batch][rank::world] for number in range(count)]


def prefetch(items: Iterable, read: Callable[..., T], depth: int = AHEAD) -> Iterator[T]:
    """read(*item) for each item, in order, with up to `depth` of them under way in a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, *item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


MODES = ("auto", "device", "host", "off")
SHARE = 0.5  # of the free memory that "auto" takes at most


class InMemorySource:
    """Holds all of a stream's samples (and their maps of every recorded view) in memory, on a device or the host."""

    def __init__(self, stream: BatchReader, rows: np.ndarray, device: torch.device):
        self.row_of = {int(row): index for index, row in enumerate(rows)}
        views = stream.cache.views if stream.cache else 1
        self.held: list[Batch] = []
        progress = tqdm(total=len(rows) * views, desc=f"load to {device.type}", unit="sample", disable=None, leave=False)
        for view in range(views):
            parts = []
            for start in range(0, len(rows), SHARD):
                parts.append(stream.read(rows[start : start + SHARD], view))
                progress.update(len(parts[-1].rows))
            if view:
                first = self.held[0]
                self.held.append(Batch(rows, first.images, first.masks, first.anatomy, _join(parts, "logits").to(device)))
            else:
                joined = [_join(parts, name) for name in ("images", "masks", "anatomy", "logits")]
                self.held.append(Batch(rows, *(None if t is None else t.to(device) for t in joined)))
        progress.close()

    def read(self, rows: np.ndarray, view: int = 0) -> Batch:
        held = self.held[view]
        at = torch.tensor([self.row_of[int(row)] for row in rows], device=held.images.device)
        tensors = (held.images, held.masks, held.anatomy, held.logits)
        return Batch(rows, *(None if t is None else t.index_select(0, at) for t in tensors))


def _join(parts: list[Batch], name: str) -> Tensor | None:
    tensors = [getattr(part, name) for part in parts]
    return None if tensors[0] is None else torch.cat(tensors)


def preload(stream: BatchReader, rows: np.ndarray, device: torch.device, mode: str = "auto") -> BatchReader | InMemorySource:
    """The stream itself, or its samples in memory.

    mode: "device", "host", "off" (stream), or "auto": the device where they take at most half its free memory, else the host
    where they take at most half of its, else streaming.
    """
    if mode not in MODES:
        raise MtkdError(f"resident {mode!r}: choose one of {', '.join(MODES)}.")
    if mode == "auto":
        needed = stream.bytes_per_sample() * len(rows)
        mode = "host" if needed <= SHARE * _free_host() else "off"
        if device.type == "cuda" and needed <= SHARE * torch.cuda.mem_get_info(device)[0]:
            mode = "device"
    if mode == "off":
        return stream
    return InMemorySource(stream, rows, device if mode == "device" else torch.device("cpu"))


def _free_host(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that are available, and no more than a job's or a container's limit (control groups, version 2)."""
    free = psutil.virtual_memory().available
    group = re.search(r"^0::/(.*)$", mine.read_text() if mine.exists() else "", re.MULTILINE)
    for folder in (groups / group[1], *(groups / group[1]).parents) if group else ():
        limit = folder / "memory.max"
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free
