"""A scene while it is drawn, and all in it that is no anatomy: fat, fascia, bladder, instruments, blood."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.phantom.canvas import BACKGROUND, RGB, Canvas, Style, linear, mix, rgb
from mtkd_cache.phantom.shapes import Array, Tube, View, bean, capillaries, curve, lobules, noise, tube

BLOOD = linear((120, 18, 16))


@dataclass(frozen=True)
class Scene:
    """What a drawing function needs; `focus` is the anatomy that must be clearly visible."""

    rng: np.random.Generator
    view: View
    canvas: Canvas
    style: Style
    focus: str

    def jitter(self, value: float, spread: float) -> float:
        """A draw from value - spread to value + spread."""
        return float(self.rng.uniform(value - spread, value + spread))

    def noise(self, cells: float, stretch: float = 1.0) -> Array:
        """Smooth noise (H, W), mean 0, standard deviation about 1."""
        return noise(self.rng, self.view.shape, cells, stretch)

    def albedo(self, name: str, dark: RGB, pale: RGB, grain: Array, *, vessels: float = 0.0, cells: float = 7) -> Array:
        """Albedo (3, H, W): from `dark` to `pale` by `grain`, in the surgery's tint, with fine vessels."""
        tint = rgb(*self.style.tints[ANATOMIES.index(name)])
        color = mix(linear(dark) * tint, linear(pale) * tint, 0.5 + 0.5 * np.float32(self.style.texture) * grain)
        if vessels:
            lines = capillaries(self.rng, self.view.shape, cells)
            color = mix(color, color * rgb(0.72, 0.36, 0.36), vessels * self.style.vessels * lines)
        return color

    def fat(self) -> tuple[Array, Array]:
        """(albedo, relief) of lobulated fat."""
        puffs = lobules(self.rng, self.view.shape, self.jitter(12, 3)) - 0.25 * np.abs(self.noise(30))
        pale, hills = linear(self.style.fat), self.noise(3)
        color = mix(pale * rgb(0.78, 0.5, 0.36), pale, 0.25 + 0.6 * puffs + 0.2 * hills)
        lines = capillaries(self.rng, self.view.shape, 5, 0.09)
        color = mix(color, linear((176, 52, 40)), 0.55 * self.style.vessels * lines)
        return color, 0.014 * puffs + 0.028 * hills

    def fascia(self) -> tuple[Array, Array]:
        """(albedo, relief) of dissected retroperitoneum: red-brown, with pale threads."""
        threads = np.clip(1 - np.abs(self.noise(9, 2.5)) / 0.16, 0, 1) * np.clip(self.noise(4), 0, 1)
        coarse, fine = self.noise(5), self.noise(20, 2)
        color = mix(linear((142, 58, 46)), linear((206, 118, 92)), 0.5 + 0.4 * self.noise(4) + 0.2 * fine)
        color = mix(color, linear((236, 204, 180)), 0.6 * threads)
        return color, 0.014 * coarse + 0.003 * fine + 0.004 * threads

    def path(self, points: Sequence[Any], wobble: float, samples: int) -> Array:
        """A smooth path (samples, 2) in camera coordinates near `points`, the inner ones moved by up to `wobble`."""
        moved = np.array(points, float)
        moved[1:-1] += self.rng.uniform(-wobble, wobble, (len(points) - 2, 2))
        return self.view.to_view(curve(moved, samples))

    def tube(self, path: Array, start: float, end: float) -> Tube:
        """A tube along `path` that tapers from radius `start` to `end`, both in scene lengths."""
        return tube(self.view, path, np.linspace(start, end, len(path)) / self.view.zoom)

    def paint(self, name: str, inside: Array, relief: Array, color: Array, **look: float) -> None:
        """Paint an anatomy by name."""
        self.canvas.paint(ANATOMIES.index(name), inside, relief, color, **look)


def background(s: Scene, fascia: float) -> None:
    """Fat everywhere, and fascia where it is dissected: `fascia` is the share, 0 to 1."""
    fat, relief = s.fat()
    s.canvas.paint(BACKGROUND, np.ones(s.view.shape, np.float32), relief, fat, gloss=0.45, light=0.85)
    if fascia > 0:
        red, low = s.fascia()
        inside = 0.11 * (s.noise(2.2) + np.float32(3.2 * (fascia - 0.5)))
        s.canvas.paint(BACKGROUND, inside, low - 0.02, red, gloss=0.5, light=0.75, soft=9)


def fat_flap(s: Scene, center: tuple[float, float], axes: tuple[float, float]) -> None:
    """Omentum or an epiploic appendix that lies over what is behind it."""
    inside, dome = bean(s.view, center, axes, s.jitter(0, 0.5), wobble=0.03 * s.noise(6))
    color, relief = s.fat()
    s.canvas.paint(BACKGROUND, inside, relief + 0.05 * dome, color, gloss=0.45)


def bed(s: Scene, center: tuple[float, float], axes: tuple[float, float], angle: float) -> None:
    """A window dissected into the fat, in which a vessel or the ureter lies."""
    inside, _ = bean(s.view, center, axes, angle)
    color, relief = s.fascia()
    s.canvas.paint(BACKGROUND, inside + 0.035 * s.noise(4), relief - 0.025, color, light=0.8, soft=8)


def instrument(s: Scene) -> None:
    """A steel shaft from the image's edge, with a darker jaw."""
    side = s.rng.choice([-1.0, 1.0])
    root = np.array([side * s.jitter(0.7, 0.1), s.jitter(0.3, 0.35)])
    tip = np.array([side * s.jitter(0.12, 0.2), s.jitter(0.05, 0.22)])
    path = root + np.linspace(0, 1, 5)[:, None] * (tip - root)
    shaft = tube(s.view, path, np.full(5, s.jitter(0.036, 0.009)))
    jaw = (shaft.along > 0.72 * float(np.hypot(*(tip - root)))).astype(np.float32)
    color = mix(linear((150, 154, 160)), linear((78, 80, 84)), jaw + 0.15 * s.noise(3, 4))
    s.canvas.paint(BACKGROUND, shaft.inside, shaft.relief * 1.3, color, gloss=1.4, shadow=0.06)


def bladder(s: Scene) -> None:
    """The smooth fold over the pelvis, which belongs to none of the eleven anatomies."""
    center, axes = (s.jitter(0, 0.1), s.jitter(-0.47, 0.06)), (s.jitter(0.5, 0.1), s.jitter(0.24, 0.04))
    inside, dome = bean(s.view, center, axes, s.jitter(0, 0.15), wobble=0.012 * s.noise(4))
    tint = rgb(*s.style.tints[-1])
    color = mix(linear((190, 108, 96)) * tint, linear((226, 168, 148)) * tint, 0.5 + 0.4 * s.noise(4))
    color = mix(color, BLOOD, 0.4 * s.style.vessels * capillaries(s.rng, s.view.shape, 8))
    s.canvas.paint(BACKGROUND, inside, 0.1 * dome + 0.006 * s.noise(6), color, gloss=0.6, shadow=0.06)


def blood(s: Scene) -> None:
    """Stains the image in patches, whatever lies below; the labels stay."""
    if s.rng.uniform() > s.style.blood:
        return
    stain = np.clip(s.noise(4) + 0.4 * s.noise(14) - np.float32(1.5), 0, 1)
    s.canvas.albedo = mix(s.canvas.albedo, BLOOD, 0.8 * stain)
