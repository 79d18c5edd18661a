"""Random batches on which the losses are compared with their formulas written as loops."""

import torch
from torch import Tensor


def example(shape: tuple[int, int, int, int], warped: bool) -> dict:
    """Random logits of student and teacher in float64, masks, annotated anatomies and, if warped, which pixels count."""
    batch, anatomies, height, width = shape
    drawn = torch.Generator().manual_seed(sum(shape))
    pixels = (batch, height, width)
    valid = torch.rand(pixels, generator=drawn) < 0.6
    valid[:, 0, 0] = True
    return {
        "student": (3 * torch.randn(shape, generator=drawn, dtype=torch.float64)).requires_grad_(),
        "teacher": 4 * torch.randn(shape, generator=drawn, dtype=torch.float64),
        "mask": torch.rand(pixels, generator=drawn) < 0.4,
        "anatomy": torch.randint(0, anatomies, (batch,), generator=drawn),
        "valid": valid if warped else None,
    }


def positions(valid: Tensor | None, sample: int, height: int, width: int) -> list[tuple[int, int]]:
    every = [(y, x) for y in range(height) for x in range(width)]
    return every if valid is None else [(y, x) for y, x in every if valid[sample, y, x]]


def gradient(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at)[0]
