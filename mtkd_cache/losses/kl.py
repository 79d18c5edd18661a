"""The paper's distillation term: KL divergence between the spatial distributions of teacher and student."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_cache.errors import MtkdError
from mtkd_cache.losses.by_head import Average, as_bool, number_of_samples, precise, sum_over_samples

OUTSIDE = -1e30  # replaces the scaled logit of a pixel that does not count


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
    student, teacher = precise(student) / temperature, precise(teacher.detach()) / temperature
    if valid is not None:
        valid = as_bool("valid", valid, student)
        student = student.masked_fill(~valid[:, None], -torch.inf)
        teacher = teacher.masked_fill(~valid[:, None], -torch.inf)
    log_p_student = F.log_softmax(student.flatten(2), -1)
    log_p_teacher = F.log_softmax(teacher.flatten(2), -1)
    difference = log_p_teacher - log_p_student
    if valid is not None:
        difference = difference.masked_fill(~valid.flatten(1)[:, None], 0)
    return (log_p_teacher.exp() * difference).sum(-1)


def channelwise_kl(
    student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None = None, average: Average | None = None
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
        MtkdError: logits of different shapes, `valid` of another shape or with other values, a temperature that is not positive.

    Reference: Maack et al. 2024, equation (2); the scaling is that of Shu et al. 2021's public code, which the paper follows.
    """
    if not temperature > 0:
        raise MtkdError(f"the temperature is {temperature}. Give one above 0; the paper's is 4.")
    return kl_by_head(student, teacher, temperature, valid, average).mean()


def kl_by_head(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    valid: Tensor | None = None,
    average: Average | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """KL_i of equation (3): T^2 / B times the sum of `map_kl` over the samples, float (A,).

    Args, Raises: see `channelwise_kl`. kept: bool (B, A), the maps that are added up; the others teach nothing, and those that
    are kept weigh as they do without them. None adds up all.
    """

    def kl(student: Tensor, teacher: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        log_p_student = log_softmax(student / temperature, inside)
        log_p_teacher = log_softmax(teacher / temperature, inside)
        p_teacher = log_p_teacher.exp()
        values = log_p_teacher.sub_(log_p_student).mul_(p_teacher).sum(1)
        return temperature * values, log_p_student.exp_().sub_(p_teacher)

    return sum_over_samples(student, teacher, valid, kl, kept) * (temperature / number_of_samples(student, average))


def log_softmax(maps: Tensor, inside: Tensor | None) -> Tensor:
    """Maps (A, H * W), overwritten where they do not count -> log p. There p is 0 and log p finite, so that p log p is 0."""
    if inside is not None:
        maps.masked_fill_(~inside, OUTSIDE)
    return F.log_softmax(maps, -1)
