"""The quantizer's declared error, and its refusals."""

import pytest
import torch

from mtkd_cache.cache.quantize import DTYPE, FILL, check_step, dequantize, quantize
from mtkd_cache.errors import MtkdError

STEPS = [2.0**-6, 0.125, 0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("step", STEPS)
def test_the_bound_holds_exactly(step):
    """In float64, without a tolerance, on random logits and on the worst ones: half-way between two levels and beside it."""
    random = torch.Generator().manual_seed(0)
    logits = torch.cat([scale * torch.randn(20000, generator=random) for scale in (0.01, 1.0, 30.0)])
    half = (torch.arange(-300, 300) + 0.5) * step
    beside = torch.cat([half, torch.nextafter(half, half + 1), torch.nextafter(half, half - 1)])
    logits = torch.cat([logits, beside])
    integers = quantize(logits, step)
    assert integers.dtype == DTYPE
    assert integers.shape == logits.shape
    error = (dequantize(integers, step).double() - logits.double()).abs()
    assert error.max() <= step / 2
    assert error.max() == step / 2  # the half-way ones reach it


def test_a_level_comes_back_as_it_was():
    levels = torch.arange(-32767, 32768, dtype=torch.int16)
    assert torch.equal(quantize(dequantize(levels, 0.25), 0.25), levels)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_error(bad):
    logits = torch.zeros(2, 3)
    logits[1, 2] = bad
    with pytest.raises(MtkdError, match="not finite"):
        quantize(logits, 0.25)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_does_not_fit_is_an_error_and_never_wraps(sign):
    fits = torch.tensor([sign * 32767 * 0.25])
    assert dequantize(quantize(fits, 0.25), 0.25) == fits
    for too_large in (32767.5 * 0.25, 32768 * 0.25, 1e6, 1e38):
        with pytest.raises(MtkdError, match=r"does not fit 16 bits at step 0\.25.*larger --step"):
            quantize(torch.tensor([0.0, sign * too_large]), 0.25)


def test_no_logit_is_stored_as_the_fill_value():
    assert torch.iinfo(DTYPE).min == FILL
    assert quantize(torch.tensor([-32767.4 * 0.25]), 0.25) == FILL + 1


@pytest.mark.parametrize("step", [0.3, 0.1, 3.0, 0.0, -0.25, float("nan"), float("inf")])
def test_a_step_that_is_no_power_of_two_is_refused(step):
    with pytest.raises(MtkdError, match=r"power of two such as 0\.25"):
        check_step(step)


@pytest.mark.parametrize("step", STEPS)
def test_a_power_of_two_is_taken_and_its_multiples_are_kept_exactly(step):
    check_step(step)
    logits = step * torch.arange(-100, 101)
    assert torch.equal(dequantize(quantize(logits, step), step), logits)
