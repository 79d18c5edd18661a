"""Batches for a training: read from the stores in a thread, ahead of the step that needs them, or held in memory."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor

from mtkd_cache.cache.reader import CorruptMapError, LogitCache
from mtkd_cache.data.sample_store import SHARD, SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime.progress import progress_bar

AHEAD = 3  # batches read before they are asked for
SAMPLE = ("images", "masks", "anatomy")
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Samples as they are stored.

    rows (B,) in the sample store; images uint8 (B, H, W, 3); masks uint8 (B, H, W); anatomy int64 (B,);
    logits: the quantized maps of one recorded view, int16 (B, A', h, w) for each of the cache's arrays; empty without a cache.
    """

    rows: np.ndarray
    images: Tensor
    masks: Tensor
    anatomy: Tensor
    logits: tuple[Tensor, ...] = ()

    def apply(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with each tensor changed."""
        logits = tuple(map(change, self.logits))
        return Batch(self.rows, change(self.images), change(self.masks), change(self.anatomy), logits)

    def pinned(self, device: torch.device) -> "Batch":
        """The batch in page-locked memory, which a CUDA device copies while the host goes on; as it is for other devices."""
        if device.type != "cuda" or self.images.device.type != "cpu":
            return self
        with torch.cuda.device(device):
            return self.apply(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))


class BatchReader:
    """Reads batches from the sample store and, for a student that is distilled, from the logit cache."""

    def __init__(self, store: SampleStore, cache: LogitCache | None = None):
        self.store, self.cache = store, cache
        self.views = cache.views if cache else 1

    def bytes_per_sample(self) -> int:
        """Bytes of one sample in memory: image, mask and the maps of every recorded view."""
        width, height = self.store.size
        maps = sum(reader.bytes for reader in self.cache.readers) if self.cache else 0  # of one view
        return 4 * width * height + self.views * maps

    def read(self, rows: np.ndarray, view: int = 0) -> Batch:
        images, masks = self.store.read(rows)
        hashes = self.store.hashes[rows]
        logits: tuple[Tensor, ...] = ()
        try:
            if self.cache is not None:
                logits = tuple(map(torch.from_numpy, self.cache.read_arrays(hashes, view)))
        except CorruptMapError as error:
            raise MtkdError(f"{self.store.describe(rows[list(hashes).index(error.sha256)])}: {error}") from error
        anatomy = torch.from_numpy(self.store.anatomy[rows].astype(np.int64))
        return Batch(rows, torch.from_numpy(images), torch.from_numpy(masks), anatomy, logits)


def epoch_batches(rows: np.ndarray, batch: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """The batches of one epoch for one of `world` processes: every sample once, in an order fixed by (seed, epoch).

    A last batch that is not full is left out (its samples come in other epochs), unless it is the only one.
    Raises MtkdError where a process would get no sample.
    """
    if (samples := min(batch, len(rows))) < world:
        raise MtkdError(f"a batch of {samples} samples cannot be shared by {world} processes. Take fewer, or a larger batch.")
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    count = max(len(order) // batch, 1)
    return [order[number * batch : (number + 1) * batch][rank::world] for number in range(count)]


def prefetch(items: Iterable[tuple[Any, ...]], read: Callable[..., T], depth: int = AHEAD) -> Iterator[T]:
    """read(*item) for each item, in order, `depth` of them ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(read, *item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def prefetch_batches(items: Iterable[tuple[Any, ...]], source: "Source", device: torch.device) -> Iterator[Batch]:
    """source.read(*item) for each item, read ahead in a thread, which also pins what a CUDA device is to copy."""
    return prefetch(items, lambda *item: source.read(*item).pinned(device))


MODES = ("auto", "device", "host", "off")
SHARE = 0.5  # of the free memory that "auto" takes at most


class InMemorySource:
    """Holds all of a reader's samples (and their maps of every recorded view) in the memory of a device or the host."""

    def __init__(self, reader: BatchReader, rows: np.ndarray, device: torch.device):
        self.index_of = {int(row): index for index, row in enumerate(rows)}
        self.views = reader.views
        self.batches: list[Batch] = []  # all samples in one, for each view; images and masks are held once
        progress = progress_bar(f"load to {device.type}", "sample", len(rows) * self.views, leave=False)
        for view in range(self.views):
            parts = []
            for start in range(0, len(rows), SHARD):
                parts.append(reader.read(rows[start : start + SHARD], view))
                progress.update(len(parts[-1].rows))
            logits = tuple(torch.cat(maps) for maps in zip(*(part.logits for part in parts), strict=True))
            if view:
                whole = replace(self.batches[0], logits=logits)
            else:
                images, masks, anatomy = (torch.cat([getattr(part, name) for part in parts]) for name in SAMPLE)
                whole = Batch(rows, images, masks, anatomy, logits)
            self.batches.append(whole.to(device))
        progress.close()

    def read(self, rows: np.ndarray, view: int = 0) -> Batch:
        whole = self.batches[view]
        index = torch.tensor([self.index_of[int(row)] for row in rows], device=whole.images.device)
        return replace(whole.apply(lambda tensor: tensor.index_select(0, index)), rows=rows)


Source = BatchReader | InMemorySource


def preload(reader: BatchReader, rows: np.ndarray, device: torch.device, mode: str = "auto") -> Source:
    """The reader itself, or its samples in memory.

    mode: "device", "host", "off" (read from the disk), or "auto": the device where they take at most half its free memory, else
    the host where they take at most half of its, else the disk.
    """
    if mode not in MODES:
        raise MtkdError(f"resident {mode!r}: choose one of {', '.join(MODES)}.")
    if mode == "auto":
        needed = reader.bytes_per_sample() * len(rows)
        mode = "host" if needed <= SHARE * _free_host() else "off"
        if device.type == "cuda" and needed <= SHARE * torch.cuda.mem_get_info(device)[0]:
            mode = "device"
    if mode == "off":
        return reader
    return InMemorySource(reader, rows, device if mode == "device" else torch.device("cpu"))


def _free_host(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that are available, and no more than a job's or a container's limit (control groups, version 2)."""
    free: int = psutil.virtual_memory().available
    group = re.search(r"^0::/(.*)$", own.read_text() if own.exists() else "", re.MULTILINE)
    for folder in (groups / group[1], *(groups / group[1]).parents) if group else ():
        limit = folder / "memory.max"
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free
