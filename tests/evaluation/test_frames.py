"""Frames of any size in, masks of that size out: the geometry, the rule for overlaps, smoothing."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import untrained_student

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.frames import Prediction, to_frame, to_network, topmost
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models import fast
from mtkd_cache.models.checkpoints import WEIGHTS, load_network, save_network
from mtkd_cache.models.network import create_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """An untrained student of two organs whose training images were 48x32."""
    return Predictor.load(untrained_student(tmp_path_factory.mktemp("run")))


def a_frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(96, 160), (7, 5), (33, 48)])
def test_a_frame_is_resized_as_ingest_does(height, width):
    frame = a_frame(height, width)
    ingested = np.asarray(Image.fromarray(frame).resize((48, 32), Image.Resampling.BILINEAR))
    resized = to_network(frame, (48, 32), CPU)[0].permute(1, 2, 0).numpy()
    assert np.abs(255 * resized - ingested).max() < 1.1  # Pillow rounds twice


def test_the_way_back_to_the_frame_does_not_shift():
    x = torch.arange(8).float().expand(1, 4, 8)
    there = to_frame(x, (12, 24))[0, 0]
    assert torch.allclose(there[1:-1], (torch.arange(24)[1:-1] + 0.5) / 3 - 0.5, atol=1e-5)  # centers of pixels fall on centers


@pytest.mark.parametrize(("height", "width"), [(64, 96), (1, 1), (31, 45)])
def test_a_frame_of_any_size_is_segmented_at_its_size(predictor, height, width):
    frame = a_frame(height, width)
    prediction = predictor(frame)
    logits = predictor(to_network(frame, (48, 32), CPU))[0]
    expected = torch.nn.functional.interpolate(logits[None], (height, width), mode="bilinear")[0].numpy()
    assert np.allclose(prediction.probabilities, 1 / (1 + np.exp(-expected)), atol=1e-5)
    assert (prediction.masks == (expected > 0)).all()
    assert prediction.labels.shape == (height, width)
    assert np.array_equal(predictor(frame, ["tongue"]).masks, prediction.masks[1:])


def test_masks_are_those_above_the_thresholds(predictor, monkeypatch):
    frame = a_frame(32, 48)
    logits = predictor(to_network(frame, (48, 32), CPU))[0].numpy()
    thresholds = {"tongue": float(np.median(logits[1])), "kidney": float(logits[0].max())}
    monkeypatch.setattr(Predictor, "thresholds", thresholds)
    prediction = predictor(frame)
    assert not prediction.masks[0].any()
    assert prediction.masks[1].mean() == pytest.approx(0.5, abs=0.01)
    assert np.allclose(prediction.probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize("size", [(48, 32), (50, 37)])
def test_masks_head_by_head_are_those_of_all_logits_at_once(size, tmp_path, monkeypatch):
    run, frame = untrained_student(tmp_path, size), a_frame(61, 83)
    monkeypatch.setattr(Predictor, "thresholds", {"kidney": -0.5, "tongue": 0.25})
    with torch.inference_mode():
        small = load_network(run)(to_network(frame, size, CPU))
        logits = torch.nn.functional.interpolate(small, (61, 83), mode="bilinear")[0].numpy()
    prediction = Predictor.load(run)(frame)
    assert np.allclose(prediction.logits, logits, atol=1e-5)
    above = logits > np.array([-0.5, 0.25])[:, None, None]
    assert 0.05 < above.mean() < 0.95 and np.array_equal(prediction.masks, above)
    assert np.array_equal(prediction.masks, prediction.margins.numpy() > 0)


def test_the_fastest_form_gives_the_same_masks(predictor, monkeypatch):
    monkeypatch.setattr(fast, "FORMS", {"folded": fast.folded})
    quick, frame = predictor.fastest(), a_frame(40, 56)
    assert quick.memory_format == torch.channels_last and quick.anatomies == predictor.anatomies
    assert quick.heads["kidney"][0] is quick.heads["tongue"][0] is not predictor.heads["tongue"][0]
    logits, clear = predictor(frame).logits, predictor(frame).logits.abs().numpy() > 1e-3
    assert torch.allclose(quick(frame).logits, logits, atol=1e-3)
    assert np.array_equal(quick(frame).masks[clear], predictor(frame).masks[clear])
    assert np.allclose(quick(frame, ["tongue"]).logits, logits[1:], atol=1e-3)


def test_the_largest_margin_over_its_threshold_lies_on_top():
    random = np.random.default_rng(0)
    margins = random.normal(size=(3, 5, 6)).astype(np.float32)
    where = random.random((3, 5, 6)) < 0.5
    expected = np.zeros((5, 6), int)
    for y, x in np.ndindex(5, 6):
        claims = [(margins[k, y, x], k + 1) for k in range(3) if where[k, y, x]]
        expected[y, x] = max(claims, default=(0, 0))[1]
    assert np.array_equal(topmost(torch.tensor(margins), torch.tensor(where)), expected)
    labels = Prediction("abc", torch.tensor(margins), torch.zeros(3, 1, 1)).labels
    assert np.array_equal(labels, np.where(margins.max(0) > 0, margins.argmax(0) + 1, 0))


def test_smoothing_is_the_exponential_mean_that_lags_as_many_frames(predictor):
    frames = [a_frame(32, 48, seed) for seed in range(4)]
    alone = [predictor(frame).margins for frame in frames]
    for lag in (0, 1, 2.5):
        mean = alone[0]
        for logits, smoothed in zip(alone, predictor.sequence(frames, smooth=lag), strict=True):
            mean = mean + (logits - mean) / (1 + lag)
            assert torch.allclose(smoothed.margins, mean, atol=1e-4)
    ages = np.arange(1000)  # of the frames in the mean, each with its weight
    assert np.sum(ages * (1 / 3.5) * (1 - 1 / 3.5) ** ages) == pytest.approx(2.5)


def test_what_is_no_frame_and_an_unfinished_run_are_named(predictor, tmp_path):
    for wrong in (a_frame(4, 4)[..., 0], a_frame(4, 4) / 255, np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(MtkdError, match=r"a frame is a uint8 RGB array \(H, W, 3\), this one is"):
            predictor(wrong)
    save_network(tmp_path / WEIGHTS, create_network("mininetv2", 1), ["kidney"])
    with pytest.raises(MtkdError, match="does not record the size of its training images"):
        Predictor.load(tmp_path)(a_frame(4, 4))
