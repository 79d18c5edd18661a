"""What is known of the pixels that a mask does not annotate, and what follows from it for cross-entropy and teachers.

Anatomies exclude each other, and a label may say that a picture lacks one. Of map (b, i) at pixel k is therefore known

    foreground   i = a_b and y[b, k] = 1
    background   i = a_b and y[b, k] = 0;   i != a_b and y[b, k] = 1;   i != a_b and the label of b calls i absent

with a_b the annotated anatomy and y its mask; all else is unknown.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_cache.losses.by_head import Average, as_bool, at_least_one, empty_gradient, precise, with_gradient


def move_to_known(teacher: Tensor, mask: Tensor, anatomy: Tensor, absent: Tensor, margin: float) -> Tensor:
    """A teacher's logits moved to the side that is known, and no further than a margin.

        known foreground:  z' = max(z, margin);   known background:  z' = min(z, -margin);   else:  z' = z

    A logit that is on the known side by the margin or more stays as it is.

    Args:
        teacher: float (B, A, H, W), at the size of the masks and in their view: cached maps are first upsampled and warped
            bilinearly (`mtkd_cache.data.augment.warp`), so that no mask is ever resampled to a map's stride.
        mask: bool or 0 and 1 (B, H, W), where the annotated anatomy is.
        anatomy: int64 (B,), the annotated anatomy's index.
        absent: bool (B, A), the anatomies that a picture lacks by its label; False where that is unknown.
        margin: in logits, more than 0.

    Returns:
        float (B, A, H, W).

    Raises:
        MtkdError: a mask of another shape or with other values.
    """
    mask = as_bool("mask", mask, teacher)[:, None]
    own = F.one_hot(anatomy, teacher.shape[1]).bool()[:, :, None, None]
    background = torch.where(own, ~mask, mask | absent[:, :, None, None])
    moved = torch.where(background, teacher.clamp(max=-margin), teacher)
    return torch.where(own & mask, teacher.clamp(min=margin), moved)


def absent_cross_entropy(
    logits: Tensor, anatomy: Tensor, absent: Tensor, valid: Tensor | None = None, average: Average | None = None
) -> Tensor:
    """Binary cross-entropy with background everywhere in the heads of anatomies that a picture lacks, a single mean.

        N = 1/n sum_b sum_{i != a_b, absent[b, i]} sum_{k valid} bce(z[b, i, k], 0)

    with n the number of terms. The annotated anatomy's own head is left out: its mask says the same.

    Args:
        logits: float (B, A, H, W).
        anatomy: int64 (B,), the annotated anatomy's index.
        absent: bool (B, A), the anatomies that a picture lacks by its label; False where that is unknown.
        valid, average: see `exclusive_cross_entropy`.

    Returns:
        A scalar, 0 where no picture of the batch is known to lack an anatomy.

    Raises:
        MtkdError: `valid` of another shape or with other values.
    """
    sums, counts = _sums_and_counts(logits, anatomy, absent, valid, average)
    return sums.sum() / at_least_one(counts.sum())


def absent_cross_entropy_by_head(
    logits: Tensor, anatomy: Tensor, absent: Tensor, valid: Tensor | None = None, average: Average | None = None
) -> Tensor:
    """The terms of `absent_cross_entropy` in each head, averaged over those of the head: float (A,), 0 for a head without any."""
    sums, counts = _sums_and_counts(logits, anatomy, absent, valid, average)
    return sums / at_least_one(counts)


def _sums_and_counts(
    logits: Tensor, anatomy: Tensor, absent: Tensor, valid: Tensor | None, average: Average | None
) -> tuple[Tensor, Tensor]:
    """The terms of each head: their sum, differentiable in the logits, and their number, (A,) both."""
    valid = torch.ones_like(logits[:, 0], dtype=torch.bool) if valid is None else as_bool("valid", valid, logits)
    absent = absent & ~F.one_hot(anatomy, logits.shape[1]).bool()
    with torch.no_grad():
        gradient = empty_gradient(logits)
        counts = (absent * valid.sum((1, 2))[:, None]).sum(0).to(gradient.dtype)
        sums = gradient.new_zeros(logits.shape[1])
        for sample, slope, inside, lacking in zip(map(precise, logits), gradient, valid, absent, strict=True):
            taught = inside & lacking[:, None, None]
            sums += (F.softplus(sample) * taught).sum((1, 2))
            torch.sigmoid(sample, out=slope).mul_(taught)
    return with_gradient(logits, sums, gradient), average(counts) if average else counts
