"""The picture while it is painted back to front, and the light that turns it into pixels."""

from dataclasses import dataclass

import numpy as np

from mtkd_cache.phantom.shapes import Array, View, noise

BACKGROUND = -1


@dataclass(frozen=True)
class Style:
    """What one surgery looks like, whatever is seen: lamp, camera, colours of its tissues. Lengths in image heights."""

    tints: Array
    fat: tuple[float, float, float]
    obesity: float
    lamp: tuple[float, float, float]
    ambient: float
    exposure: float
    balance: tuple[float, float, float]
    saturation: float
    shine: float
    blur: float
    grain: float
    haze: float
    circle: float
    texture: float
    vessels: float
    blood: float
    instruments: float


def make_style(rng: np.random.Generator, tissues: int) -> Style:
    """Draw a surgery's look for `tissues` tissues."""
    fat = rng.uniform(0, 1)
    return Style(
        tints=rng.uniform(0.84, 1.16, (tissues, 3)) * rng.uniform(0.82, 1.18, (tissues, 1)),
        fat=(228 + 12 * fat, 158 + 44 * fat, 76 + 70 * rng.uniform(0, 1) * fat + 10 * fat),
        obesity=rng.uniform(0, 1),
        lamp=(rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.2), rng.uniform(0.55, 1.05)),
        ambient=rng.uniform(0.08, 0.28),
        exposure=rng.uniform(0.36, 0.64),
        balance=(rng.uniform(0.94, 1.18), rng.uniform(0.88, 1.04), rng.uniform(0.75, 1.25)),
        saturation=rng.uniform(0.65, 1.18),
        shine=rng.uniform(0.25, 1.0),
        blur=rng.uniform(0.0, 0.005),
        grain=rng.uniform(0.5, 4.0),
        haze=max(0.0, rng.uniform(-0.15, 0.14)),
        circle=rng.uniform(0.56, 0.66) if rng.uniform() < 0.3 else 0.0,
        texture=rng.uniform(0.6, 1.3),
        vessels=rng.uniform(0.3, 1.0),
        blood=rng.uniform(0, 0.7),
        instruments=rng.uniform(0.15, 0.75),
    )


def rgb(red: float, green: float, blue: float) -> Array:
    """Three factors or levels as (3, 1, 1)."""
    return np.array([red, green, blue], np.float32)[:, None, None]


def linear(colour: tuple[float, float, float]) -> Array:
    """Display colour 0..255 to linear light 0..1 (3, 1, 1), with gamma 2."""
    return rgb(*colour) ** 2 / np.float32(255 * 255)


def mix(first: Array, second: Array, share: Array) -> Array:
    """`first` where `share` (H, W) is 0, `second` where it is 1; colours (3, 1, 1) or (3, H, W)."""
    return first + (second - first) * np.clip(share, 0, 1)


class Canvas:
    """Albedo (3, H, W), relief, gloss, light and label (H, W) of the front-most tissue so far."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.albedo = np.zeros((3, *shape), np.float32)
        self.relief = np.zeros(shape, np.float32)
        self.gloss = np.zeros(shape, np.float32)
        self.light = np.ones(shape, np.float32)
        self.label = np.full(shape, BACKGROUND, np.int8)

    def paint(
        self, label: int, inside: Array, relief: Array, colour: Array, *, gloss=0.5, light=1.0, shadow=0.035, soft=1.0
    ) -> None:
        """Lay a tissue over the picture.

        Args:
            label: what it is, or BACKGROUND.
            inside: (H, W) distance to its border, positive inside; the label is set where it is > 0.
            relief: (H, W) height of its surface.
            colour: (3, H, W) or (3, 1, 1) linear albedo.
            gloss: strength of its highlights.
            light: how much light reaches it (deep things get less).
            shadow: width of the dark rim it throws on what lies behind.
            soft: width of the border in pixels.
        """
        near = inside > -shadow
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if not len(rows):
            return
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inside = inside[box]
        share = np.clip(inside * np.float32(len(self.label) / soft) + np.float32(0.5), 0, 1)
        rim = np.clip(1 + inside / np.float32(shadow), 0, 1)
        behind = self.light[box] * (1 - np.float32(0.42) * rim * rim)
        self.light[box] = behind + (np.float32(light) - behind) * share
        self.relief[box] += (relief[box] - self.relief[box]) * share
        self.gloss[box] += (np.float32(gloss) - self.gloss[box]) * share
        albedo = self.albedo[:, *box]
        albedo += ((colour[:, *box] if colour.shape[1:] == self.label.shape else colour) - albedo) * share
        self.label[box] = np.where(inside > 0, np.int8(label), self.label[box])

    def photograph(self, rng: np.random.Generator, view: View, style: Style) -> Array:
        """The lit picture as uint8 (H, W, 3). Clears `label` outside the round field of view, where there is one."""
        relief = _blur(self.relief, 0.004)
        diffuse, highlight = _shade(relief, view, style, rng.uniform(-0.08, 0.08, 2))
        glint = np.clip(0.8 + 0.5 * noise(rng, view.shape, 45), 0, 2)
        picture = self.albedo * ((diffuse + np.float32(style.ambient)) * self.light)
        brightness = np.sqrt(np.float32(style.exposure) ** 2 / (picture.mean(dtype=np.float64) + 1e-3))
        picture *= np.float32(brightness)
        grey = picture.mean(axis=0)
        picture = grey + (picture - grey) * np.float32(style.saturation)
        picture += highlight * self.gloss * self.light * glint * np.float32(style.shine)
        picture += (np.float32(0.35) - picture) * np.float32(style.haze)
        picture = _blur(picture * rgb(*style.balance), style.blur)
        if style.circle:
            radius = np.sqrt(view.u * view.u + view.v * view.v)
            picture *= np.clip((np.float32(style.circle) - radius) * 60 + 1, 0, 1)
            self.label[radius > style.circle] = BACKGROUND
        grain = rng.standard_normal(picture.shape, np.float32) * np.float32(style.grain)
        picture = 255 * np.sqrt(np.clip(picture, 0, 1)) + grain + np.float32(0.5)
        return np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _shade(relief: Array, view: View, style: Style, jitter: Array) -> tuple[Array, Array]:
    """(diffuse, highlight) (H, W) of a wet surface `relief` under a point lamp by the lens (Lambert, Blinn)."""
    spacing = np.float32(len(relief))
    slope_y, slope_x = (np.clip(slope * spacing, -1.8, 1.8) for slope in np.gradient(relief))
    upright = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    lx, ly, lz = (np.float32(v) for v in (style.lamp[0] + jitter[0], style.lamp[1] + jitter[1], style.lamp[2]))
    to_x, to_y = lx - view.u, ly - view.v
    distance = np.sqrt(to_x * to_x + to_y * to_y + lz * lz)
    facing = (lz - slope_x * to_x - slope_y * to_y) * upright / distance
    diffuse = np.clip(facing, 0, 1) * (lz / distance) ** 2
    half = np.sqrt(to_x * to_x + to_y * to_y + (lz + distance) ** 2)
    mirror = np.clip((lz + distance - slope_x * to_x - slope_y * to_y) * upright / half, 0, 1)
    for _ in range(6):
        mirror = mirror * mirror
    return diffuse, mirror


def _blur(picture: Array, width: float) -> Array:
    """Binomial blur of (..., H, W) with a standard deviation of `width` image heights."""
    variance = (width * picture.shape[-2]) ** 2
    while variance > 1e-3:
        side = np.float32(min(0.25, variance / 2))
        for _ in range(2):
            picture = np.swapaxes(picture, -1, -2)
            change = np.zeros_like(picture)
            step = side * (picture[..., 1:, :] - picture[..., :-1, :])
            change[..., :-1, :] += step
            change[..., 1:, :] -= step
            picture = picture + change
        variance -= 2 * float(side)
    return picture
