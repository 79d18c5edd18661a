"""Views that are recorded fill the ranges evenly: a Sobol sequence for each sample, each scrambled in its own way."""

import numpy as np
import pytest
import torch

from mtkd_cache.data.augment import NUMBERS, draw_views
from mtkd_cache.data.sobol import BITS, sobol_point
from mtkd_cache.recipe import load_recipe

HASHES = [f"{number:064x}" for number in np.random.default_rng(0).integers(0, 2**62, 300).astype(object) * 2**190]
SIZE = (64, 48)


def points(sha256: str, count: int) -> np.ndarray:
    return np.stack([sobol_point(sha256, number, NUMBERS) for number in range(count)])


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_every_interval_has_a_point_in_each_dimension(count):
    for sha256 in HASHES[:3]:
        drawn = points(sha256, count)
        assert drawn.min() >= 0 and drawn.max() < 1
        assert (np.sort((drawn * count).astype(int), axis=0) == np.arange(count)[:, None]).all()


def test_pairs_of_the_first_dimensions_fill_the_square():
    """The first two dimensions of 16 points have one point in each of 4 x 4 squares: a net, which linear scrambling keeps."""
    cells = (points(HASHES[0], 16)[:, :2] * 4).astype(int)
    assert len({tuple(cell) for cell in cells}) == 16


def test_the_scrambling_is_the_formula():
    """x' = L x + s over the bits, L lower triangular with a diagonal of ones."""
    sha256, dimensions = HASHES[1], 3
    draws = np.random.default_rng([int(sha256[:16], 16)]).integers(0, 2, (dimensions, BITS, BITS + 1), dtype=np.uint8)
    plain = torch.quasirandom.SobolEngine(dimensions).draw(8).double().numpy()
    for number in range(8):
        for d in range(dimensions):
            bits, expected = [int(plain[number, d] * 2 ** (i + 1)) % 2 for i in range(BITS)], 0.0
            for i in range(BITS):
                value = draws[d, i, 0] + bits[i] + sum(int(draws[d, i, j + 1]) * bits[j] for j in range(i))
                expected += (value % 2) / 2 ** (i + 1)
            assert sobol_point(sha256, number, dimensions)[d] == pytest.approx(expected, abs=1e-12)


def test_samples_are_scrambled_apart_and_each_point_alone_is_uniform():
    drawn = np.stack([sobol_point(sha256, 2, NUMBERS) for sha256 in HASHES])
    assert len(np.unique(drawn[:, 0])) == len(HASHES)
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.06 and np.abs(drawn.std(0) - 12**-0.5).max() < 0.03
    assert np.abs(np.corrcoef(drawn.T) - np.eye(NUMBERS)).max() < 0.25


def test_two_of_two_views_are_complementary_and_determined_by_sample_and_number_alone():
    """At p = 1/2 each change is made in exactly one of the first two views; independent draws would leave out a quarter."""
    augmentation = load_recipe("paper").augmentation
    one, other = (draw_views(augmentation, None, HASHES, view, SIZE) for view in (1, 2))
    for name, plain in (("gain", 1.0), ("shift", 0.0)):
        changed = [(getattr(views, name) != plain).any(1) for views in (one, other)]
        assert torch.equal(changed[0], ~changed[1])
    alone = draw_views(augmentation, None, HASHES[5:6], 2, SIZE)
    assert torch.equal(alone.affine[0], other.affine[5])
    assert len(one.affine.unique(dim=0)) > 100


def test_the_draws_stay_what_they_are():
    """A cache with recorded views is read by redrawing them."""
    expected = [0.3714599609375, 0.9443206787109375, 0.0303497314453125, 0.58251953125]
    np.testing.assert_allclose(sobol_point(64 * "a", 3, 4), expected, atol=1e-8)
