"""Options against the imbalance of the exclusive cross-entropy: a head sees few pixels of its anatomy and many of others."""

import math

import numpy as np
import torch

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.network import Network

READ = 64  # samples at once


def balanced_rows(rows: np.ndarray, anatomy: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many rows as there are, every anatomy equally often: rare ones repeat samples, of common ones a part is left out.

    Args:
        rows: int (n,), the training samples. anatomy: int (n,), the annotated anatomy of each.
        seed, epoch: fix what is drawn.
    """
    present = np.unique(anatomy)
    ends = np.arange(len(present) + 1) * len(rows) // len(present)
    random = np.random.default_rng([seed, epoch, 1])
    drawn = (random.permutation(rows[anatomy == each]) for each in present)
    return np.concatenate([np.resize(own, end - start) for own, start, end in zip(drawn, ends, ends[1:], strict=False)])


def prior_log_odds(store: SampleStore, rows: np.ndarray) -> list[float]:
    """The logit of each anatomy's share of foreground among the pixels that its head is trained on by `exclusive_cross_entropy`.

    A head sees the foreground and background of its own samples and, as negatives, the foreground of all others.
    """
    foreground, _, negatives = _pixels(store, rows)
    return [math.log(odds) for odds in foreground / negatives]


def exclusion_shift(store: SampleStore, rows: np.ndarray) -> list[float]:
    """How far negatives by exclusion lower the logits of each anatomy's head: its prior log-odds minus those in its own samples.

    At most 0. A calibrated head's logits move with the log-odds of its training pixels, while Dice is judged on its own subset.
    """
    _, background, negatives = _pixels(store, rows)
    return [math.log(share) for share in background / negatives]


def _pixels(store: SampleStore, rows: np.ndarray) -> np.ndarray:
    """Pixels of foreground, of background in its own samples, and of all negatives of each anatomy's head: (3, A), at least 1."""
    foreground, background = np.zeros((2, len(store.anatomies)))
    for start in range(0, len(rows), READ):
        part = rows[start : start + READ]
        masks = store.read(part)[1] > 0
        np.add.at(foreground, store.anatomy[part], masks.sum((1, 2)))
        np.add.at(background, store.anatomy[part], (~masks).sum((1, 2)))
    return np.maximum([foreground, background, background + foreground.sum() - foreground], 1)


def start_at_prior(network: Network, log_odds: list[float]) -> None:
    """Add each anatomy's prior log-odds to the bias of its head's last layer, whose random weights leave logits around 0.

    Raises MtkdError where a decoder's last parameter is not such a bias.
    Reference: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1.
    """
    of_decoders = np.split(np.asarray(log_odds, dtype=np.float32), len(network.decoders))
    for decoder, values in zip(network.decoders, of_decoders, strict=True):
        *_, (name, bias) = decoder.named_parameters()
        if name.rpartition(".")[2] != "bias" or bias.shape != (len(values),):
            raise MtkdError(f"student.prior_bias: {network.arch} has no bias in its last layer. Leave that option out.")
        with torch.no_grad():
            bias.add_(torch.from_numpy(values).to(bias.device))
