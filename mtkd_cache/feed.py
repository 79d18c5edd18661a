"""Batches for a training: read from the stores ahead of the step that wants them, or held in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mtkd_cache.cache import DamagedMap, LogitCache
from mtkd_cache.errors import MtkdError
from mtkd_cache.samples import SampleStore

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


class Stream:
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
        except DamagedMap as error:
            raise MtkdError(f"{self.store.describe(rows[list(hashes).index(error.sha256)])}: {error}") from error


def epoch_batches(rows: np.ndarray, batch: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """The batches of one epoch for one of `world` processes: every sample once, in an order fixed by (seed, epoch).

    A last batch that is not full is left out (its samples come in other epochs), unless it is the only one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    count = max(len(order) // batch, 1)
    return [order[number * batch : (number + 1) * batch][rank::world] for number in range(count)]


def read_ahead(items: Iterable, read: Callable[..., T], depth: int = AHEAD) -> Iterator[T]:
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
