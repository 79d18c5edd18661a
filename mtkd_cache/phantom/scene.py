"""Which tissues a scene holds and in which order they lie, and its rendering."""

import numpy as np

from mtkd_cache.phantom import organs, tissue
from mtkd_cache.phantom.canvas import Canvas, Style, make_style
from mtkd_cache.phantom.shapes import Array, make_view
from mtkd_cache.phantom.tissue import ANATOMIES, Scene

ATTEMPTS = 5
VISIBLE_SHARE = 0.006


def rng_for(*key: int) -> np.random.Generator:
    """The generator of a key: the same numbers on any machine and in any order of calls (PCG64)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([len(key), *key])))


def surgery_style(seed: int, surgery: int) -> Style:
    """The look that all images of a surgery share."""
    return make_style(rng_for(seed, surgery), len(ANATOMIES) + 1)  # the last tint is the bladder's


def render(seed: int, surgery: int, anatomy: str, index: int, size: tuple[int, int]) -> tuple[Array, dict[str, Array]]:
    """Draw one image of an anatomy's subset.

    Args:
        seed, surgery, index: which image; any numbers from 0.
        anatomy: the anatomy whose subset it is for: it is nearly always in sight, among others.
        size: (width, height) in pixels.

    Returns:
        image: uint8 (height, width, 3).
        masks: bool (height, width) for every anatomy of `ANATOMIES`, all False where it is out of sight; no overlaps.
    """
    style = surgery_style(seed, surgery)
    number = ANATOMIES.index(anatomy)
    for attempt in range(ATTEMPTS):
        scene = _compose(rng_for(seed, surgery, number, index, attempt), style, anatomy, size)
        image = scene.canvas.photograph(scene.rng, scene.view, style)
        label = scene.canvas.label
        if np.count_nonzero(label == number) >= VISIBLE_SHARE * label.size:
            break
    return image, {name: label == i for i, name in enumerate(ANATOMIES)}


def _compose(rng: np.random.Generator, style: Style, focus: str, size: tuple[int, int]) -> Scene:
    view = make_view(rng, size)
    scene = Scene(rng, view, Canvas(view.shape), style, focus)
    region = rng.choice(list(REGIONS), p=REGION_SHARES[focus])
    REGIONS[region](scene)
    if rng.uniform() < style.instruments:
        tissue.instrument(scene)
    tissue.blood(scene)
    return scene


def _has(scene: Scene, name: str, chance: float) -> bool:
    return scene.rng.uniform() < chance or scene.focus == name


def _upper(scene: Scene) -> None:
    """The upper abdomen: liver left, spleen right, stomach between them, pancreas and transverse colon below."""
    s = scene
    tissue.background(s, s.about(0.15, 0.15))
    if _has(s, "abdominal_wall", 0.55):
        organs.abdominal_wall(s)
    if _has(s, "spleen", 0.5):
        organs.spleen(s)
    if _has(s, "pancreas", 0.35):
        organs.pancreas(s)
    if _has(s, "stomach", 0.7):
        organs.stomach(s)
    if _has(s, "liver", 0.65):
        organs.liver(s)
    if _has(s, "colon", 0.5):
        organs.colon(s, "transverse")
    if s.rng.uniform() < 0.25 + 0.5 * s.style.obesity:
        tissue.fat_flap(s, (s.about(0, 0.5), s.about(0.48, 0.06)), (s.about(0.32, 0.1), 0.15))


def _middle(scene: Scene) -> None:
    """The mesentery and what lies behind it: vessels and ureter between the colon on the left and the coils."""
    s = scene
    tissue.background(s, s.about(0.25, 0.25))
    if _has(s, "abdominal_wall", 0.5):
        organs.abdominal_wall(s)
    if _has(s, "ureter", 0.3):
        organs.ureter(s, s.about(-0.17, 0.08))
    if _has(s, "intestinal_veins", 0.35):
        organs.intestinal_veins(s)
    if _has(s, "inferior_mesenteric_artery", 0.25):
        organs.inferior_mesenteric_artery(s)
    if _has(s, "colon", 0.5):
        organs.colon(s, "descending")
    if _has(s, "small_intestine", 0.5):
        organs.small_intestine(s)
    if s.rng.uniform() < 0.4 * s.style.obesity:
        tissue.fat_flap(s, (s.about(-0.3, 0.3), s.about(0.5, 0.05)), (s.about(0.25, 0.08), 0.12))


def _pelvis(scene: Scene) -> None:
    """The pelvis: glands in the middle under the bladder, the rectum below, the ureter at the side."""
    s = scene
    tissue.background(s, s.about(0.7, 0.2))
    if _has(s, "abdominal_wall", 0.3):
        organs.abdominal_wall(s)
    if _has(s, "ureter", 0.3):
        organs.ureter(s, s.about(-0.36, 0.06))
    if s.rng.uniform() < 0.6 and s.focus != "abdominal_wall":
        tissue.bladder(s)
    if _has(s, "vesicular_glands", 0.6):
        organs.vesicular_glands(s)
    if _has(s, "colon", 0.6):
        organs.colon(s, "rectum")
    if _has(s, "small_intestine", 0.2):
        organs.small_intestine(s)


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
