"""Pictures of other subsets as negatives of a teacher, and what labels say of the pictures of a batch."""

import numpy as np
import torch
from torch import Tensor

from mtkd_cache.cache.loader import Batch
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError


def check_labels(store: SampleStore, setting: str) -> None:
    """Raises MtkdError where the value of a recipe's key, the setting, needs labels that the store lacks."""
    if store.labels_fingerprint is None:
        raise MtkdError(
            f"{setting}: {store.url} has no labels of what its pictures show. "
            "Ingest a dataset with weak_labels.csv, or choose another value."
        )


def absent_in(store: SampleStore, batch: Batch) -> Tensor:
    """Which anatomies each picture lacks by its label, False where that is unknown: bool (B, A), on the device of the batch."""
    return torch.from_numpy(store.present[batch.rows] == 0).to(batch.anatomy.device)


def negatives_of(store: SampleStore, anatomy: str, kind: str) -> np.ndarray:
    """The training samples of other subsets that can teach an anatomy's teacher what is background: rows, int (n,).

    kind: a recipe's `teacher.negatives`. Those of "absent" are pictures that lack the anatomy by their label, those of
    "exclusive" and "both" all; those of "own" none.
    """
    head, rows = store.anatomies.index(anatomy), store.rows("train")
    lacks = store.present[rows, head] == 0
    chosen = {"own": False, "exclusive": True, "absent": lacks, "both": True}[kind]
    return np.asarray(rows[(store.anatomy[rows] != head) & chosen])


def with_negatives(batches: list[np.ndarray], negatives: np.ndarray, share: float, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches in which the last samples are negatives: as many batches as there were, and as large.

    Args:
        batches: rows, int (b,) each.
        negatives: rows, int (n,); without any, the batches stay as they are.
        share: of a batch, rounded to a whole number of samples, at least one and never all of it.
        seed, epoch: fix which are drawn: none a second time in the epoch before all others were.
    """
    if not len(negatives):
        return batches
    counts = [min(max(int(share * len(batch) + 0.5), 1), len(batch) - 1) for batch in batches]
    drawn = np.resize(np.random.default_rng([seed, epoch, 2]).permutation(negatives), sum(counts))
    parts = np.split(drawn, np.cumsum(counts)[:-1])
    return [np.concatenate([batch[: len(batch) - len(part)], part]) for batch, part in zip(batches, parts, strict=True)]
