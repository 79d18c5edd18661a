"""The arrays of Figure 3: a test sample of each anatomy, and what the networks say of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.checkpoints import load_network
from mtkd_cache.models.network import Network
from mtkd_cache.study.report.qualitative import Panel

TEACHER, BASELINE, DISTILLED = "Teacher", "Student without KD", "Student with KD"
CHUNK = 64


def median_sample(store: SampleStore, anatomy: str) -> int | None:
    """The row of the test sample whose truth has the median area of its anatomy's; None where all truths are empty.

    Empty truths are left aside; of an even number it is the lower of the two in the middle, of equal areas the earlier
    row. No result has a say in the choice.
    """
    rows = store.rows("test", anatomy)
    areas = [int(mask.sum()) for start in range(0, len(rows), CHUNK) for mask in store.read(rows[start : start + CHUNK])[1]]
    known = sorted((area, int(row)) for area, row in zip(areas, rows, strict=True) if area)
    return known[(len(known) - 1) // 2][1] if known else None


def panels(
    store: SampleStore, teachers: Path | None, baseline: Path, distilled: Path, anatomies: Sequence[str] | None = None
) -> list[Panel]:
    """A panel for each anatomy (default: the store's) that has a test sample.

    teachers: a teachers folder, or None for no such column. baseline, distilled: run folders.
    Raises MtkdError where a network is missing, damaged or knows other anatomies than the store.
    """
    chosen = {anatomy: median_sample(store, anatomy) for anatomy in anatomies or store.anatomies}
    chosen = {anatomy: row for anatomy, row in chosen.items() if row is not None}
    if not chosen:
        return []
    images, truths = store.read(np.array(list(chosen.values())))
    students = {
        title: load_network(folder, anatomies=store.anatomies) for title, folder in ((BASELINE, baseline), (DISTILLED, distilled))
    }
    found = []
    for anatomy, image, truth in zip(chosen, images, truths, strict=True):
        predictions = {}
        if teachers is not None:
            predictions[TEACHER] = predict(load_network(teachers / anatomy, anatomies=[anatomy]), image, 0)
        head = store.anatomies.index(anatomy)
        predictions |= {title: predict(network, image, head) for title, network in students.items()}
        found.append(Panel(anatomy, image, truth.astype(bool), predictions))
    return found


@torch.no_grad()
def predict(network: Network, image: np.ndarray, head: int) -> np.ndarray:
    """The mask (H, W), bool, that a network's head gives of an image (H, W, 3) uint8: probability above one half."""
    pixels = to_float(torch.from_numpy(image)[None])
    return (network(pixels)[0, head] > 0).numpy()
