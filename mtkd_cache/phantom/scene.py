"""Which tissues a scene holds, in which order they are painted, and its rendering."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.phantom import organs, tissue
from mtkd_cache.phantom.canvas import Canvas, Style
from mtkd_cache.phantom.shapes import Array, make_view
from mtkd_cache.phantom.tissue import Scene

ATTEMPTS = 5
VISIBLE_SHARE = 0.006


def rng_for(*key: int) -> np.random.Generator:
    """The random generator (PCG64) of a key: the same numbers on any machine and in any order of calls."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([len(key), *key])))


def render(seed: int, surgery: int, anatomy: str, index: int, size: tuple[int, int]) -> tuple[Array, dict[str, Array]]:
    """Draw one image of an anatomy's subset.

    Args:
        seed, surgery, index: which image; any numbers from 0.
        anatomy: the anatomy of the subset: nearly always visible, among others.
        size: (width, height) in pixels.

    Returns:
        image: uint8 (height, width, 3).
        masks: bool (height, width) for every anatomy of `ANATOMIES`, all False where it is not visible; no overlaps.
    """
    style = Style(rng_for(seed, surgery), len(ANATOMIES) + 1)  # one for all images of a surgery; the last tint is the bladder's
    number = ANATOMIES.index(anatomy)
    for attempt in range(ATTEMPTS):
        scene = compose(rng_for(seed, surgery, number, index, attempt), style, anatomy, size)
        image = scene.canvas.photograph(scene.rng, scene.view, style)
        label = scene.canvas.label
        if np.count_nonzero(label == number) >= VISIBLE_SHARE * label.size:
            break
    return image, {name: label == i for i, name in enumerate(ANATOMIES)}


def compose(rng: np.random.Generator, style: Style, focus: str, size: tuple[int, int]) -> Scene:
    """A painted scene of size = (width, height) pixels in which the anatomy `focus` lies."""
    view = make_view(rng, size)
    scene = Scene(rng, view, Canvas(view.shape), style, focus)
    region = rng.choice(list(REGIONS), p=REGION_SHARES[focus])
    REGIONS[region](scene)
    if rng.uniform() < style.instruments:
        tissue.instrument(scene)
    tissue.blood(scene)
    return scene


def _maybe(s: Scene, chance: float, organ: Callable[..., None], *args: Any) -> None:
    """Draw an organ with a probability, or always where it is the scene's focus."""
    if s.rng.uniform() < chance or s.focus == organ.__name__:
        organ(s, *args)


def _upper(s: Scene) -> None:
    """The upper abdomen: liver left, spleen right, stomach between them, pancreas and transverse colon below."""
    tissue.background(s, s.jitter(0.15, 0.15))
    _maybe(s, 0.55, organs.abdominal_wall)
    _maybe(s, 0.5, organs.spleen)
    _maybe(s, 0.35, organs.pancreas)
    _maybe(s, 0.7, organs.stomach)
    _maybe(s, 0.65, organs.liver)
    _maybe(s, 0.5, organs.colon, "transverse")
    if s.rng.uniform() < 0.25 + 0.5 * s.style.obesity:
        tissue.fat_flap(s, (s.jitter(0, 0.5), s.jitter(0.48, 0.06)), (s.jitter(0.32, 0.1), 0.15))


def _middle(s: Scene) -> None:
    """The mesentery and what lies behind it: vessels and ureter between the colon on the left and the small intestine."""
    tissue.background(s, s.jitter(0.25, 0.25))
    _maybe(s, 0.5, organs.abdominal_wall)
    _maybe(s, 0.3, organs.ureter, -0.17, 0.08)
    _maybe(s, 0.35, organs.intestinal_veins)
    _maybe(s, 0.25, organs.inferior_mesenteric_artery)
    _maybe(s, 0.5, organs.colon, "descending")
    _maybe(s, 0.5, organs.small_intestine)
    if s.rng.uniform() < 0.4 * s.style.obesity:
        tissue.fat_flap(s, (s.jitter(-0.3, 0.3), s.jitter(0.5, 0.05)), (s.jitter(0.25, 0.08), 0.12))


def _pelvis(s: Scene) -> None:
    """The pelvis: glands in the middle under the bladder, the rectum below, the ureter at the side."""
    tissue.background(s, s.jitter(0.7, 0.2))
    _maybe(s, 0.3, organs.abdominal_wall)
    _maybe(s, 0.3, organs.ureter, -0.36, 0.06)
    if s.rng.uniform() < 0.6 and s.focus != "abdominal_wall":
        tissue.bladder(s)
    _maybe(s, 0.6, organs.vesicular_glands)
    _maybe(s, 0.6, organs.colon, "rectum")
    _maybe(s, 0.2, organs.small_intestine)


REGIONS = {"upper": _upper, "middle": _middle, "pelvis": _pelvis}
REGION_SHARES = {
    "abdominal_wall": (0.4, 0.4, 0.2),
    "colon": (0.35, 0.45, 0.2),
    "inferior_mesenteric_artery": (0, 1, 0),
    "intestinal_veins": (0, 1, 0),
    "liver": (1, 0, 0),
    "pancreas": (1, 0, 0),
    "small_intestine": (0, 0.9, 0.1),
    "spleen": (1, 0, 0),
    "stomach": (1, 0, 0),
    "ureter": (0, 0.75, 0.25),
    "vesicular_glands": (0, 0, 1),
}
