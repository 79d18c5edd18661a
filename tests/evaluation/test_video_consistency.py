"""Video consistency against its formula in loops, and the evaluation of a clip that the phantom wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import untrained_student

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.evaluation.video import VideoConsistency, evaluate_video
from mtkd_cache.phantom.clip import write_clip


def naive_consistency(truth: np.ndarray, predicted: np.ndarray, window: int) -> float | None:
    """VC of bool (frames, A, H, W) twice, a pixel and a window at a time."""
    values = []
    for start in range(len(truth) - window + 1):
        constant = kept = 0
        for y, x in np.ndindex(truth.shape[2:]):
            if len({tuple(truth[start + n, :, y, x]) for n in range(window)}) == 1:
                constant += 1
                kept += len({tuple(predicted[start + n, :, y, x]) for n in range(window)}) == 1
        if constant:
            values.append(kept / constant)
    return sum(values) / len(values) if values else None


def test_video_consistency_is_its_formula():
    random = np.random.default_rng(0)
    truth, predicted = (random.random((9, 2, 4, 5)) < share for share in (0.04, 0.1))
    consistency = VideoConsistency((1, 2, 3, 9, 10))
    for frames in zip(truth, predicted, strict=True):
        consistency.update(*frames)
    expected = {window: naive_consistency(truth, predicted, window) for window in (1, 2, 3, 9, 10)}
    assert consistency.means() == pytest.approx(expected)
    assert expected[1] == 1
    assert 0.2 < expected[3] < 0.9
    assert expected[10] is None


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "scene"
    write_clip(folder, frames=9, size=(48, 40))
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(untrained_student(tmp_path_factory.mktemp("run"), (48, 40), (*ANATOMIES, "kidney")))


def test_a_clip_is_evaluated_at_the_operating_points_and_smoothed(predictor, clip):
    plain, smoothed = evaluate_video(predictor, clip), evaluate_video(predictor, clip, smooth=4)
    assert (plain.split, plain.images, plain.smooth, smoothed.smooth) == ("scene", 9, 0, 4)
    assert list(plain.dice) == list(plain.thresholds) == list(ANATOMIES)
    assert plain.dice == plain.dice_at_operating_point  # without operating points the threshold is 0
    assert plain.mvc["16"] is None
    assert 0 < plain.mvc["8"] < smoothed.mvc["8"] <= 1
    for evaluation, name in ((plain, "video-scene.json"), (smoothed, "video-scene-smooth-4.json")):
        assert json.loads((predictor.folder / name).read_text()) == evaluation.to_json()


def test_the_current_folder_is_called_by_its_name(predictor, clip, monkeypatch):
    monkeypatch.chdir(clip)
    assert evaluate_video(predictor, Path(), smooth=8).split == "scene"
    assert (predictor.folder / "video-scene-smooth-8.json").exists()


def test_dice_is_of_the_masks_above_the_thresholds(predictor, clip, monkeypatch):
    before = evaluate_video(predictor, clip)
    monkeypatch.setattr(Predictor, "thresholds", {**predictor.thresholds, "stomach": 100.0})
    after = evaluate_video(predictor, clip)
    assert after.dice == before.dice
    assert after.dice_at_operating_point["stomach"] == 0
    assert after.dice_at_operating_point["spleen"] == before.dice["spleen"]


def test_a_clip_that_does_not_fit_is_named(predictor, clip, tmp_path, copy_of):
    student = Predictor.load(untrained_student(tmp_path / "run", anatomies=("kidney", "liver")))
    with pytest.raises(MtkdError, match=r"annotated for abdominal_wall, colon, .* does not know. It knows kidney, liver"):
        evaluate_video(student, clip)
    with pytest.raises(MtkdError, match="nowhere is no folder"):
        evaluate_video(predictor, tmp_path / "nowhere")
    with pytest.raises(MtkdError, match=r"run holds no imageNNNN\.png"):
        evaluate_video(predictor, tmp_path / "run")
    broken = copy_of(clip)
    shutil.copy(broken / "image0000.png", broken / "image10.png")
    shutil.copy(broken / "mask0000_liver.png", broken / "mask10_liver.png")
    with pytest.raises(MtkdError, match=r"image10.png has masks of liver, the first frame of abdominal_wall"):
        evaluate_video(predictor, broken)
