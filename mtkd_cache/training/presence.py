"""Presence thresholds: what a head's highest logit in a picture must exceed for the head to claim anything there.

Dice on an anatomy's own subset cannot see what its head claims in pictures that lack the anatomy. Where labels tell which
validation pictures lack it, a second threshold s is chosen among the first, t, and what lies whole steps above it:

    dice(s)    mean Dice at t over the anatomy's own pictures, 0 where the highest logit is not above s
    alarms(s)  share of the pictures that lack it whose highest logit is above s
    s          where dice(s) / (1 + alarms(s)) is highest, the lowest among equals

That quotient is the Dice to expect where every other picture lacks the anatomy: a claim counts 0 there, and silence does not
count. Highest is meant of the native logits, before any upsampling.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mtkd_cache.cache.loader import BatchReader, prefetch_batches
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.records import OperatingPoint
from mtkd_cache.training.metrics import BATCH, GRID, STEP, Heads

FEWEST = 10  # pictures that lack an anatomy, for a threshold to be chosen


def choose_presence(dice: np.ndarray, highest: np.ndarray, without: np.ndarray, threshold: float) -> float | None:
    """The presence threshold of one head, in logits; None where no own picture counts, or fewer than FEWEST lack it.

    Args:
        dice: float (n,), of the anatomy's own pictures at the threshold; NaN where one does not count.
        highest: float (n,), the highest logit in each of these.
        without: float (m,), the highest logit in each picture that lacks the anatomy.
        threshold: the logit above which the head claims a pixel.
    """
    counts = ~np.isnan(dice)
    dice, highest = dice[counts], highest[counts]
    if not len(dice) or len(without) < FEWEST:
        return None
    steps = np.arange(threshold, max(threshold, float(highest.max())) + STEP, STEP)
    expected = (dice * (highest > steps[:, None])).mean(1) / (1 + (without > steps[:, None]).mean(1))
    return float(steps[expected.round(9).argmax()])


def with_presence(
    points: Mapping[str, OperatingPoint],
    curves: Mapping[str, np.ndarray],
    heads: Heads,
    store: SampleStore,
    accelerator: Accelerator,
) -> dict[str, OperatingPoint]:
    """Operating points with presence thresholds, of a store with labels. curves: Dice, see `split_curves`, of these heads."""
    rows = store.rows("validation")
    highest = highest_logits(heads, store, rows, accelerator)
    chosen = {}
    for anatomy, values in zip(heads, highest.T, strict=True):
        point = points[anatomy]
        own = values[np.isin(rows, store.rows("validation", anatomy))]
        without = values[store.present[rows, store.anatomies.index(anatomy)] == 0]
        dice = curves[anatomy][:, int(np.searchsorted(GRID, point.threshold))]
        presence = choose_presence(dice, own, without, point.threshold)
        if presence is not None:
            alarms = float((without > point.threshold).mean()), float((without > presence).mean())
            point = replace(point, presence=presence, false_alarms=alarms, images_without=len(without))
        chosen[anatomy] = point
    return chosen


def highest_logits(heads: Heads, store: SampleStore, rows: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """The highest native logit of each head in pictures of a store, float32 (n, A); each process of a launch runs its share.

    rows: int (n,), of the pictures, ascending.
    """
    networks = {id(network): network for network, _ in heads.values()}
    own = rows[accelerator.process_index :: accelerator.num_processes]
    parts = ((own[start : start + BATCH],) for start in range(0, len(own), BATCH))
    found = []
    for stored in prefetch_batches(parts, BatchReader(store), accelerator.device):
        images = to_float(stored.to(accelerator.device).images)
        with torch.inference_mode(), accelerator.autocast():
            highest = {key: network.native(network.padded(images)).amax((2, 3)).float() for key, network in networks.items()}
        values = torch.stack([highest[id(network)][:, head] for network, head in heads.values()], 1)
        found.append((stored.rows, values.cpu().numpy()))
    together = np.empty((len(rows), len(heads)), np.float32)
    for indices, values in gather_object(found):
        together[np.searchsorted(rows, indices)] = values
    return together
