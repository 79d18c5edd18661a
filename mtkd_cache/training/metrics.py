"""Dice as Kolbinger et al. 2023 compute it: an image at a time at the store's size, on each anatomy's own subset.

An image where truth and prediction are both empty does not count; an empty truth with a prediction counts 0. An anatomy's Dice is
the mean over its images, the mean Dice the unweighted mean over the anatomies.
"""

import math
from collections.abc import Iterable
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


def image_dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """Dice 2|P and T| / (|P| + |T|) of each image: bool (B, H, W) twice -> float (B,), NaN where both are empty."""
    hits, extra, missed, _ = get_stats(predicted[:, None].long(), truth[:, None].long(), mode="binary")
    dice: Tensor = 2 * hits / (2 * hits + extra + missed)
    return dice[:, 0]


class DiceSummary(TypedDict):
    """dice: the mean of each anatomy, None without an image that counts. images: their number, counted or not."""

    dice: dict[str, float | None]
    mean_dice: float
    images: int
    images_by_anatomy: dict[str, int]


def split_dice(
    heads: dict[str, tuple[Network, int]], store: SampleStore, split: str, accelerator: Accelerator, source: Source | None = None
) -> DiceSummary:
    """Dice of a split. heads: for each anatomy the network and the number of its head; no other head is run.

    source: where the samples are read, by default the store.
    """
    source = source or BatchReader(store)
    dice: dict[str, list[float]] = {anatomy: [] for anatomy in heads}
    for anatomy, (network, head) in heads.items():
        rows = store.rows(split, anatomy)[accelerator.process_index :: accelerator.num_processes]
        parts = ((rows[start : start + BATCH],) for start in range(0, len(rows), BATCH))
        for stored in prefetch_batches(parts, source, accelerator.device):
            batch = stored.to(accelerator.device)
            with torch.inference_mode(), accelerator.autocast():
                logits = network(to_float(batch.images), heads=[head])[:, 0]
            dice[anatomy] += image_dice(logits > 0, batch.masks > 0).tolist()
    return summarize(gather_object(list(dice.items())))


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
