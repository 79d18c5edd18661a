"""The scene's layers while it is painted back to front, and the lighting that turns them into an image."""

import numpy as np

from mtkd_cache.phantom.shapes import Array, View, noise

RGB = tuple[float, float, float]
BACKGROUND = -1


class Style:
    """The look of one surgery, drawn at random: lamp, camera, colors of its tissues. Lengths in image heights."""

    def __init__(self, rng: np.random.Generator, tissues: int) -> None:
        fat = rng.uniform(0, 1)
        self.tints = rng.uniform(0.84, 1.16, (tissues, 3)) * rng.uniform(0.82, 1.18, (tissues, 1))
        self.fat = (228 + 12 * fat, 158 + 44 * fat, 76 + 70 * rng.uniform(0, 1) * fat + 10 * fat)
        self.obesity = rng.uniform(0, 1)
        self.lamp = (rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.2), rng.uniform(0.55, 1.05))
        self.ambient = rng.uniform(0.08, 0.28)
        self.exposure = rng.uniform(0.36, 0.64)
        self.balance = (rng.uniform(0.94, 1.18), rng.uniform(0.88, 1.04), rng.uniform(0.75, 1.25))
        self.saturation = rng.uniform(0.65, 1.18)
        self.shine = rng.uniform(0.25, 1.0)
        self.blur = rng.uniform(0.0, 0.005)
        self.grain = rng.uniform(0.5, 4.0)
        self.haze = max(0.0, rng.uniform(-0.15, 0.14))
        self.circle = rng.uniform(0.56, 0.66) if rng.uniform() < 0.3 else 0.0
        self.texture = rng.uniform(0.6, 1.3)
        self.vessels = rng.uniform(0.3, 1.0)
        self.blood = rng.uniform(0, 0.7)
        self.instruments = rng.uniform(0.15, 0.75)


def rgb(red: float, green: float, blue: float) -> Array:
    """Three factors or levels as (3, 1, 1)."""
    return np.array([red, green, blue], np.float32)[:, None, None]


def linear(color: RGB) -> Array:
    """Display color 0..255 to linear light 0..1 (3, 1, 1), with gamma 2."""
    return rgb(*color) ** 2 / np.float32(255 * 255)


def mix(first: Array, second: Array, share: Array) -> Array:
    """`first` where `share` (H, W) is 0, `second` where it is 1; colors (3, 1, 1) or (3, H, W)."""
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
        self,
        label: int,
        inside: Array,
        relief: Array,
        color: Array,
        *,
        gloss: float = 0.5,
        light: float = 1.0,
        shadow: float = 0.035,
        soft: float = 1.0,
    ) -> None:
        """Paint a tissue over what is there.

        Args:
            label: the anatomy's index, or BACKGROUND.
            inside: (H, W) distance to its border, positive inside; the label is set where it is > 0.
            relief: (H, W) height of its surface.
            color: (3, H, W) or (3, 1, 1) linear albedo.
            gloss: strength of its highlights.
            light: how much light reaches it (less deep in the scene).
            shadow: width of the dark rim it casts on what lies behind.
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
        albedo += ((color[:, *box] if color.shape[1:] == self.label.shape else color) - albedo) * share
        self.label[box] = np.where(inside > 0, np.int8(label), self.label[box])

    def part(self, box: tuple[slice, slice]) -> "Canvas":
        """A copy of a rectangle of it: rows and columns."""
        cut = Canvas((0, 0))
        for name, layer in vars(self).items():
            setattr(cut, name, layer[..., *box].copy())
        return cut

    def photograph(
        self, rng: np.random.Generator, view: View, style: Style, grain_rng: np.random.Generator | None = None
    ) -> Array:
        """The lit image, uint8 (H, W, 3). Sets `label` to BACKGROUND outside a round field of view, where there is one.

        grain_rng: where the grain is drawn from instead of `rng`.
        """
        relief = _blur(self.relief, 0.004)
        diffuse, highlight = _shade(relief, view, style, rng.uniform(-0.08, 0.08, 2))
        glint = np.clip(0.8 + 0.5 * noise(rng, view.shape, 45), 0, 2)
        image = self.albedo * ((diffuse + np.float32(style.ambient)) * self.light)
        brightness = np.sqrt(np.float32(style.exposure) ** 2 / (image.mean(dtype=np.float64) + 1e-3))
        image *= np.float32(brightness)
        gray = image.mean(axis=0)
        image = gray + (image - gray) * np.float32(style.saturation)
        image += highlight * self.gloss * self.light * glint * np.float32(style.shine)
        image += (np.float32(0.35) - image) * np.float32(style.haze)
        image = _blur(image * rgb(*style.balance), style.blur)
        if style.circle:
            radius = np.sqrt(view.u * view.u + view.v * view.v)
            image *= np.clip((np.float32(style.circle) - radius) * 60 + 1, 0, 1)
            self.label[radius > style.circle] = BACKGROUND
        grain = (grain_rng or rng).standard_normal(image.shape, np.float32) * np.float32(style.grain)
        image = 255 * np.sqrt(np.clip(image, 0, 1)) + grain + np.float32(0.5)
        return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _shade(relief: Array, view: View, style: Style, jitter: Array) -> tuple[Array, Array]:
    """(diffuse, highlight), each (H, W), of a wet surface `relief` under a point lamp by the lens (Lambert, Blinn)."""
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


def _blur(image: Array, width: float) -> Array:
    """Binomial blur of (..., H, W) with a standard deviation of `width` image heights."""
    variance = (width * image.shape[-2]) ** 2
    while variance > 1e-3:
        side = np.float32(min(0.25, variance / 2))
        for _ in range(2):
            image = np.swapaxes(image, -1, -2)
            change = np.zeros_like(image)
            step = side * (image[..., 1:, :] - image[..., :-1, :])
            change[..., :-1, :] += step
            change[..., 1:, :] -= step
            image = image + change
        variance -= 2 * float(side)
    return image
