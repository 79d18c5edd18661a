"""The phantom's clip: a camera that moves over one scene, with truth in every frame."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.errors import MtkdError
from mtkd_cache.phantom.clip import ROOM, draw_clip, write_clip

SIZE = (64, 48)


@pytest.fixture(scope="module")
def frames():
    return list(draw_clip(0, 2, 12, SIZE))


def shift_of(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """By how many pixels (x, y) the content moved: where two label maps agree best."""
    height, width = before.shape
    reach = range(-8, 9)
    middle = before[8 : height - 8, 8 : width - 8]

    def agreement(x: int, y: int) -> float:
        return float((after[8 + y : height - 8 + y, 8 + x : width - 8 + x] == middle).mean())

    return max(((x, y) for x in reach for y in reach), key=lambda move: (agreement(*move), -abs(move[0]) - abs(move[1])))


def test_the_same_scene_moves_and_the_truth_with_it(frames):
    images = np.stack([image for image, _ in frames])
    labels = np.stack([sum((index + 1) * masks[name] for index, name in enumerate(ANATOMIES)) for _, masks in frames])
    assert images.shape == (12, 48, 64, 3)
    assert images.dtype == np.uint8
    assert all(set(masks) == set(ANATOMIES) for _, masks in frames)
    assert all((label == ANATOMIES.index("stomach") + 1).any() for label in labels)
    moves = [shift_of(before, after) for before, after in pairwise(labels)]
    assert len(set(moves)) > 3
    assert max(abs(x) for x, _ in moves) <= ROOM * 64 / 2
    for (x, y), (before, after) in zip(moves, pairwise(images), strict=True):
        still = np.abs(before[8:-8, 8:-8].astype(int) - after[8:-8, 8:-8]).mean()
        moved = np.abs(before[8:-8, 8:-8].astype(int) - after[8 + y : 40 + y, 8 + x : 56 + x]).mean()
        assert moved < max(still, 8)  # the picture moved as the labels did, but for light and grain


def test_the_same_seed_gives_the_same_clip(frames, tmp_path):
    assert write_clip(tmp_path / "clip", frames=2, size=SIZE) == {"frames": 2, "size": [64, 48], "surgery": 2, "seed": 0}
    again = [image for image, _ in draw_clip(0, 2, 2, SIZE)]
    for number, image in enumerate(again):
        with Image.open(tmp_path / f"clip/image{number:04}.png") as written:
            assert np.array_equal(np.asarray(written), image)
        for anatomy in ANATOMIES:
            with Image.open(tmp_path / f"clip/mask{number:04}_{anatomy}.png") as mask:
                assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert np.array_equal(again[0], frames[0][0])
    assert len({hashlib.sha256(image.tobytes()).hexdigest() for image, _ in frames}) == 12


def test_a_clip_is_whole_or_absent(tmp_path, monkeypatch):
    def interrupted(*_):
        yield from draw_clip(0, 2, 1, SIZE)
        raise KeyboardInterrupt

    monkeypatch.setattr("mtkd_cache.phantom.clip.draw_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / "clip", frames=2, size=SIZE)
    assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for out, size, message in (
        (tmp_path / "full", SIZE, "is not an empty folder"),
        (tmp_path / "clip", (16, 48), "give 1 or more"),
    ):
        with pytest.raises(MtkdError, match=message):
            write_clip(out, frames=2, size=size)
