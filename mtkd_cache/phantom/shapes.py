"""Geometry of a synthetic scene: the pixel grid under a camera, smooth noise, curves, tubes and bent ellipses.

Lengths are in image heights. Arrays are float32 of shape (height, width), computed with +, -, *, / and sqrt alone, which IEEE 754
rounds the same everywhere: no matrix product, no sine of an array, so that a seed gives the same pixels on any machine.
"""

from dataclasses import dataclass
from functools import lru_cache, reduce
from math import ceil, cos, sin
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
MARGIN, FAR = 0.06, 100.0


@dataclass(frozen=True)
class View:
    """The pixel grid twice: `u`, `v` as the camera sees it, 0 in the middle; `x`, `y` in scene coordinates, warped."""

    u: Array
    v: Array
    x: Array
    y: Array
    angle: float
    zoom: float
    shift: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.u.shape

    def to_view(self, points: Array) -> Array:
        """Scene coordinates (N, 2) as camera coordinates (N, 2): the inverse of `x`, `y` without the warp."""
        x, y = (points[:, 0] - self.shift[0]) / self.zoom, (points[:, 1] - self.shift[1]) / self.zoom
        c, s = cos(self.angle), sin(self.angle)
        return np.stack([c * x + s * y, c * y - s * x], axis=1)


def make_view(rng: np.random.Generator, size: tuple[int, int]) -> View:
    """A camera that is turned, moved and zoomed at random, over `size` = (width, height) pixels."""
    width, height = size
    v, u = np.meshgrid(
        ((np.arange(height) + 0.5) / height - 0.5).astype(np.float32),
        ((np.arange(width) + 0.5) / height - 0.5 * width / height).astype(np.float32),
        indexing="ij",
    )
    angle, zoom = rng.uniform(-0.22, 0.22), rng.uniform(0.8, 1.15)
    shift = (rng.uniform(-0.09, 0.09), rng.uniform(-0.07, 0.07))
    c, s = np.float32(zoom * cos(angle)), np.float32(zoom * sin(angle))
    x = c * u - s * v + np.float32(shift[0]) + 0.022 * noise(rng, u.shape, 3)
    y = s * u + c * v + np.float32(shift[1]) + 0.022 * noise(rng, u.shape, 3)
    return View(u, v, x, y, angle, zoom, shift)


@lru_cache(maxsize=256)
def _spline(samples: int, cells: float) -> list[tuple[npt.NDArray[np.intp], Array]]:
    """Cubic B-spline at `samples` points spread evenly over `cells` cells: four (knot index, weight), each (samples,)."""
    position = (np.arange(samples) + 0.5) / samples * cells
    cell = position.astype(np.intp)
    t = position - cell
    r = 1 - t
    weights = (r * r * r, 3 * t * t * t - 6 * t * t + 4, 3 * r * r * r - 6 * r * r + 4, t * t * t)
    return [(cell + offset, (weight / 6).astype(np.float32)) for offset, weight in enumerate(weights)]


def _interpolate(knots: Array, samples: int, cells: float) -> Array:
    """Values (samples, N) of the spline whose control values are `knots` (at least cells + 3, N)."""
    parts = (knots[index] * weight[:, None] for index, weight in _spline(samples, cells))
    return reduce(np.add, parts)


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: float, stretch: float = 1.0) -> Array:
    """Smooth noise (H, W), mean 0, standard deviation about 1: `cells` knots a height, `stretch` times fewer across."""
    height, width = shape
    across = cells * width / height / stretch
    lattice = rng.uniform(-3.6, 3.6, (ceil(across) + 4, ceil(cells) + 4)).astype(np.float32)
    return _interpolate(np.ascontiguousarray(_interpolate(lattice, width, across).T), height, cells)


def lobules(rng: np.random.Generator, shape: tuple[int, int], cells: float) -> Array:
    """Puffy lobules with creases between them (H, W), 0 in a crease to about 1.5."""
    first, second = noise(rng, shape, cells), noise(rng, shape, 1.7 * cells)
    size = np.sqrt(first * first + 0.25 * second * second)
    return 1.8 * size / (size + np.float32(0.6))


def capillaries(rng: np.random.Generator, shape: tuple[int, int], cells: float, width: float = 0.12) -> Array:
    """Fine vessels on a surface (H, W), 0 to 1: where smooth noise crosses zero, in patches."""
    lines: Array = np.clip(1 - np.abs(noise(rng, shape, cells)) / width, 0, 1)
    lines *= np.clip(0.3 + noise(rng, shape, 0.7 * cells), 0, 1)
    return lines


def curve(points: Array, samples: int) -> Array:
    """A smooth curve (samples, 2) near control `points` (N, 2), N >= 2, from the first to the last (cubic B-spline)."""
    ends = (2 * points[0] - points[1], 2 * points[-1] - points[-2])
    return _interpolate(np.vstack([ends[0], points, ends[1]]), samples, len(points) - 1)


@dataclass(frozen=True)
class Tube:
    """A tube's maps (H, W): `along` the axis from its start, `across` as a signed fraction of the `radius` there."""

    along: Array
    across: Array
    radius: Array

    @property
    def inside(self) -> Array:
        """Distance to the tube's border, positive inside."""
        share: Array = 1 - np.abs(self.across)
        return self.radius * share

    @property
    def relief(self) -> Array:
        """Height of the tube's upper surface above its axis; 0 outside."""
        return self.radius * np.sqrt(np.clip(1 - self.across * self.across, 0, 1))


def tube(view: View, path: Array, radius: Array) -> Tube:
    """The tube of `radius` (N,) around `path` (N, 2) in camera coordinates; where it meets itself the nearer axis wins.

    Maps are computed to MARGIN outside it; beyond, `across` is FAR.
    """
    height, width = view.shape
    along = np.zeros(view.shape, np.float32)
    across = np.full(view.shape, FAR, np.float32)
    thickness = np.full(view.shape, float(np.mean(radius)), np.float32)
    start = 0.0
    for a, b, ra, rb in zip(path[:-1], path[1:], radius[:-1], radius[1:], strict=True):
        step = b - a
        length = float(np.sqrt(step[0] * step[0] + step[1] * step[1])) + 1e-9
        reached = max(ra, rb) + MARGIN
        low, high = np.minimum(a, b) - reached, np.maximum(a, b) + reached
        left, right = (max(0, min(width, int((edge + 0.5 * width / height) * height))) for edge in (low[0], high[0] + 1 / height))
        top, bottom = (max(0, min(height, int((edge + 0.5) * height))) for edge in (low[1], high[1] + 1 / height))
        if left < right and top < bottom:
            box = np.s_[top:bottom, left:right]
            dx, dy = view.u[box] - np.float32(a[0]), view.v[box] - np.float32(a[1])
            ex, ey = np.float32(step[0] / length), np.float32(step[1] / length)
            t = np.clip(dx * ex + dy * ey, 0, np.float32(length))
            px, py = dx - t * ex, dy - t * ey
            r = np.float32(ra) + t * np.float32((rb - ra) / length)
            d = np.sqrt(px * px + py * py) / r
            nearer = d < np.abs(across[box])
            across[box] = np.where(nearer, np.where(ex * dy > ey * dx, d, -d), across[box])
            along[box] = np.where(nearer, np.float32(start) + t, along[box])
            thickness[box] = np.where(nearer, r, thickness[box])
        start += length
    return Tube(along, across, thickness)


def bean(
    view: View,
    center: tuple[float, float],
    axes: tuple[float, float],
    angle: float,
    *,
    bend: float = 0.0,
    taper: float = 0.0,
    wobble: Array | float = 0.0,
) -> tuple[Array, Array]:
    """An ellipse with half-axes `axes`, turned by `angle`, bent, and thinner by `taper` at its far end.

    Args:
        wobble: (H, W) how far its border is moved out.

    Returns:
        inside: (H, W) distance to the border, positive inside (exact only near it).
        dome: (H, W) height, 1 in the middle, 0 at the border and outside.
    """
    c, s = np.float32(cos(angle)), np.float32(sin(angle))
    dx, dy = view.x - np.float32(center[0]), view.y - np.float32(center[1])
    p, q = (c * dx + s * dy) / np.float32(axes[0]), (c * dy - s * dx) / np.float32(axes[1])
    q = q + np.float32(bend) * (p * p - np.float32(0.4))
    if taper:
        q = q / np.clip(1 - np.float32(taper) * p, 0.3, 2)
    thickness = np.float32(min(axes) / view.zoom)
    reach = np.clip(np.sqrt(p * p + q * q) - wobble / thickness, 0, None)
    return (1 - reach) * thickness, np.sqrt(np.clip(1 - reach * reach, 0, 1))
