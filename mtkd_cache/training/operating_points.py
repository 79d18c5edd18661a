"""Operating points: the logit above which a head claims a pixel, chosen on the validation split once a network is trained.

A head is trained on few positive and many negative pixels, those of other anatomies among them. Its logits lie low, and at
probability 0.5, logit 0, it misses much of what it knows. A threshold is chosen without training, for each anatomy:

    curve       mean over its validation images of their Dice at each threshold of GRID, images that do not count left out
    smoothed    mean of the curve's values within 1 logit, weighted 1 2 3 2 1
    threshold   where the smoothed curve is highest; among equals the one nearest to 0
    interval    central 95 % of the thresholds chosen so from BOOTSTRAP resamples of the patients (percentile bootstrap)
"""

from pathlib import Path

import numpy as np
from accelerate import Accelerator

from mtkd_cache.cache.loader import Source
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.records import OperatingPoint, OperatingPoints, write_json
from mtkd_cache.training.metrics import GRID, STEP, Heads, split_curves, summarize
from mtkd_cache.training.presence import with_presence

SCORES = {"dice": "val_dice", "operating_point": "val_dice_at_operating_point"}  # by `Stage.select`, what an epoch is judged by
HALF = int(np.flatnonzero(GRID == 0)[0])  # probability 0.5
BOOTSTRAP = 1000
SMOOTHING = np.maximum(3 - np.abs(np.subtract.outer(GRID, GRID)) / STEP, 0)


def choose_threshold(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The place in GRID of the threshold, int (...,), from sums of Dice and numbers of images that count, (..., K) each."""
    curve = np.divide(sums, counts, out=np.zeros(sums.shape), where=counts > 0)
    weights = (counts > 0) @ SMOOTHING
    smoothed = np.divide(curve @ SMOOTHING, weights, out=np.zeros(sums.shape), where=weights > 0).round(9)
    nearest_first = np.argsort(np.abs(GRID), kind="stable")
    return np.asarray(nearest_first[smoothed[..., nearest_first].argmax(-1)])


def operating_point(dice: np.ndarray, patients: np.ndarray) -> OperatingPoint:
    """The operating point of one head; threshold 0 where no image counts.

    Args:
        dice: float (n, K), of each validation image at each threshold of GRID; NaN where the image does not count.
        patients: str (n,), the patient of each image.
    """
    best, interval = int(choose_threshold(*_totals(dice))), None
    names = np.unique(patients)
    if len(names) > 1:
        sums, counts = (np.stack(totals) for totals in zip(*(_totals(dice[patients == name]) for name in names), strict=True))
        draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), BOOTSTRAP)
        low, high = np.percentile(GRID[choose_threshold(draws @ sums, draws @ counts)], [2.5, 97.5])
        interval = float(low), float(high)
    at_half, at_best = (summarize([("", dice[:, place].tolist())])["dice"][""] for place in (HALF, best))
    return OperatingPoint(
        threshold=float(GRID[best]), interval=interval, dice_at_half=at_half, dice=at_best, images=len(dice), patients=len(names)
    )


def _totals(dice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of Dice (n, K), and numbers of images that count, at each threshold: (K,) each."""
    return np.nan_to_num(dice).sum(0), (~np.isnan(dice)).sum(0)


def validation_figures(curves: dict[str, np.ndarray]) -> dict[str, float]:
    """What an epoch records of the curves of `split_curves`: the mean Dice by both SCORES, each anatomy's Dice and threshold."""
    best = {anatomy: int(choose_threshold(*_totals(dice))) for anatomy, dice in curves.items()}
    at_half = summarize((anatomy, dice[:, HALF].tolist()) for anatomy, dice in curves.items())
    at_best = summarize((anatomy, dice[:, best[anatomy]].tolist()) for anatomy, dice in curves.items())
    thresholds = {f"threshold/{anatomy}": float(GRID[place]) for anatomy, place in best.items()}
    dice = {f"{SCORES['dice']}/{anatomy}": value for anatomy, value in at_half["dice"].items() if value is not None}
    return {SCORES["dice"]: at_half["mean_dice"], SCORES["operating_point"]: at_best["mean_dice"], **dice, **thresholds}


def write_operating_points(
    folder: Path, heads: Heads, weights_sha256: str, store: SampleStore, accelerator: Accelerator, source: Source | None = None
) -> OperatingPoints:
    """Choose the operating points of the networks in a folder on a store's validation split, and write them beside the weights.

    heads, source: see `split_logits`. Every process of a launch takes part; the main process writes.
    """
    curves = split_curves(heads, store, "validation", accelerator, source)
    points = {
        anatomy: operating_point(dice, store.patients[store.rows("validation", anatomy)]) for anatomy, dice in curves.items()
    }
    if store.labels_fingerprint:
        points = with_presence(points, curves, heads, store, accelerator)
    chosen = OperatingPoints(store_fingerprint=store.fingerprint, weights_sha256=weights_sha256, points=points)
    if accelerator.is_main_process:
        write_json(folder / OperatingPoints.FILE, chosen.to_json())
    return chosen
