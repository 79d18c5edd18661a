"""The arrays of Figure 3: a test sample of each anatomy, and what the networks predict."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.study.report.qualitative import Panel

TEACHER = "Teacher"
CHUNK = 64


def median_sample(store: SampleStore, anatomy: str) -> int | None:
    """The row of the test sample whose mask has the median area of its anatomy's; None where all masks are empty.

    Empty masks are left aside; of an even number it is the lower of the two in the middle, of equal areas the earlier
    row. No result has a say in the choice.
    """
    rows = store.rows("test", anatomy)
    areas = [int(mask.sum()) for start in range(0, len(rows), CHUNK) for mask in store.read(rows[start : start + CHUNK])[1]]
    known = sorted((area, int(row)) for area, row in zip(areas, rows, strict=True) if area)
    return known[(len(known) - 1) // 2][1] if known else None


def panels(store: SampleStore, folders: Mapping[str, Path]) -> list[Panel]:
    """A panel for each anatomy of the store that has a test sample.

    folders: run folders and teachers folders, by the titles of their columns.
    Raises MtkdError where a network is missing, damaged or knows other anatomies than the store.
    """
    medians = {anatomy: median_sample(store, anatomy) for anatomy in store.anatomies}
    chosen = {anatomy: row for anatomy, row in medians.items() if row is not None}
    if not chosen:
        return []
    networks = {title: Predictor.load(folder, anatomies=store.anatomies) for title, folder in folders.items()}
    images, masks = store.read(np.array(list(chosen.values())))
    return [
        Panel(anatomy, image, mask.astype(bool), {title: _mask(network, image, anatomy) for title, network in networks.items()})
        for anatomy, image, mask in zip(chosen, images, masks, strict=True)
    ]


def _mask(network: Predictor, image: np.ndarray, anatomy: str) -> np.ndarray:
    """The mask (H, W), bool, predicted for an image (H, W, 3) uint8: logits above the head's threshold."""
    logits = network.logits(torch.from_numpy(image)[None], [anatomy])
    return np.asarray(logits[0, 0] > network.thresholds[anatomy])
