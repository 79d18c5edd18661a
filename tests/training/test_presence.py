"""Presence thresholds: the choice against the same written naively, and what a store with labels writes beside the weights."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import untrained_student

from mtkd_cache.bench.build import spread_out
from mtkd_cache.evaluation.frames import Prediction, silenced
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import OperatingPoint, OperatingPoints
from mtkd_cache.training import presence
from mtkd_cache.training.operating_points import write_operating_points
from mtkd_cache.training.presence import choose_presence, highest_logits


def naive_choice(dice, highest, without, threshold: float) -> float:
    best, most = None, -1.0
    for step in range(40):
        level = threshold + 0.5 * step
        own = [value if top > level else 0.0 for value, top in zip(dice, highest, strict=True) if not math.isnan(value)]
        alarms = sum(top > level for top in without) / len(without)
        expected = sum(own) / (len(own) + len(own) * alarms)
        if expected > most + 1e-8:
            best, most = level, expected
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_naive_loop(seed):
    random = np.random.default_rng(seed)
    dice, highest = random.uniform(0.2, 1, 9), random.uniform(-1, 8, 9)
    dice[2] = np.nan
    without = random.uniform(-4, 6, 30)
    assert choose_presence(dice, highest, without, -1.5) == naive_choice(dice, highest, without, -1.5)


def test_it_is_the_dice_of_as_many_pictures_with_as_without_the_anatomy():
    """Above 3 two of four own pictures fall silent, and all of the others: 0.4 for 0.8 / 2."""
    dice, highest = np.full(4, 0.8), np.array([2.6, 2.7, 6.0, 6.0])
    assert choose_presence(dice, highest, np.full(10, 2.9), 0.0) == 0.0
    assert choose_presence(dice, highest, np.full(10, 2.4), 0.0) == 2.5
    assert choose_presence(dice, highest, np.full(9, 2.4), 0.0) is None
    assert choose_presence(np.array([np.nan]), np.array([1.0]), np.full(10, 2.4), 0.0) is None


def test_highest_logits_are_those_of_each_picture(organ_store, accelerator):
    networks = [spread_out(create_network("mininetv2", 1)), spread_out(create_network("mininetv2", 2, "joint"))]
    heads = {"a": (networks[0], 0), "b": (networks[1], 1), "c": (networks[1], 0)}
    rows = organ_store.rows("test")
    found = highest_logits(heads, organ_store, rows, accelerator)
    for row, values in zip(rows, found, strict=True):
        image = torch.from_numpy(organ_store.read([row])[0]).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            expected = [float(network.native(network.padded(image))[0, head].max()) for network, head in heads.values()]
        assert values == pytest.approx(expected, abs=1e-4)


def test_it_is_written_where_labels_tell(phantom_store, organ_store, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "FEWEST", 1)
    anatomies = phantom_store.anatomies
    network = spread_out(create_network("mininetv2", len(anatomies), "joint"))
    heads = {anatomy: (network, head) for head, anatomy in enumerate(anatomies)}
    chosen = write_operating_points(tmp_path, heads, "abc", phantom_store, accelerator)
    rows = phantom_store.rows("validation")
    highest = highest_logits(heads, phantom_store, rows, accelerator)
    told = [anatomy for anatomy in anatomies if chosen.points[anatomy].presence is not None]
    assert told
    for anatomy in told:
        head, point = anatomies.index(anatomy), chosen.points[anatomy]
        without = highest[phantom_store.present[rows, head] == 0, head]
        assert point.images_without == len(without) > 0
        shares = tuple(np.mean([top > level for top in without]) for level in (point.threshold, point.presence))
        assert point.false_alarms == pytest.approx(shares) and point.presence >= point.threshold
    written = OperatingPoints.from_json(json.loads((tmp_path / OperatingPoints.FILE).read_text()), "it")
    assert written == chosen
    two = {anatomy: (network, head) for head, anatomy in enumerate(organ_store.anatomies)}
    without_labels = write_operating_points(tmp_path, two, "abc", organ_store, accelerator)
    assert all(point.presence is None for point in without_labels.points.values())


def test_a_silent_head_claims_nothing():
    maps = torch.tensor([[[1.0, 2.0], [-1.0, 0.5]], [[3.0, -1.0], [0.5, 0.5]]])
    thresholds, levels = torch.zeros(2, 1, 1), torch.tensor([2.0, 2.5])[:, None, None]
    prediction = Prediction("ab", maps, silenced(thresholds, maps, levels))
    assert not prediction.masks[0].any() and np.array_equal(prediction.masks[1], maps[1].numpy() > 0)
    assert np.array_equal(prediction.labels, np.where(maps[1].numpy() > 0, 2, 0))
    assert np.allclose(prediction.probabilities, torch.sigmoid(maps))
    assert torch.equal(silenced(thresholds, maps[None], levels)[0], silenced(thresholds, maps, levels))


def test_a_predictor_heeds_it_in_every_frame(tmp_path):
    predictor = Predictor.load(untrained_student(tmp_path, size=(32, 24)))
    assert predictor.presence == {}
    frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    first, second = predictor.anatomies
    highest = dict(zip(predictor.anatomies, predictor(frame).maps.amax((1, 2)).tolist(), strict=True))
    given = {first: OperatingPoint(threshold=-9.0, presence=highest[first] + 0.1, images=1, patients=1)}
    given[second] = OperatingPoint(threshold=-9.0, presence=highest[second] - 0.1, images=1, patients=1)
    points = OperatingPoints(store_fingerprint="s", weights_sha256="w", points=given)
    prediction = replace(predictor, operating_points=[points])(frame)
    assert not prediction.masks[0].any() and prediction.masks[1].any()
