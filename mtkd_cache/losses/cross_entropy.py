"""Binary cross-entropy with the masks, of which each says where one anatomy is."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_cache.losses.by_head import Average, as_bool, at_least_one, empty_gradient, precise, with_gradient


def exclusive_cross_entropy(
    logits: Tensor, mask: Tensor, anatomy: Tensor, valid: Tensor | None = None, average: Average | None = None
) -> Tensor:
    """Binary cross-entropy with mutual exclusivity: a single mean over all pixels that count, in all heads.

    The head of the annotated anatomy is trained on the whole binary mask; every other head is trained to predict background where
    the mask is foreground, and not at all on the other pixels, which may or may not show its anatomy.

        L = 1/n sum_b [ sum_{k valid} bce(z[b, a_b, k], y[b, k]) + sum_{i != a_b} sum_{k valid, y[b, k] = 1} bce(z[b, i, k], 0) ]

    with n the number of terms. With one head it is equation (1) of Maack et al. 2024, averaged.

    Args:
        logits: float (B, A, H, W).
        mask: bool or 0 and 1 (B, H, W), where the annotated anatomy is.
        anatomy: int64 (B,), the annotated anatomy's index.
        valid: bool or 0 and 1 (B, H, W); None counts every pixel.
        average: averages a tensor over the processes that share a batch, so that the mean of their losses is the loss of the
            whole batch; None for a single process.

    Returns:
        A scalar.

    Raises:
        MtkdError: a mask of another shape or with other values.

    Reference: Maack et al. 2024, section 2; the single mean is that of Kolbinger et al. 2023's public code.
    """
    sums, counts = _sums_and_counts(logits, mask, anatomy, valid, average)
    return sums.sum() / at_least_one(counts.sum())


def cross_entropy_by_head(
    logits: Tensor, mask: Tensor, anatomy: Tensor, valid: Tensor | None = None, average: Average | None = None
) -> Tensor:
    """CE_i of equation (3): the terms of `exclusive_cross_entropy` in head i, averaged over the batch's pixels that count there.

    Args, Raises: see `exclusive_cross_entropy`. Returns float (A,), 0 for a head in which no pixel of the batch counts.
    """
    sums, counts = _sums_and_counts(logits, mask, anatomy, valid, average)
    return sums / at_least_one(counts)


def head_mean_cross_entropy(
    logits: Tensor, mask: Tensor, anatomy: Tensor, valid: Tensor | None = None, average: Average | None = None
) -> Tensor:
    """The mean of `cross_entropy_by_head` over the heads in which a pixel of the batch counts, a scalar.

    Args, Raises: see `exclusive_cross_entropy`, in whose single mean a head weighs as much as it has pixels.
    """
    sums, counts = _sums_and_counts(logits, mask, anatomy, valid, average)
    return (sums / at_least_one(counts)).sum() / at_least_one((counts > 0).sum())


def _sums_and_counts(
    logits: Tensor, mask: Tensor, anatomy: Tensor, valid: Tensor | None, average: Average | None
) -> tuple[Tensor, Tensor]:
    """The terms of each head: their sum, differentiable in the logits, and their number, (A,) both."""
    mask = as_bool("mask", mask, logits)
    valid = torch.ones_like(mask) if valid is None else as_bool("valid", valid, logits)
    with torch.no_grad():
        positive = mask & valid
        gradient = empty_gradient(logits)
        positives, negatives = positive.sum((1, 2)), (valid & ~positive).sum((1, 2))
        counts = positives.sum().repeat(logits.shape[1]).index_add_(0, anatomy, negatives).to(gradient.dtype)
        sums = gradient.new_zeros(logits.shape[1])
        samples = zip(map(precise, logits), gradient, valid, positive, anatomy[:, None], strict=True)
        for sample, slope, inside, truth, own in samples:
            own_logits = sample.index_select(0, own)
            own_terms = (F.softplus(own_logits) - own_logits * truth) * inside
            as_negative = F.softplus(sample).mul_(truth).sum((1, 2))
            sums += as_negative.index_copy_(0, own, own_terms.sum()[None])
            torch.sigmoid(sample, out=slope).mul_(truth)
            slope.index_copy_(0, own, (torch.sigmoid(own_logits) - truth.to(sample.dtype)) * inside)
    return with_gradient(logits, sums, gradient), average(counts) if average else counts
