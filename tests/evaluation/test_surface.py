"""NSD and HD95 by MONAI, compared with their definitions in loops."""

import math

import numpy as np
import pytest
import torch

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation import surface
from mtkd_cache.evaluation.surface import check_surface_extra, surface_distances

TOLERANCE = 2.0


def outline(mask: np.ndarray) -> list[tuple[int, int]]:
    """The pixels of a mask with a neighbor, above, below or beside, that is outside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return list(zip(*np.nonzero(mask & ~inside), strict=True))


def distances(one: list, other: list) -> list[float]:
    return [min(math.dist(pixel, target) for target in other) for pixel in one]


def test_distances_between_outlines():
    pytest.importorskip("monai")
    y, x = np.mgrid[:24, :32]
    truth = np.stack([(np.hypot(y - 11, x - 14) < 7), x < 12])
    predicted = np.stack([(np.hypot(y - 13, x - 16) < 6) | (np.hypot(y - 2, x - 29) < 2), (x > 2) & (x < 14)])
    nsd, hd95 = surface_distances(torch.from_numpy(predicted), torch.from_numpy(truth), TOLERANCE)
    for image in range(2):
        there = distances(outline(predicted[image]), outline(truth[image]))
        back = distances(outline(truth[image]), outline(predicted[image]))
        near = sum(distance <= TOLERANCE for distance in there + back)
        assert float(nsd[image]) == pytest.approx(near / len(there + back))
        assert 0 < nsd[image] < 1
        assert float(hd95[image]) == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))


def test_empty_masks():
    pytest.importorskip("monai")
    truth = torch.zeros(3, 8, 8, dtype=torch.bool)
    predicted = truth.clone()
    truth[0, :4], predicted[1, :4] = True, True
    nsd, hd95 = surface_distances(predicted, truth, TOLERANCE)
    assert nsd.tolist() == pytest.approx([0, 0, math.nan], nan_ok=True)
    assert hd95.isnan().all()


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(surface, "find_spec", lambda name: None)
    with pytest.raises(MtkdError, match=r"mtkd-cache\[surface\]"):
        check_surface_extra()
