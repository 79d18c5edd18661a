"""The distillation term of DIST: the student need only agree with the teacher on which positions are how much more likely."""

import torch
from torch import Tensor

from mtkd_cache.losses.by_head import Average, differentiated, number_of_samples, sum_over_samples

SMALLEST_VARIANCE = 1e-8  # of probabilities; below it a map counts as constant, whose correlation is undefined


def pearson_by_head(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    valid: Tensor | None = None,
    average: Average | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """1 - Pearson's correlation between the probabilities of teacher and student over the valid positions, by head.

        p = 1 / (1 + exp(-z / T));   L[i] = 1 / B sum_b [ 1 - cov_k(p_S, p_T) / (std_k p_S * std_k p_T) ]

    Args, Raises: see `mtkd_cache.losses.kl_by_head`. Returns float (A,), each from 0 to 2.

    Reference: Huang et al. 2022 (DIST), the intra-class half. Over the positions of one map instead of those of the whole batch,
    and on the sigmoid, which is what their softmax over classes is for a binary head. Not multiplied with T^2: a correlation does
    not change with the scale of the probabilities.
    """

    def distance(student: Tensor, teacher: Tensor, inside: Tensor) -> Tensor:
        weight = inside / inside.sum().clamp(min=1)
        student, teacher = (_standardized(torch.sigmoid(maps / temperature), weight) for maps in (student, teacher))
        return 1 - (student * teacher * weight).sum(1)

    return sum_over_samples(student, teacher, valid, differentiated(distance), kept) / number_of_samples(student, average)


def _standardized(maps: Tensor, weight: Tensor) -> Tensor:
    centered = maps - (maps * weight).sum(1, keepdim=True)
    variance = (centered.square() * weight).sum(1, keepdim=True)
    return centered * torch.rsqrt(variance.clamp(min=SMALLEST_VARIANCE))
