"""A distillation term that sees where the teacher's logits lie, which a softmax over positions does not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_cache.losses.by_head import Average, as_bool, number_of_samples, sum_over_samples


def sigmoid_by_head(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    valid: Tensor | None = None,
    average: Average | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy between the sigmoids of teacher and student, by head, averaged over all valid pixels of the batch.

        p = 1 / (1 + exp(-z / T));   L[i] = -T^2 / n sum_{b, k valid} [ p_T log p_S + (1 - p_T) log(1 - p_S) ]

    with n the batch's number of valid pixels. Less the teacher's own entropy, it is T^2 times the binary KL divergence: the
    gradients of the two are the same.

    Args, Raises: see `mtkd_cache.losses.kl_by_head`. Returns float (A,), in nats.

    Reference: Hinton et al. 2015, section 2, for two classes a pixel.
    """

    def cross_entropy(student: Tensor, teacher: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        student, p_teacher = student / temperature, torch.sigmoid_(teacher / temperature)
        values = F.softplus(student).addcmul_(p_teacher, student, value=-1)
        slopes = student.sigmoid_().sub_(p_teacher)
        if inside is not None:
            values, slopes = values.mul_(inside), slopes.mul_(inside)
        return temperature * values.sum(1), slopes

    sums = sum_over_samples(student, teacher, valid, cross_entropy, kept)
    if valid is None:
        pixels = number_of_samples(student, average) * student[0, 0].numel()
    else:
        pixels = as_bool("valid", valid, student).sum().to(sums.dtype)
        pixels = (average(pixels) if average else pixels).clamp(min=1)
    return sums * (temperature / pixels)
