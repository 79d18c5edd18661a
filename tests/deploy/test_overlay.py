"""Overlays: colors that the color-blind can tell apart, every mask outlined, and the anatomy on top filled."""

import numpy as np
import pytest
import torch

from mtkd_cache.deploy.overlay import COLORS, LARGE, colors_of, overlay
from mtkd_cache.evaluation.frames import Prediction

SIGHTS = {  # Machado et al. 2009, severity 1, on linear RGB
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def cielab(color: np.ndarray, sight: str) -> np.ndarray:
    """How a display color 0..255 is seen, in CIELAB under D65."""
    share = color / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    x, y, z = np.asarray(XYZ) @ np.clip(np.asarray(SIGHTS[sight]) @ linear, 0, 1) / (0.95047, 1, 1.08883)
    f = [np.cbrt(v) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHTS)
def test_any_two_of_eleven_colors_differ_for_every_sight(sight):
    seen = [cielab(color, sight) for color in COLORS]
    assert len(seen) == 11
    assert min(np.linalg.norm(one - other) for i, one in enumerate(seen) for other in seen[:i]) > 30


def prediction(*masks: np.ndarray, margin=(1.0, 2.0, 3.0)) -> Prediction:
    margins = [np.where(mask, value, -1.0) for mask, value in zip(masks, margin, strict=False)]
    return Prediction(
        ["one", "two", "a_third"][: len(masks)], torch.tensor(np.stack(margins)).float(), torch.zeros(len(masks), 1, 1)
    )


def disc(height: int, width: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows - height / 2, columns - x) < radius


def test_the_anatomy_on_top_fills_and_all_are_outlined():
    frame = np.full((400, 700, 3), 128, np.uint8)
    left, right = disc(400, 700, 300, 120), disc(400, 700, 400, 120)
    colors = colors_of(2)
    drawn = overlay(frame, prediction(left, right))[:400, :700]
    assert (drawn[~left & ~right & ~disc(400, 700, 300, 125) & ~disc(400, 700, 400, 125)] == 128).all()
    filled = {number: (0.7 * 128 + 0.3 * colors[number]).astype(int) for number in (1, 2)}
    assert np.abs(drawn[200, 220].astype(int) - filled[1]).max() <= 1
    assert np.abs(drawn[150, 330].astype(int) - filled[2]).max() <= 1  # where both are
    edge = left & ~disc(400, 700, 300, 118)
    assert (drawn[edge & right] == colors[1]).all(1).mean() > 0.5  # the outline of the lower one, within the upper one
    assert not np.array_equal(drawn, overlay(frame, prediction(left, right, margin=(2.0, 1.0)))[:400, :700])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 45), (97, 641), (700, 3)])
def test_any_size_is_drawn_with_even_sides_over_a_legend(height, width):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    nothing = np.zeros((height, width), bool)
    drawn = overlay(frame, prediction(nothing, nothing, nothing))
    scale = -(-LARGE // max(height, width))
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    assert drawn.shape[0] > height * scale
    assert np.array_equal(drawn[: height * scale : scale, : width * scale : scale], frame)
    present = overlay(frame, prediction(~nothing, nothing, nothing))
    assert present.shape == drawn.shape
    assert present[height * scale :].max() > drawn[height * scale :].min()


def test_more_anatomies_than_colors_repeat_them():
    assert np.array_equal(colors_of(13)[12:], colors_of(2)[1:])
    assert np.array_equal(colors_of(3)[0], (0, 0, 0))
