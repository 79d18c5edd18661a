"""Dice as Kolbinger et al. 2023 compute it: an image at a time at the store's size, on each anatomy's own subset.

An image where truth and prediction are both empty does not count; an empty truth with a prediction counts 0. An anatomy's Dice is
the mean over its images, the mean Dice the unweighted mean over the anatomies.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypedDict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from segmentation_models_pytorch.metrics import get_stats
from torch import Tensor

from mtkd_cache.cache.loader import BatchReader, Source, prefetch_batches
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.network import Network

BATCH = 8
LOWEST, STEP = -8.0, 0.5  # a power of two, so that logits and thresholds are compared exactly
GRID = LOWEST + STEP * np.arange(25)  # thresholds in logits, up to 4
Heads = Mapping[str, tuple[Network, int]]  # for each anatomy the network and the number of its head


def image_dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """Dice 2|P and T| / (|P| + |T|) of each image: bool (B, H, W) twice -> float (B,), NaN where both are empty."""
    return overlap(predicted, truth)["dice"]


def overlap(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """dice, iou (intersection over union), precision and recall of each image: bool (B, H, W) twice -> float (B,) on the CPU."""
    counts = get_stats(predicted[:, None].long(), truth[:, None].long(), mode="binary")
    hits, extra, missed, _ = (count[:, 0].cpu() for count in counts)
    return {
        "dice": 2 * hits / (2 * hits + extra + missed),
        "iou": hits / (hits + extra + missed),
        "precision": hits / (hits + extra),
        "recall": hits / (hits + missed),
    }


def grid_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice of each image where pixels with a logit above a threshold are predicted, at every threshold of GRID.

    One histogram of the logits between the thresholds, apart for background and truth, tells all of them. Logits that are not a
    number are above none.
    logits float and truth bool (B, H, W) -> float64 (B, K), NaN where truth and prediction are empty.
    """
    bins = len(GRID) + 1
    thresholds_below = (logits / STEP).ceil().sub_(LOWEST / STEP).nan_to_num_(0).clamp_(0, len(GRID))
    cells = thresholds_below.add_(truth, alpha=bins).int().flatten(1)
    counts = torch.stack([torch.bincount(image, minlength=2 * bins) for image in cells]).view(-1, 2, bins)
    extra, hits = counts.flip(-1).cumsum(-1).flip(-1)[..., 1:].double().unbind(1)
    dice: Tensor = 2 * hits / (hits + extra + counts[:, 1].sum(-1, keepdim=True))
    return dice


def split_logits(
    heads: Heads,
    store: SampleStore,
    split: str,
    accelerator: Accelerator,
    source: Source | None = None,
    segment: Callable[[Tensor, str], Tensor] | None = None,
) -> Iterator[tuple[str, np.ndarray, Tensor, Tensor]]:
    """Run each anatomy's head over its own images of a split, in batches; a process of a launch takes its share of them.

    source: where the samples are read, by default the store. segment: from images uint8 (B, H, W, 3) and an anatomy to its
    logits (B, H, W), by default by the heads themselves.
    Yields anatomy, the images' rows (B,) in the store, logits float32 (B, H, W) and truth bool (B, H, W), on the device.
    """
    source = source or BatchReader(store)
    for anatomy, (network, head) in heads.items():
        rows = store.rows(split, anatomy)[accelerator.process_index :: accelerator.num_processes]
        parts = ((rows[start : start + BATCH],) for start in range(0, len(rows), BATCH))
        for stored in prefetch_batches(parts, source, accelerator.device):
            batch = stored.to(accelerator.device)
            with torch.inference_mode(), accelerator.autocast():
                if segment is None:
                    logits = network(to_float(batch.images), heads=[head])[:, 0]
                else:
                    logits = segment(batch.images, anatomy)
            yield anatomy, batch.rows, logits.float(), batch.masks > 0


def split_curves(
    heads: Heads, store: SampleStore, split: str, accelerator: Accelerator, source: Source | None = None
) -> dict[str, np.ndarray]:
    """Dice of a split's images at each threshold of GRID: {anatomy: float (n, K)}, in the order of `store.rows`."""
    own = [
        (anatomy, rows, grid_dice(logits, truth).cpu().numpy())
        for anatomy, rows, logits, truth in split_logits(heads, store, split, accelerator, source)
    ]
    curves = {anatomy: np.full((len(store.rows(split, anatomy)), len(GRID)), np.nan) for anatomy in heads}
    for anatomy, rows, dice in gather_object(own):
        curves[anatomy][np.searchsorted(store.rows(split, anatomy), rows)] = dice
    return curves


class DiceSummary(TypedDict):
    """dice: the mean of each anatomy, None without an image that counts. images: their number, counted or not."""

    dice: dict[str, float | None]
    mean_dice: float
    images: int
    images_by_anatomy: dict[str, int]


def summarize(dice: Iterable[tuple[str, list[float]]]) -> DiceSummary:
    """Means of (anatomy, the Dice of its images), several entries an anatomy being joined; NaN does not count."""
    by_anatomy: dict[str, list[float]] = {}
    for anatomy, values in dice:
        by_anatomy.setdefault(anatomy, []).extend(values)
    counted = {anatomy: [value for value in values if not math.isnan(value)] for anatomy, values in by_anatomy.items()}
    means = {anatomy: float(np.mean(values)) if values else None for anatomy, values in counted.items()}
    known = [mean for mean in means.values() if mean is not None]
    return {
        "dice": means,
        "mean_dice": float(np.mean(known)) if known else 0.0,
        "images": sum(map(len, by_anatomy.values())),
        "images_by_anatomy": {anatomy: len(values) for anatomy, values in by_anatomy.items()},
    }
