"""A torch Dataset over a sample store and its logit cache, for a training loop that is not ours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.augment import Views, draw_views, identity_views
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Augmentation


class CachedDistillationDataset(Dataset[dict[str, Any]]):
    """The samples of a split with the teachers' logits and the view of the current epoch, for a plain DataLoader.

    An item is a dict, which a DataLoader collates to batches of

        image          uint8 (B, H, W, 3), RGB as it is stored
        mask           uint8 (B, H, W), 1 where the sample's own anatomy is
        anatomy        int64 (B,), index into `store.anatomies`
        logits         float32 (B, A, h, w), all teachers' logits at their native stride; of teachers of several strides a list,
                       (B, A', h, w) for each of `cache.spec.arrays`
        view           Views, what the student is to see of the sample: apply_views(image, mask, view)
        logits_affine  float32 (B, 2, 3), the logits of that view: cache.warp(logits, logits_affine, (H, W))

    Views are applied on the device, to a batch at once, and not in the workers. `logits_affine` is the view's own map, or the
    identity where the cache records views, whose logits are of the view already.

    It can be pickled, and read by several workers that are forked or spawned.

    Args:
        store: the samples.
        cache: their logits; it has to hold the whole split.
        split: "train", "validation" or "test".
        augmentation: ranges of the views, as load_recipe("paper").augmentation; None for the plain samples, and for a cache that
            records views, which are then shown.
        seed: of the views. (seed, epoch, sample) alone determine a view, whatever the order, the batch or the worker.

    Raises:
        MtkdError: the cache was built from other samples, does not hold the whole split, or records views and an augmentation is
            given.
    """

    def __init__(
        self, store: SampleStore, cache: LogitCache, split: str = "train", augmentation: Augmentation | None = None, seed: int = 0
    ):
        self.rows = store.rows(split)
        cache.check_belongs(store, self.rows)
        if augmentation and cache.views > 1:
            raise MtkdError(f"{cache.url} records {cache.views} views of each sample. Leave the augmentation out.")
        self.store, self.cache = store, cache
        self.augmentation, self.seed = augmentation, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Show the views of an epoch, counted from 0; workers see it when the next iteration over the DataLoader begins.

        Where the cache records V views, epoch E shows the recorded view E mod V.
        """
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """What a DataLoader asks for: the items of a batch, read at once."""
        rows = self.rows[list(indices)]
        hashes, epoch = self.store.hashes[rows], int(self.epoch)
        plain, recorded = identity_views(len(rows)), epoch % self.cache.views
        if self.cache.views > 1:
            views = self.cache.draw_views(hashes, recorded)
        elif self.augmentation:
            views = draw_views(self.augmentation, self.seed, hashes, epoch + 1, self.store.size)
        else:
            views = plain
        images, masks = self.store.read(rows)
        maps = [dequantize(torch.from_numpy(own), self.cache.step) for own in self.cache.read_arrays(hashes, recorded)]
        columns = {
            "image": torch.from_numpy(images),
            "mask": torch.from_numpy(masks),
            "anatomy": torch.from_numpy(self.store.anatomy[rows].astype(np.int64)),
            "logits": maps[0] if len(maps) == 1 else [list(own) for own in zip(*maps, strict=True)],
            "logits_affine": plain.affine if self.cache.views > 1 else views.affine,
        }
        return [
            dict(zip(columns, values, strict=True), view=Views(*view))
            for *values, view in zip(*columns.values(), zip(*views, strict=True), strict=True)
        ]
