"""Operating points: the choice and its interval against the same written naively, and what is written beside the weights."""

import json

import numpy as np
import pytest
import torch

from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256
from mtkd_cache.models.records import OperatingPoints
from mtkd_cache.training import operating_points
from mtkd_cache.training.metrics import GRID
from mtkd_cache.training.operating_points import HALF, operating_point, validation_figures, write_operating_points


def naive_choice(dice: np.ndarray) -> int:
    """The place of the threshold: every mean, and every weighted mean of its neighbors, in loops."""
    curve = []
    for place in range(len(GRID)):
        counted = [value for value in dice[:, place] if not np.isnan(value)]
        curve.append(sum(counted) / len(counted) if counted else None)
    best, highest = HALF, -1.0
    for place in sorted(range(len(GRID)), key=lambda place: abs(GRID[place])):
        total = weights = 0.0
        for other in range(len(GRID)):
            weight = {0: 3, 1: 2, 2: 1}.get(abs(place - other), 0)
            if weight and curve[other] is not None:
                total, weights = total + weight * curve[other], weights + weight
        smoothed = total / weights if weights else 0.0
        if smoothed > highest + 1e-8:
            best, highest = place, smoothed
    return best


def curves(seed: int, images: int = 7) -> np.ndarray:
    """Dice by threshold with a bump and noise; some images do not count at high thresholds, and one at none."""
    random = np.random.default_rng(seed)
    dice = np.exp(-(((GRID - random.uniform(-7, 3)) / 3) ** 2)) * random.uniform(0.2, 1, (images, 1))
    dice += random.uniform(0, 0.2, dice.shape)
    dice[0], dice[1, 15:] = np.nan, np.nan
    return dice


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_where_the_smoothed_mean_is_highest(seed):
    dice = curves(seed)
    place, point = naive_choice(dice), operating_point(dice, np.array(list("aabbccc")))
    assert point.threshold == GRID[place]
    assert point.dice == pytest.approx(np.nanmean(dice[:, place]))
    assert point.dice_at_half == pytest.approx(np.nanmean(dice[:, HALF]))
    assert (point.images, point.patients) == (7, 3)


def test_the_interval_is_over_patients(monkeypatch):
    monkeypatch.setattr(operating_points, "BOOTSTRAP", 40)
    dice, patients = curves(1), np.array(list("aabbccc"))
    thresholds = []
    for counts in np.random.default_rng(0).multinomial(3, [1 / 3] * 3, 40):
        drawn = [dice[patients == name] for name, count in zip("abc", counts, strict=True) for _ in range(count)]
        thresholds.append(GRID[naive_choice(np.concatenate(drawn))])
    low, high = operating_point(dice, patients).interval
    assert (low, high) == pytest.approx(np.percentile(thresholds, [2.5, 97.5]))
    assert low < high


def test_where_there_is_nothing_to_choose_from_the_threshold_stays():
    missed, absent = np.zeros((3, len(GRID))), np.full((3, len(GRID)), np.nan)
    assert operating_point(missed, np.array(list("aab"))).threshold == 0
    for dice in (absent, absent[:0]):
        point = operating_point(dice, np.array(["a"] * len(dice)))
        assert (point.threshold, point.interval, point.dice, point.dice_at_half) == (0, None, None, None)
    figures = validation_figures({"liver": curves(0), "ureter": absent})
    assert figures["val_dice"] == pytest.approx(np.nanmean(curves(0)[:, HALF]))
    assert figures["threshold/liver"] == GRID[naive_choice(curves(0))]


class Brightness(torch.nn.Module):
    """A head that knows the bright disc by its red, but whose logits lie low."""

    def forward(self, images: torch.Tensor, heads: list[int]) -> torch.Tensor:
        return (images[:, :1] - 0.41).sign() * 2 - 5


def test_points_are_written_beside_the_weights_they_belong_to(organ_store, organ_teachers, accelerator, copy_of):
    folder = copy_of(organ_teachers)
    weights = folder / "kidney" / WEIGHTS
    write_operating_points(weights.parent, {"kidney": (Brightness(), 0)}, file_sha256(weights), organ_store, accelerator)
    said = json.loads((weights.parent / OperatingPoints.FILE).read_text())
    point = said["points"]["kidney"]
    assert (said["store_fingerprint"], said["weights_sha256"]) == (organ_store.fingerprint, file_sha256(weights))
    assert (point["threshold"], point["dice_at_half"], point["images"]) == (-4.5, 0, 3)  # all in -7..-3; the plateau's middle
    assert point["dice"] > 0.9
    predictor = Predictor.load(folder)
    assert predictor.thresholds == {"kidney": -4.5, "tongue": 0}
    assert predictor.thresholds_on(organ_store) == {"kidney": -4.5}
    weights.write_bytes((folder / "tongue" / WEIGHTS).read_bytes().replace(b"tongue", b"kidney"))
    (weights.parent / OperatingPoints.FILE).write_text(json.dumps({**said, "weights_sha256": "0" * 64}))
    assert Predictor.load(folder, anatomies=["tongue"]).thresholds == {"tongue": 0}
