"""Each distillation term against its formula written as loops over samples, anatomies and pixels."""

import math

import pytest
import torch
from examples import example, gradient, positions
from torch import Tensor

from mtkd_cache.losses import TERMS
from mtkd_cache.recipe_limits import CHOICES
from mtkd_cache.recipe_limits import TERMS as NAMES

SHAPES = [(1, 1, 3, 2), (2, 3, 4, 5), (3, 2, 2, 6)]  # B, A, H, W


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def pixels(e: dict, b: int, i: int) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of student and teacher at the positions that count, of one map."""
    places = positions(e["valid"], b, *e["mask"].shape[1:])
    return [e["student"][b, i, y, x] for y, x in places], [e["teacher"][b, i, y, x] for y, x in places]


def kl_of(student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
    """T^2 sum_k p_T log(p_T / p_S), p the softmax of z / T over the positions."""
    at = [[torch.exp(z / temperature) for z in logits] for logits in (student, teacher)]
    p, q = ([value / sum(values) for value in values] for values in at)
    return temperature**2 * sum(t * torch.log(t / s) for s, t in zip(p, q, strict=True))


def naive_kl(e: dict, i: int, temperature: float) -> Tensor:
    batch = range(len(e["student"]))
    return sum(kl_of(*pixels(e, b, i), temperature) for b in batch) / len(batch)


def naive_sigmoid(e: dict, i: int, temperature: float) -> Tensor:
    """T^2 times the cross-entropy of two classes a pixel, averaged over all pixels of the batch."""
    terms = []
    for b in range(len(e["student"])):
        for s, t in zip(*pixels(e, b, i), strict=True):
            p, q = sigmoid(s / temperature), sigmoid(t / temperature)
            terms.append(-(q * torch.log(p) + (1 - q) * torch.log(1 - p)))
    return temperature**2 * sum(terms) / len(terms)


def naive_pearson(e: dict, i: int, temperature: float) -> Tensor:
    """1 - covariance / (standard deviation * standard deviation), averaged over the samples."""
    distances = []
    for b in range(len(e["student"])):
        p, q = ([sigmoid(z / temperature) for z in logits] for logits in pixels(e, b, i))
        mean_p, mean_q = sum(p) / len(p), sum(q) / len(q)
        covariance = sum((s - mean_p) * (t - mean_q) for s, t in zip(p, q, strict=True))
        spread = sum((s - mean_p) ** 2 for s in p) * sum((t - mean_q) ** 2 for t in q)
        distances.append(1 - covariance / torch.sqrt(spread))
    return sum(distances) / len(distances)


def naive_standardized(e: dict, i: int, temperature: float) -> Tensor:
    """The KL of (z - mean) / standard deviation."""
    rows = []
    for b in range(len(e["student"])):
        standardized = []
        for logits in pixels(e, b, i):
            mean = sum(logits) / len(logits)
            deviation = torch.sqrt(sum((z - mean) ** 2 for z in logits) / (len(logits) - 1))
            standardized.append([(z - mean) / deviation for z in logits])
        rows.append(kl_of(*standardized, temperature))
    return sum(rows) / len(rows)


NAIVE = {"kl": naive_kl, "sigmoid": naive_sigmoid, "pearson": naive_pearson, "standardized": naive_standardized}


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_the_naive_loop(name, shape, temperature, warped):
    e = example(shape, warped)
    if warped:  # two pixels or more, without which there is no deviation
        e["valid"][:, -1, -1] = True
    ours = TERMS[name](e["student"], e["teacher"], temperature, e["valid"], None)
    naive = torch.stack([NAIVE[name](e, i, temperature) for i in range(shape[1])])
    torch.testing.assert_close(ours, naive, atol=1e-6, rtol=0)
    weights = torch.arange(1.0, 1 + shape[1])  # so that a head's gradient is its own
    torch.testing.assert_close(
        gradient((weights * ours).sum(), e["student"]), gradient((weights * naive).sum(), e["student"]), atol=1e-6, rtol=0
    )


def test_the_recipes_terms_are_those_of_the_losses():
    assert list(NAMES) == list(TERMS) == list(NAIVE)
    assert CHOICES["distillation.combine"] == ("sum", "product", "printed")


@pytest.mark.parametrize("name", TERMS)
def test_pixels_that_do_not_count_change_nothing(name):
    e = example((3, 4, 5, 5), True)
    hidden = ~e["valid"][:, None].expand_as(e["teacher"])
    other = torch.where(hidden, e["student"].detach() + 30, e["student"].detach()).requires_grad_()
    teacher = torch.where(hidden, torch.full_like(e["teacher"], -77.0), e["teacher"])
    expected = TERMS[name](e["student"], e["teacher"], 2.0, e["valid"], None)
    torch.testing.assert_close(TERMS[name](other, teacher, 2.0, e["valid"], None), expected, atol=1e-12, rtol=0)
    assert gradient(TERMS[name](other, teacher, 2.0, e["valid"], None).sum(), other)[hidden].abs().max() == 0


@pytest.mark.parametrize("name", TERMS)
def test_only_what_looks_at_each_pixel_sees_a_shift(name):
    e = example((2, 3, 4, 5), True)
    same, shifted = (TERMS[name](e["teacher"] + shift, e["teacher"], 1.0, e["valid"], None) for shift in (0.0, -3.0))
    assert (shifted - same).abs().min() > 0.01 if name in ("sigmoid", "pearson") else (shifted - same).abs().max() < 1e-9


@pytest.mark.parametrize("name", TERMS)
def test_constant_maps_and_no_pixel_at_all_are_finite(name):
    flat = torch.zeros(2, 2, 3, 3, requires_grad=True)
    for teacher, valid in (
        (torch.zeros_like(flat), None),
        (torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 3, dtype=torch.bool)),
    ):
        value = TERMS[name](flat, teacher, 2.0, valid, None)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient(value.sum(), flat)).all()


def test_sigmoids_at_temperature_1_are_torchs_cross_entropy_with_soft_targets():
    e = example((2, 3, 6, 5), False)
    ours = TERMS["sigmoid"](e["student"], e["teacher"], 1.0, None, None).mean()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(e["student"], torch.sigmoid(e["teacher"]))
    assert math.isclose(ours.item(), expected.item(), rel_tol=1e-9)
