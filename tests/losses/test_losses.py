"""The objective against the paper's formulas written as loops over samples, anatomies and pixels."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from examples import example, gradient, positions
from torch import Tensor

from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import (
    TERMS,
    channelwise_kl,
    cross_entropy_by_head,
    distillation_objective,
    exclusive_cross_entropy,
    head_mean_cross_entropy,
    kl_by_head,
    map_kl,
)

DRAW = random.Random(0)
SHAPES = [(DRAW.randint(1, 3), anatomies, DRAW.randint(2, 6), DRAW.randint(2, 6)) for anatomies in range(1, 13)]  # B, A, H, W


def naive_terms(
    logits: Tensor, mask: Tensor, anatomy: Tensor, valid: Tensor | None, counted: Sequence[int] | None = None
) -> list[Tensor]:
    """Equation (1) for the annotated anatomy's head; the mask's pixels, as negatives, for every other. counted: these heads."""
    terms = []
    for b, heads in enumerate(logits):
        for i in range(len(heads)) if counted is None else counted:
            for y, x in positions(valid, b, *mask.shape[1:]):
                p = 1 / (1 + torch.exp(-heads[i, y, x]))
                if i == anatomy[b]:
                    terms.append(-torch.log(p) if mask[b, y, x] else -torch.log(1 - p))
                elif mask[b, y, x]:
                    terms.append(-torch.log(1 - p))
    return terms


def naive_cross_entropy(logits: Tensor, mask: Tensor, anatomy: Tensor, valid: Tensor | None) -> Tensor:
    """One mean over the terms of all heads."""
    terms = naive_terms(logits, mask, anatomy, valid)
    return torch.stack(terms).sum() / len(terms)


def naive_kl(student: Tensor, teacher: Tensor, temperature: float, valid: Tensor | None) -> Tensor:
    """Equation (2): sum_k p_T log(p_T / p_S), p the softmax of z / T over the positions, for each sample and anatomy."""
    rows = []
    for b in range(student.shape[0]):
        for i in range(student.shape[1]):
            places = positions(valid, b, *student.shape[2:])
            at = [torch.stack([torch.exp(maps[b, i, y, x] / temperature) for y, x in places]) for maps in (student, teacher)]
            p_student, p_teacher = (values / values.sum() for values in at)
            rows.append((p_teacher * torch.log(p_teacher / p_student)).sum())
    return torch.stack(rows).reshape(student.shape[:2])


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_the_naive_loop(shape, warped):
    e = example(shape, warped)
    ours = exclusive_cross_entropy(e["student"], e["mask"], e["anatomy"], e["valid"])
    naive = naive_cross_entropy(e["student"], e["mask"], e["anatomy"], e["valid"])
    torch.testing.assert_close(ours, naive, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(ours, e["student"]), gradient(naive, e["student"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_is_the_naive_loop(shape, temperature, warped):
    e = example(shape, warped)
    ours = map_kl(e["student"], e["teacher"], temperature, e["valid"])
    naive = naive_kl(e["student"], e["teacher"], temperature, e["valid"])
    torch.testing.assert_close(ours, naive, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(ours.sum(), e["student"]), gradient(naive.sum(), e["student"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_distillation_is_scaled_as_cwd_does(shape, warped):
    e = example(shape, warped)
    batch, anatomies, *_ = shape
    ours = channelwise_kl(e["student"], e["teacher"], 4.0, e["valid"])
    naive = 4.0**2 * naive_kl(e["student"], e["teacher"], 4.0, e["valid"]).sum() / (batch * anatomies)
    torch.testing.assert_close(ours, naive, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(ours, e["student"]), gradient(naive, e["student"]), atol=1e-6, rtol=0)


def test_the_gradient_hardly_shrinks_as_the_temperature_grows():
    """What T^2 is for: for high T the gradient of T^2 KL(T) tends to a limit that does not depend on T."""
    e = example((2, 3, 4, 4), False)
    high, higher = (gradient(channelwise_kl(e["student"], e["teacher"], t, None), e["student"]) for t in (1e3, 1e4))
    torch.testing.assert_close(high, higher, rtol=0.05, atol=1e-4)
    assert higher.abs().max() > 1e-3


def test_objectives():
    assert distillation_objective(torch.tensor(2.0), torch.tensor(5.0), 3.0, "sum") == 17
    assert distillation_objective(torch.tensor(2.0), torch.tensor(5.0), 3.0, "product") == 30
    assert distillation_objective(torch.tensor([2.0, 1.0]), torch.tensor([5.0, 7.0]), 3.0, "printed") == 2 * 3 * 5 + 1 * 3 * 7


@pytest.mark.parametrize("shape", SHAPES)
def test_the_printed_objective_is_equation_3(shape):
    """sum_i CE_i * lambda * KL_i, CE_i and KL_i of head i over the batch."""
    e = example(shape, True)
    student, anatomies = e["student"], range(shape[1])
    cross_entropy = cross_entropy_by_head(student, e["mask"], e["anatomy"], e["valid"])
    ours = distillation_objective(cross_entropy, kl_by_head(student, e["teacher"], 4.0, e["valid"]), 3.0, "printed")
    kl = 4.0**2 * naive_kl(student, e["teacher"], 4.0, e["valid"]).mean(0)
    heads = [naive_terms(student, e["mask"], e["anatomy"], e["valid"], [i]) for i in anatomies]
    naive = sum(sum(terms) / len(terms) * 3.0 * kl[i] for i, terms in enumerate(heads) if terms)
    torch.testing.assert_close(ours, naive, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(ours, student), gradient(naive, student), atol=1e-6, rtol=0)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("shape", SHAPES[::3])
def test_the_mean_of_the_heads_leaves_out_those_in_which_nothing_counts(shape, empty):
    e = example(shape, True)
    if empty:  # then the other heads have no pixel
        e["mask"][:] = False
    ours = head_mean_cross_entropy(e["student"], e["mask"], e["anatomy"], e["valid"])
    heads = [naive_terms(e["student"], e["mask"], e["anatomy"], e["valid"], [i]) for i in range(shape[1])]
    means = [sum(terms) / len(terms) for terms in heads if terms]
    naive = sum(means) / len(means)
    torch.testing.assert_close(ours, naive, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(ours, e["student"]), gradient(naive, e["student"]), atol=1e-6, rtol=0)


def test_a_head_in_which_nothing_counts_has_no_cross_entropy():
    e = example((2, 3, 4, 4), False)
    by_head = cross_entropy_by_head(e["student"], torch.zeros_like(e["mask"]), torch.tensor([1, 1]))
    assert (by_head > 0).tolist() == [False, True, False]


def test_the_teacher_gets_no_gradient():
    e = example((2, 2, 3, 3), True)
    teacher = e["teacher"].requires_grad_()
    channelwise_kl(e["student"], teacher, 4.0, e["valid"]).backward()
    assert teacher.grad is None
    assert e["student"].grad.abs().sum() > 0


def test_kl_is_blind_to_a_constant_and_zero_for_the_teacher_itself():
    e = example((2, 3, 4, 5), True)
    shifted = e["teacher"] + torch.randn(2, 3, 1, 1, dtype=torch.float64)
    assert map_kl(shifted, e["teacher"], 4.0, e["valid"]).abs().max() < 1e-12
    assert (map_kl(e["student"], e["teacher"], 4.0, e["valid"]) > 0).all()


def test_pixels_that_do_not_count_change_nothing_and_get_no_gradient():
    e = example((3, 4, 5, 5), True)
    hidden = ~e["valid"][:, None].expand_as(e["teacher"])
    other_student = torch.where(hidden, e["student"].detach() + 1e3, e["student"].detach()).requires_grad_()
    other_teacher = torch.where(hidden, torch.full_like(e["teacher"], -77.0), e["teacher"])
    other_mask = torch.where(e["valid"], e["mask"], ~e["mask"])
    for expected, other in (
        (
            exclusive_cross_entropy(e["student"], e["mask"], e["anatomy"], e["valid"]),
            exclusive_cross_entropy(other_student, other_mask, e["anatomy"], e["valid"]),
        ),
        (
            channelwise_kl(e["student"], e["teacher"], 4.0, e["valid"]),
            channelwise_kl(other_student, other_teacher, 4.0, e["valid"]),
        ),
    ):
        torch.testing.assert_close(expected, other, atol=1e-12, rtol=0)
        assert gradient(other, other_student)[hidden].abs().max() == 0


def test_every_pixel_valid_is_the_same_as_none():
    e = example((2, 3, 4, 4), False)
    every = torch.ones_like(e["mask"])
    assert exclusive_cross_entropy(e["student"], e["mask"], e["anatomy"], every) == exclusive_cross_entropy(
        e["student"], e["mask"], e["anatomy"]
    )
    assert channelwise_kl(e["student"], e["teacher"], 4.0, every) == channelwise_kl(e["student"], e["teacher"], 4.0)


def test_an_empty_mask_teaches_its_own_head_alone():
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    loss = exclusive_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.bool), torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(2))
    used = gradient(loss, logits)[0].abs().sum((1, 2)) > 0
    assert used.tolist() == [False, True, False]


def test_a_full_mask_pushes_every_other_head_down():
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    loss = exclusive_cross_entropy(logits, torch.ones(1, 4, 4, dtype=torch.bool), torch.tensor([1]))
    assert torch.sign(gradient(loss, logits)[0, :, 0, 0]).tolist() == [1, -1, 1]


def test_no_pixel_at_all_is_no_loss_rather_than_nan():
    logits = torch.randn(1, 2, 3, 3)
    nothing = torch.zeros(1, 3, 3, dtype=torch.bool)
    assert exclusive_cross_entropy(logits, nothing, torch.tensor([0]), nothing) == 0


def test_huge_logits_in_float32_stay_finite():
    e = example((2, 3, 4, 4), True)
    student = (1e4 * e["student"].detach().float()).requires_grad_()
    teacher = 1e3 * e["teacher"].float()
    loss = exclusive_cross_entropy(student, e["mask"], e["anatomy"], e["valid"]) + channelwise_kl(
        student, teacher, 4.0, e["valid"]
    )
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, student)).all()


LOSSES = {
    "cross-entropy": lambda e, student, cast: exclusive_cross_entropy(student, cast(e["mask"]), e["anatomy"], cast(e["valid"])),
    "kl of a batch": lambda e, student, cast: channelwise_kl(student, e["teacher"].to(student.dtype), 4.0, cast(e["valid"])),
    **{
        name: lambda e, student, cast, term=term: term(student, e["teacher"].to(student.dtype), 2.0, cast(e["valid"])).sum()
        for name, term in TERMS.items()
    },
    "kl of maps": lambda e, student, cast: map_kl(student, e["teacher"].to(student.dtype), 4.0, cast(e["valid"])).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_computed_with_in_float32(loss, dtype):
    e = example((2, 3, 64, 80), True)
    coarse = e["student"].detach().to(dtype).requires_grad_()
    e["teacher"] = e["teacher"].to(dtype)
    fine = coarse.detach().float().requires_grad_()
    ours, exact = (LOSSES[loss](e, student, lambda mask: mask) for student in (coarse, fine))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact)
    for scale in (1.0, 2.0**16):  # the latter as a scaler of losses does: nothing is lost before it is applied
        slope = gradient(scale * LOSSES[loss](e, coarse, lambda mask: mask), coarse)
        assert slope.dtype == dtype
        expected = gradient(scale * LOSSES[loss](e, fine, lambda mask: mask), fine)
        assert torch.equal(slope, expected.to(dtype))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
def test_masks_of_0_and_1_are_as_good_as_bool(loss, dtype):
    e = example((2, 3, 5, 6), True)
    assert LOSSES[loss](e, e["student"], lambda mask: mask.to(dtype)) == LOSSES[loss](e, e["student"], lambda mask: mask)


@pytest.mark.parametrize("loss", LOSSES)
def test_other_masks_are_refused(loss):
    e = example((2, 3, 5, 6), True)
    for wrong, message in (
        (lambda mask: mask * 255, "has other values than 0 and 1"),
        (lambda mask: 0.5 * mask, "has other values than 0 and 1"),
        (lambda mask: mask[:, None], r"has shape \(2, 1, 5, 6\), the logits \(2, 3, 5, 6\). Give it as \(B, H, W\)"),
        (lambda mask: mask[:, :4], r"has shape \(2, 4, 6\)"),
    ):
        with pytest.raises(MtkdError, match=message):
            LOSSES[loss](e, e["student"], wrong)
