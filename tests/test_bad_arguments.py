"""Arguments of the public API that can only be a mistake are refused in words, and never answered with something wrong."""

import numpy as np
import pytest
import torch

import mtkd_cache as mc
from mtkd_cache.evaluation.frames import to_network

FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(organ_teachers) -> mc.Predictor:
    return mc.Predictor.load(organ_teachers)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 8, 8, 3), r"these are torch.float32 \(1, 8, 8, 3\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"these are torch.uint8 \(1, 3, 8, 8\)"),
    ],
)
def test_views_are_applied_to_stored_images(images, message, recipe):
    views = mc.draw_views(recipe().augmentation, 0, ["0" * 64], 0, (8, 8))
    with pytest.raises(mc.MtkdError, match=message):
        mc.apply_views(images, torch.zeros(1, 8, 8, dtype=torch.uint8), views)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(mc.MtkdError, match="the temperature is"):
        mc.channelwise_kl(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), temperature)


@pytest.mark.parametrize("teacher", [(1, 2, 2, 2), (1, 3, 4, 4), (2, 4, 4)])
def test_the_logits_of_student_and_teachers_have_one_shape(teacher):
    with pytest.raises(mc.MtkdError, match=r"have shape \(1, 2, 4, 4\), the teachers'"):
        mc.channelwise_kl(torch.zeros(1, 2, 4, 4), torch.zeros(teacher), 4)


@pytest.mark.parametrize("smooth", [-1, float("nan"), float("inf")])
def test_frames_are_smoothed_over_a_number_of_frames(predictor, smooth):
    with pytest.raises(mc.MtkdError, match="no number of frames"):
        next(predictor.sequence([FRAME], smooth=smooth))


@pytest.mark.parametrize(("anatomies", "message"), [([], "no anatomy is named"), (["kidney", "brain"], "has no head of brain")])
def test_heads_are_named_by_their_anatomies(predictor, anatomies, message):
    for images in (FRAME, torch.zeros(1, 3, 64, 64)):
        with pytest.raises(mc.MtkdError, match=rf"{message}\. Name some of kidney, tongue"):
            predictor(images, anatomies)


def test_a_frame_may_be_a_flipped_view():
    bgr = np.ascontiguousarray(FRAME[..., ::-1])
    device = torch.device("cpu")
    assert torch.equal(to_network(bgr[..., ::-1], (32, 32), device), to_network(FRAME, (32, 32), device))


@pytest.mark.parametrize("view", [-1, 1])
def test_a_cache_has_no_other_view(organ_cache, view):
    with pytest.raises(mc.MtkdError, match=rf"has no view {view}: its 1 are counted from 0"):
        organ_cache.read(list(organ_cache.row_of), view)


def test_a_cache_has_no_samples_of_other_splits(organ_cache, organ_store):
    hashes = list(organ_store.hashes[organ_store.rows("test")])
    with pytest.raises(mc.MtkdError, match=rf"holds no sample {hashes[0][:12]} \(6 of 6\)"):
        organ_cache.read(hashes)


@pytest.mark.parametrize("row", [-1, 1000])
def test_a_store_has_no_other_row(organ_store, row):
    with pytest.raises(mc.MtkdError, match=f"has no row 0 to {row}|has no row {row} to 0"):
        organ_store.read(np.array([0, row]))


def test_a_store_has_no_nameless_anatomy(organ_store):
    with pytest.raises(mc.MtkdError, match="has no ''"):
        organ_store.rows("train", "")
