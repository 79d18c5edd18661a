"""The objective of both stages as pure functions of tensors.

B samples, A anatomies (heads), H x W pixels. `valid` marks the pixels that show the sample (see `mtkd_cache.views.inside`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def exclusive_cross_entropy(
    logits: Tensor,
    mask: Tensor,
    anatomy: Tensor,
    valid: Tensor | None = None,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Binary cross-entropy with mutual exclusivity: one mean over the pixels that count, of all heads together.

    The head of the annotated anatomy learns the whole binary mask; every other head learns the mask's foreground as background,
    and nothing of the other pixels, which may or may not show its anatomy.

        L = 1/n sum_b [ sum_{k valid} bce(z[b, a_b, k], y[b, k]) + sum_{i != a_b} sum_{k valid, y[b, k] = 1} bce(z[b, i, k], 0) ]

    with n the number of terms. With one head it is equation (1) of Maack et al. 2024, averaged.

    Args:
        logits: float (B, A, H, W).
        mask: bool (B, H, W), where the annotated anatomy is.
        anatomy: int64 (B,), the annotated anatomy's index.
        valid: bool (B, H, W); None counts every pixel.
        average: the mean of a number over the processes that share a batch, so that the mean of their losses is the loss of
            the whole batch; None where one process has it all.

    Reference: Maack et al. 2024, section 2; the single mean is that of Kolbinger et al. 2023's public code.
    """
    valid = torch.ones_like(mask) if valid is None else valid
    heads = torch.arange(logits.shape[1], device=logits.device)
    own = (anatomy[:, None] == heads)[:, :, None, None]
    positive = (mask & valid)[:, None]
    counted = torch.where(own, valid[:, None], positive)
    terms = F.binary_cross_entropy_with_logits(
        logits, (own & positive).to(logits.dtype), counted.to(logits.dtype), reduction="sum"
    )
    count = counted.sum().to(logits.dtype)
    return terms / (average(count) if average else count).clamp(min=1)


def map_kl(student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """KL(teacher || student) in nats between the spatial distributions of each map, float (B, A).

        p = softmax over the valid positions k of z[b, i, k] / T;   KL[b, i] = sum_k p_T log(p_T / p_S)

    Args:
        student: float (B, A, H, W).
        teacher: float (B, A, H, W); no gradient flows to it.
        temperature: T.
        valid: bool (B, H, W); None counts every pixel.

    Reference: Maack et al. 2024, equation (2).
    """
    student, teacher = student / temperature, teacher.detach() / temperature
    if valid is not None:
        student = student.masked_fill(~valid[:, None], -torch.inf)
        teacher = teacher.masked_fill(~valid[:, None], -torch.inf)
    log_p_student = F.log_softmax(student.flatten(2), -1)
    log_p_teacher = F.log_softmax(teacher.flatten(2), -1)
    difference = log_p_teacher - log_p_student
    if valid is not None:
        difference = difference.masked_fill(~valid.flatten(1)[:, None], 0)
    return (log_p_teacher.exp() * difference).sum(-1)


def channelwise_kl(student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """The distillation term of stage 2: T^2 / (B A) times the sum of `map_kl` over samples and anatomies, a scalar.

    Reference: the scaling is that of Shu et al. 2021's public code, which the paper follows.
    """
    return temperature**2 * map_kl(student, teacher, temperature, valid).mean()


def combine(cross_entropy: Tensor, kl: Tensor, weight: float, how: str) -> Tensor:
    """The objective of stage 2.

    "sum" is cross_entropy + weight * kl, as in Shu et al. 2021. "product" is cross_entropy * weight * kl, equation (3) of
    Maack et al. 2024 as printed: its cross-entropy gradient vanishes as the KL does, while a spatial softmax is blind to a
    constant shift of the logits, so that nothing would place the threshold; the sum is therefore the default.
    """
    return cross_entropy + weight * kl if how == "sum" else cross_entropy * weight * kl
