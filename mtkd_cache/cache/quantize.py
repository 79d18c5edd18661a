"""Logits <-> integers with a declared error."""

import math

import torch
from torch import Tensor

from mtkd_cache.errors import MtkdError

DTYPE = torch.int16
FILL = -(2**15)  # what a reader finds where nothing was written; no logit is ever stored as this


def check_step(step: float) -> None:
    """Raises MtkdError unless the step is a power of two, for which the arithmetic is exact in float32."""
    if not (step > 0 and math.isfinite(step) and math.frexp(step)[0] == 0.5):
        raise MtkdError(
            f"step {step}: the quantization step must be a power of two such as 0.25, so that its error bound is exact."
        )


def quantize(logits: Tensor, step: float) -> Tensor:
    """The nearest multiples of the step, as int16 of the same shape: |step * q - logit| <= step / 2 for every logit.

    Raises MtkdError for NaN, infinity, and a logit too large for 16 bits (8191 at step 1/4).
    """
    scaled = logits.double() / step
    if not torch.isfinite(scaled).all():
        raise MtkdError("a teacher's logits are not finite. Train that teacher again, or build in full precision.")
    values = scaled.round()
    if values.abs().max() >= -FILL:
        raise MtkdError(f"a logit of {logits.abs().max():.4g} does not fit 16 bits at step {step}. Choose a larger --step.")
    return values.to(DTYPE)


def dequantize(values: Tensor, step: float) -> Tensor:
    """float32 logits of stored integers."""
    return values.float() * step
