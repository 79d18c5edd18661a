"""A clip with truth in every frame: the camera, with its lamp, moves over one scene."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mtkd_cache.data.dresden import ANATOMIES, REFERENCE_TEST
from mtkd_cache.errors import MtkdError
from mtkd_cache.phantom.canvas import Style
from mtkd_cache.phantom.dataset import SMALLEST, save
from mtkd_cache.phantom.scene import compose, rng_for
from mtkd_cache.phantom.shapes import Array, make_view

FOCUS = "stomach"  # always in the scene; around it lie the most anatomies
ROOM = 0.25  # of the frame's width and height, in which the camera moves
CLIP = 1003  # second number of the `rng_for` key, see `mtkd_cache.phantom.dataset`


def write_clip(
    out: Path, *, frames: int, size: tuple[int, int] = (320, 256), surgery: int = REFERENCE_TEST[0], seed: int = 0
) -> dict[str, Any]:
    """Write a clip folder, whole or not at all: imageNNNN.png beside maskNNNN_ANATOMY.png of all eleven anatomies.

    Args:
        out: the folder: absent or empty.
        frames: their number.
        size: (width, height) of every frame in pixels, at least 32 each.
        surgery: whose light, camera and colors the scene has.
        seed: of the scene; the same seed gives the same pixels.

    Returns:
        {"frames", "size": [width, height], "surgery", "seed"}.

    Raises:
        MtkdError: `out` is a file or not empty, the size is too small, or there is no frame.
    """
    if min(size) < SMALLEST or frames < 1 or seed < 0:
        raise MtkdError(
            f"{frames} frames of {size[0]}x{size[1]}, seed {seed}: give 1 or more, {SMALLEST}x{SMALLEST}, seed 0 or more."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MtkdError(f"{out} is not an empty folder. Name another folder or delete it.")
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        for number, (image, masks) in enumerate(draw_clip(seed, surgery, frames, size)):
            save(image, unfinished / f"image{number:04}.png")
            for anatomy, mask in masks.items():
                save(mask, unfinished / f"mask{number:04}_{anatomy}.png")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {"frames": frames, "size": list(size), "surgery": surgery, "seed": seed}


def draw_clip(seed: int, surgery: int, frames: int, size: tuple[int, int]) -> Iterator[tuple[Array, dict[str, Array]]]:
    """The frames with their masks, as `mtkd_cache.phantom.scene.render` returns them; the last one leads to the first.

    The scene is painted once, larger than a frame, and each frame photographs another part of it: shading, highlights and
    exposure follow the camera, and every frame has grain of its own.
    """
    width, height = size
    room = math.ceil(ROOM * width), math.ceil(ROOM * height)
    style = Style(rng_for(seed, surgery), len(ANATOMIES) + 1)
    canvas = compose(rng_for(seed, CLIP, surgery), style, FOCUS, (width + room[0], height + room[1])).canvas
    view, grain = make_view(rng_for(seed, CLIP, surgery, 1), size), rng_for(seed, CLIP, surgery, 2)
    for time in np.linspace(0, 2 * math.pi, frames, endpoint=False):
        left, top = (round(span * (1 + math.sin(turns * time)) / 2) for span, turns in zip(room, (1, 2), strict=True))
        part = canvas.part(np.s_[top : top + height, left : left + width])
        image = part.photograph(rng_for(seed, CLIP, surgery, 3), view, style, grain)
        yield image, {name: part.label == index for index, name in enumerate(ANATOMIES)}
