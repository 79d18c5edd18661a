"""What all losses share: the checks of masks, and values by head that carry a gradient computed in advance.

A loss is computed sample by sample together with its gradient: a step then needs memory for the gradient and a few maps of one
sample, where autograd would keep several tensors of the logits' size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtkd_cache.errors import MtkdError

Average = Callable[[Tensor], Tensor]
MapTerm = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
MapFormula = Callable[[Tensor, Tensor, Tensor], Tensor]


def sum_over_samples(student: Tensor, teacher: Tensor, valid: Tensor | None, term: MapTerm, kept: Tensor | None = None) -> Tensor:
    """A term of every map, added up over the samples: float (A,), differentiable in the student's logits.

    Args:
        student: float (B, A, H, W).
        teacher: float (B, A, H, W); no gradient flows to it.
        valid: bool or 0 and 1 (B, H, W), the pixels that count; None counts every pixel.
        term: for one sample, from the logits of both, float32 or float64 (A, H * W), and `valid`, bool (H * W) or None: the value
            of each map, float (A,), and its gradient (A, H * W).
        kept: bool (B, A), the maps that are added up; None adds up all.

    Raises:
        MtkdError: student and teacher of different shapes, `valid` of another shape or with other values.
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise MtkdError(
            f"the student's logits have shape {tuple(student.shape)}, the teachers' {tuple(teacher.shape)}. "
            "Give both as (B, A, H, W); LogitCache.warp brings the teachers' to the images' size."
        )
    valid = None if valid is None else as_bool("valid", valid, student)
    with torch.no_grad():
        gradient = empty_gradient(student)
        total = gradient.new_zeros(student.shape[1])
        for index, slope in enumerate(gradient):
            inside = None if valid is None else valid[index].flatten()
            values, slopes = term(precise(student[index].flatten(1)), precise(teacher[index].flatten(1)), inside)
            if kept is not None:
                values, slopes = values * kept[index], slopes * kept[index, :, None]
            total += values
            slope.copy_(slopes.view_as(slope))
    return with_gradient(student, total, gradient)


def differentiated(formula: MapFormula) -> MapTerm:
    """The `term` of `sum_over_samples` from the value alone: `inside` is then never None, and autograd gives the gradient."""

    def term(student: Tensor, teacher: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = torch.ones_like(student[0], dtype=torch.bool) if inside is None else inside
        with torch.enable_grad():
            student = student.detach().requires_grad_()
            values = formula(student, teacher, inside)
            (slopes,) = torch.autograd.grad(values.sum(), student)
        return values.detach(), slopes

    return term


def number_of_samples(student: Tensor, average: Average | None) -> Tensor | int:
    """B, the mean of the processes' batches where several share a batch."""
    return average(torch.tensor(float(len(student)), device=student.device)) if average else len(student)


def at_least_one(counts: Tensor) -> Tensor:
    """Numbers of terms as divisors of their sums: 1 where there is none."""
    return torch.where(counts > 0, counts, 1)


def precise(logits: Tensor) -> Tensor:
    """Logits in float32 at least, which sums over the pixels of an image need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def empty_gradient(logits: Tensor) -> Tensor:
    return torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))


def as_bool(name: str, mask: Tensor, logits: Tensor) -> Tensor:
    if mask.shape != (logits.shape[0], *logits.shape[2:]):
        raise MtkdError(f"{name} has shape {tuple(mask.shape)}, the logits {tuple(logits.shape)}. Give it as (B, H, W).")
    if mask.dtype == torch.bool:
        return mask
    if not ((mask == 0) | (mask == 1)).all():
        raise MtkdError(f"{name} has other values than 0 and 1. Make it bool, for probabilities as {name} > 0.5.")
    return mask.bool()


def with_gradient(logits: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
    """`values`, float (A,), whose gradients with respect to the logits of their own heads are `gradient`, (B, A, H, W)."""
    by_head: Tensor = _WithGradient.apply(logits, values, gradient)
    return by_head


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.saved_tensors[0] * outer[:, None, None]).to(ctx.dtype), None, None
