"""The paper's distillation term on standardized logits: the student need not reach the teacher's range of logits."""

import torch
from torch import Tensor

from mtkd_cache.losses.by_head import Average, differentiated, number_of_samples, sum_over_samples
from mtkd_cache.losses.kl import log_softmax

SMALLEST_VARIANCE = 1e-12  # of logits; below it a map counts as constant


def standardized_by_head(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    valid: Tensor | None = None,
    average: Average | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """`kl_by_head` of logits that have mean 0 and standard deviation 1 over the valid positions of each map.

        x[b, i, k] = (z[b, i, k] - mean_k z) / std_k z;   p = softmax_k(x / T);   L[i] = T^2 / B sum_{b, k} p_T log(p_T / p_S)

    with n - 1 in the standard deviation.

    Args, Raises: see `mtkd_cache.losses.kl_by_head`. Returns float (A,), in nats.

    Reference: Sun et al. 2024, Logit Standardization in Knowledge Distillation, algorithm 1, over positions instead of classes.
    """

    def kl(student: Tensor, teacher: Tensor, inside: Tensor) -> Tensor:
        log_p_student, log_p_teacher = (
            log_softmax(_standardized(maps, inside) / temperature, inside) for maps in (student, teacher)
        )
        return temperature**2 * (log_p_teacher.exp() * (log_p_teacher - log_p_student)).sum(1)

    return sum_over_samples(student, teacher, valid, differentiated(kl), kept) / number_of_samples(student, average)


def _standardized(maps: Tensor, inside: Tensor) -> Tensor:
    count = inside.sum()
    centered = (maps - (maps * inside).sum(1, keepdim=True) / count.clamp(min=1)) * inside
    variance = centered.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return centered * torch.rsqrt(variance.clamp(min=SMALLEST_VARIANCE))
