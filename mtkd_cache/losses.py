"""The objective of both stages as pure functions of tensors.

B samples, A anatomies (heads), H x W pixels. `valid` marks the pixels that show the sample (`mtkd_cache.data.augment.inside`).
Logits may have any floating type: the loss is computed in float32 at least, and the gradient has the logits' type. Masks are
bool, or numbers that are 0 or 1.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtkd_cache.errors import MtkdError

OUTSIDE = -1e30  # replaces the scaled logit of a pixel that does not count


def exclusive_cross_entropy(
    logits: Tensor, mask: Tensor, anatomy: Tensor, valid: Tensor | None = None, average: Callable[[Tensor], Tensor] | None = None
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
        average: averages a scalar over the processes that share a batch, so that the mean of their losses is the loss of the
            whole batch; None for a single process.

    Returns:
        A scalar.

    Raises:
        MtkdError: a mask of another shape or with other values.

    Reference: Maack et al. 2024, section 2; the single mean is that of Kolbinger et al. 2023's public code.
    """
    mask = _as_bool("mask", mask, logits)
    valid = torch.ones_like(mask) if valid is None else _as_bool("valid", valid, logits)
    with torch.no_grad():
        positive = mask & valid
        gradient = _empty_gradient(logits)
        count = (valid.sum() + (logits.shape[1] - 1) * positive.sum()).to(gradient.dtype)
        count = (average(count) if average else count).clamp(min=1)
        total = gradient.new_zeros(())
        samples = zip(map(_precise, logits), gradient, valid, positive, anatomy[:, None], strict=True)
        for sample, slope, inside, truth, own in samples:
            own_logits = sample.index_select(0, own)
            own_terms = (F.softplus(own_logits) - own_logits * truth) * inside
            as_negative = F.softplus(sample).mul_(truth).sum((1, 2)).index_fill_(0, own, 0)
            total += own_terms.sum() + as_negative.sum()
            torch.sigmoid(sample, out=slope).mul_(truth)
            slope.index_copy_(0, own, (torch.sigmoid(own_logits) - truth.to(sample.dtype)) * inside)
        gradient /= count
        value = total / count
    loss: Tensor = _WithGradient.apply(logits, value, gradient)
    return loss


def map_kl(student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """KL(teacher || student) in nats between the spatial distributions of each map, float (B, A).

        p = softmax over the valid positions k of z[b, i, k] / T;   KL[b, i] = sum_k p_T log(p_T / p_S)

    Args:
        student: float (B, A, H, W).
        teacher: float (B, A, H, W); no gradient flows to it.
        temperature: T.
        valid: bool or 0 and 1 (B, H, W); None counts every pixel.

    Reference: Maack et al. 2024, equation (2).
    """
    student, teacher = _precise(student) / temperature, _precise(teacher.detach()) / temperature
    if valid is not None:
        valid = _as_bool("valid", valid, student)
        student = student.masked_fill(~valid[:, None], -torch.inf)
        teacher = teacher.masked_fill(~valid[:, None], -torch.inf)
    log_p_student = F.log_softmax(student.flatten(2), -1)
    log_p_teacher = F.log_softmax(teacher.flatten(2), -1)
    difference = log_p_teacher - log_p_student
    if valid is not None:
        difference = difference.masked_fill(~valid.flatten(1)[:, None], 0)
    return (log_p_teacher.exp() * difference).sum(-1)


def channelwise_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    valid: Tensor | None = None,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The distillation term of stage 2: T^2 / (B A) times the sum of `map_kl` over samples and anatomies, a scalar.

    Args:
        student: float (B, A, H, W).
        teacher: float (B, A, H, W); no gradient flows to it.
        temperature: T, of the softmax over the pixels of a map.
        valid: bool or 0 and 1 (B, H, W), the pixels that count; None counts every pixel.
        average: see `exclusive_cross_entropy`; B is then the mean of the processes' batches, which need not be equally large.

    Returns:
        A scalar in nats.

    Raises:
        MtkdError: `valid` of another shape or with other values.

    Reference: Maack et al. 2024, equation (2); the scaling is that of Shu et al. 2021's public code, which the paper follows.
    """
    valid = None if valid is None else _as_bool("valid", valid, student)
    with torch.no_grad():
        gradient = _empty_gradient(student)
        total = gradient.new_zeros(())
        for index, slope in enumerate(gradient):
            outside = None if valid is None else ~valid[index].flatten()
            log_p_student = _log_softmax(student[index], temperature, outside)
            log_p_teacher = _log_softmax(teacher[index], temperature, outside)
            p_teacher = log_p_teacher.exp()
            total += log_p_teacher.sub_(log_p_student).mul_(p_teacher).sum()
            slope.copy_(log_p_student.exp_().sub_(p_teacher).view_as(slope))
        maps: Tensor | int = student.shape[0] * student.shape[1]
        if average:
            maps = average(gradient.new_tensor(maps))
        gradient *= temperature / maps
        value = temperature**2 * total / maps
    loss: Tensor = _WithGradient.apply(student, value, gradient)
    return loss


def _log_softmax(logits: Tensor, temperature: float, outside: Tensor | None) -> Tensor:
    """Logits (A, H, W) of one sample -> log p (A, H * W).

    Where `outside`, bool (H * W), p is 0 and log p finite, so that p log p is 0.
    """
    scaled = _precise(logits.flatten(1)) / temperature
    if outside is not None:
        scaled.masked_fill_(outside, OUTSIDE)
    return F.log_softmax(scaled, -1)


def _precise(logits: Tensor) -> Tensor:
    """Logits in float32 at least, which sums over the pixels of an image need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _empty_gradient(logits: Tensor) -> Tensor:
    return torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))


def _as_bool(name: str, mask: Tensor, logits: Tensor) -> Tensor:
    if mask.shape != (logits.shape[0], *logits.shape[2:]):
        raise MtkdError(f"{name} has shape {tuple(mask.shape)}, the logits {tuple(logits.shape)}. Give it as (B, H, W).")
    if mask.dtype == torch.bool:
        return mask
    if not ((mask == 0) | (mask == 1)).all():
        raise MtkdError(f"{name} has other values than 0 and 1. Make it bool, for probabilities as {name} > 0.5.")
    return mask.bool()


class _WithGradient(torch.autograd.Function):
    """A scalar with its precomputed gradient with respect to the logits.

    Both losses are computed sample by sample: a step then needs memory for their gradient and a few maps of one sample, where
    autograd would keep several tensors of the logits' size.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.saved_tensors[0] * outer).to(ctx.dtype), None, None


def distillation_objective(cross_entropy: Tensor, kl: Tensor, weight: float, combine: str) -> Tensor:
    """The objective of stage 2, a scalar.

    "sum" is cross_entropy + weight * kl, as in Shu et al. 2021. "product" is cross_entropy * weight * kl, equation (3) of
    Maack et al. 2024 as printed. Its cross-entropy gradient vanishes with the KL, and a spatial softmax is invariant to a
    constant shift of the logits, so that nothing then determines the threshold; the recipes therefore use the sum.
    """
    return cross_entropy + weight * kl if combine == "sum" else cross_entropy * weight * kl
