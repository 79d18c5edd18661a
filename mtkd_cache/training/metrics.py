"""Dice as Kolbinger et al. 2023 compute it: an image at a time at the store's size, on each anatomy's own subset.

An image where truth and prediction are both empty does not count; an empty truth with a prediction counts 0. An anatomy's Dice is
the mean over its images, the mean Dice the unweighted mean over the anatomies.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from segmentation_models_pytorch.metrics import get_stats
from torch import Tensor

from mtkd_cache.cache.loader import BatchReader, prefetch
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.network import Network

BATCH = 8


def image_dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """Dice 2|P and T| / (|P| + |T|) of each image: bool (B, H, W) twice -> float (B,), NaN where both are empty."""
    hits, extra, missed, _ = get_stats(predicted[:, None].long(), truth[:, None].long(), mode="binary")
    return (2 * hits / (2 * hits + extra + missed))[:, 0]


def split_dice(
    heads: dict[str, tuple[Network, int]],
    store: SampleStore,
    split: str,
    accelerator: Accelerator,
    feed: BatchReader | None = None,
) -> dict:
    """Dice of a split: heads names for each anatomy the network and the head that segments it.

    feed: where the samples are read from. Returns dice {anatomy: mean or None}, mean_dice, images, images_by_anatomy.
    """
    feed = feed or BatchReader(store)
    found: dict[str, list[float]] = {anatomy: [] for anatomy in heads}
    for anatomy, (network, head) in heads.items():
        rows = store.rows(split, anatomy)[accelerator.process_index :: accelerator.num_processes]
        batches = ((rows[start : start + BATCH],) for start in range(0, len(rows), BATCH))
        for batch in prefetch(batches, feed.read):
            sent = batch.to(accelerator.device)
            with torch.inference_mode(), accelerator.autocast():
                logits = network(to_float(sent.images), heads=[head])[:, 0]
            found[anatomy] += image_dice(logits > 0, sent.masks > 0).tolist()
    return summarize(gather_object(list(found.items())))


def summarize(found: Iterable[tuple[str, list[float]]]) -> dict:
    """Means of (anatomy, the Dice of its images), several entries an anatomy being joined; NaN does not count."""
    values: dict[str, list[float]] = {}
    for anatomy, dice in found:
        values.setdefault(anatomy, []).extend(dice)
    counted = {anatomy: [one for one in dice if not math.isnan(one)] for anatomy, dice in values.items()}
    means = {anatomy: float(np.mean(dice)) if dice else None for anatomy, dice in counted.items()}
    known = [mean for mean in means.values() if mean is not None]
    return {
        "dice": means,
        "mean_dice": float(np.mean(known)) if known else 0.0,
        "images": sum(map(len, values.values())),
        "images_by_anatomy": {anatomy: len(dice) for anatomy, dice in values.items()},
    }
