"""What is known of unannotated pixels, against naive loops: corrected targets, background in absent heads, maps left out."""

import math

import pytest
import torch
from examples import example, gradient, positions

from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import TERMS, absent_cross_entropy, absent_cross_entropy_by_head, move_to_known

SHAPE = (3, 4, 5, 6)


def absent_in(e: dict) -> torch.Tensor:
    """Half of the anatomies, among them an annotated one."""
    absent = torch.rand(SHAPE[:2], generator=torch.Generator().manual_seed(1)) < 0.5
    absent[0, e["anatomy"][0]] = True
    return absent


@pytest.mark.parametrize("margin", [0.5, 4.0])
def test_targets_are_moved_as_the_naive_loop_does(margin):
    e = example(SHAPE, warped=False)
    absent, teacher = absent_in(e), e["teacher"]
    moved = move_to_known(teacher, e["mask"], e["anatomy"], absent, margin)
    kinds = set()
    for b, i, y, x in torch.cartesian_prod(*map(torch.arange, SHAPE)).tolist():
        z, inside = float(teacher[b, i, y, x]), bool(e["mask"][b, y, x])
        if i == e["anatomy"][b]:
            expected, kind = (max(z, margin), "in") if inside else (min(z, -margin), "out")
        elif inside:
            expected, kind = min(z, -margin), "in another's mask"
        elif absent[b, i]:
            expected, kind = min(z, -margin), "absent"
        else:
            expected, kind = z, "unknown"
        kinds.add((kind, expected == z))
        assert float(moved[b, i, y, x]) == expected
    assert len(kinds) == 9  # each kind moved and left, but the unknown
    assert float((moved - teacher).abs().max()) <= float(teacher.abs().max()) + margin
    assert torch.equal(moved, move_to_known(moved, e["mask"].to(torch.uint8), e["anatomy"], absent, margin))


def test_a_mask_at_the_maps_stride_is_refused():
    e = example(SHAPE, warped=False)
    with pytest.raises(MtkdError, match=r"mask has shape \(3, 3, 3\)"):
        move_to_known(e["teacher"], e["mask"][:, :3, :3], e["anatomy"], absent_in(e), 4.0)


@pytest.mark.parametrize("warped", [False, True])
def test_background_in_absent_heads_is_the_naive_loop(warped):
    e = example(SHAPE, warped)
    absent, student = absent_in(e), e["student"]
    terms: dict[int, list[float]] = {i: [] for i in range(SHAPE[1])}
    slopes = torch.zeros(SHAPE, dtype=torch.float64)
    for b in range(SHAPE[0]):
        for i in range(SHAPE[1]):
            if absent[b, i] and i != e["anatomy"][b]:
                for y, x in positions(e["valid"], b, *SHAPE[2:]):
                    z = float(student[b, i, y, x].detach())
                    terms[i].append(math.log(1 + math.exp(z)))
                    slopes[b, i, y, x] = 1 / (1 + math.exp(-z))
    every = [term for own in terms.values() for term in own]
    value = absent_cross_entropy(student, e["anatomy"], absent, e["valid"])
    assert float(value.detach()) == pytest.approx(sum(every) / len(every))
    torch.testing.assert_close(gradient(value, student), slopes / len(every))
    by_head = absent_cross_entropy_by_head(student, e["anatomy"], absent, e["valid"])
    assert by_head.tolist() == pytest.approx([sum(own) / max(len(own), 1) for own in terms.values()])
    nothing = absent_cross_entropy(student, e["anatomy"], torch.zeros_like(absent), e["valid"])
    assert float(nothing.detach()) == 0 and not gradient(nothing, student).any()


def test_the_mean_over_processes_is_that_of_the_whole_batch():
    e = example(SHAPE, warped=True)
    absent, parts = absent_in(e), (slice(0, 1), slice(1, 3))
    of_parts = [
        absent_cross_entropy_by_head(e["student"][part], e["anatomy"][part], absent[part], e["valid"][part], lambda own: own)
        for part in parts
    ]
    counts = [
        (absent[part] & (torch.arange(4) != e["anatomy"][part, None])).mul(e["valid"][part].sum((1, 2))[:, None]).sum(0)
        for part in parts
    ]
    mean = sum(counts).clamp(min=1) / 2
    averaged = [
        absent_cross_entropy_by_head(e["student"][part], e["anatomy"][part], absent[part], e["valid"][part], lambda own: mean)
        for part in parts
    ]
    whole = absent_cross_entropy_by_head(e["student"], e["anatomy"], absent, e["valid"])
    torch.testing.assert_close(sum(averaged) / 2, whole)
    assert not torch.allclose(sum(of_parts) / 2, whole)


@pytest.mark.parametrize("name", TERMS)
def test_maps_that_are_left_out_teach_nothing_and_the_others_as_before(name):
    e = example(SHAPE, warped=True)
    kept = ~absent_in(e)
    given = e["student"], e["teacher"], 2.0, e["valid"], None
    whole, some = TERMS[name](*given), TERMS[name](*given, kept)
    expected = gradient(whole.sum(), e["student"]) * kept[:, :, None, None]
    torch.testing.assert_close(gradient(some.sum(), e["student"]), expected)
    rest = TERMS[name](*given, ~kept)
    torch.testing.assert_close(some + rest, whole)
    assert (some != whole).any()
    assert torch.equal(TERMS[name](*given, torch.ones_like(kept)), whole)
