"""Views: one augmented look at a sample, drawn once and applied to image, mask and logits each at its own resolution.

Geometry is an affine map in normalized, corner-aligned coordinates: -1 and +1 are the centers of the first and the last pixel of
an axis. The networks upsample their logits corner-aligned too (see `mtkd_cache.models.network.upsample`), so pixel i of w coarse
ones lies at pixel i * (W - 1) / (w - 1) of W fine ones, and one map is right for all resolutions. Sampling a coarse map at the
positions of the fine pixels therefore upsamples and warps it in a single step.

Ranges and order (affine, RGB shift, brightness and contrast) are those of Kolbinger et al. 2023's public code, which
uses albumentations: ShiftScaleRotate, RGBShift, RandomBrightnessContrast. As there, each of the three is drawn with its own
probability, contrast scales about black, and brightness is a fraction of full scale (brightness_by_max). Unlike there, pixels
that a warp brings in from beyond the edge, mirrored, count in no loss. A view may be flipped besides, which that code never does:
a coordinate is negated, and that exchanges the pixels of a corner-aligned grid exactly, at every resolution.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_cache.data.sobol import sobol_point
from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Augmentation

NUMBERS = 14  # that determine a view: whether each of three changes is made, nine values, two flips
EDGE = 1 + 1e-4  # with a tolerance, so that rounding of the grid excludes no pixel on the border


class Views(NamedTuple):
    """A batch of B views: drawn by `draw_views`, applied by `apply_views`. A DataLoader collates single views to a batch.

    Attributes:
        affine: (B, 2, 3), from a pixel of the view to the position in the sample that it shows, as torch's affine_grid takes it.
        shift, gain, offset: (B, 3), (B, 1), (B, 1): the view's color is clamp(gain * clamp(rgb + shift) + offset), rgb in [0, 1].
    """

    affine: Tensor
    shift: Tensor
    gain: Tensor
    offset: Tensor

    def to(self, device: torch.device) -> "Views":
        """The same views on a device."""
        return Views(*(values.to(device, non_blocking=True) for values in self))


def draw_views(ranges: Augmentation, seed: int | None, hashes: Sequence[str], view: int, size: tuple[int, int]) -> Views:
    """Draw one view of each of B samples. A view is determined by (seed, sample, view number) alone.

    Args:
        ranges: what is drawn, as load_recipe("paper").augmentation.
        seed: of views that are drawn independently. None: the views of a sample are a scrambled Sobol sequence of its own, of
            which few cover the ranges evenly.
        hashes: the samples' content hashes, `SampleStore.hashes` of their rows.
        view: the view's number; 0 is the plain sample.
        size: (width, height) of the images in pixels.

    Returns:
        B views, on the CPU.

    Reference: ranges, order and probabilities are those of Kolbinger et al. 2023's public code.
    """
    rows = np.stack([_draw(ranges, seed, sha256, view, size) for sha256 in hashes]).astype(np.float32)
    values = torch.from_numpy(rows)
    return Views(values[:, :6].reshape(-1, 2, 3), values[:, 6:9], values[:, 9:10], values[:, 10:11])


def identity_views(count: int) -> Views:
    """View 0, the plain sample, for a number of samples."""
    return Views(torch.eye(2, 3).repeat(count, 1, 1), torch.zeros(count, 3), torch.ones(count, 1), torch.zeros(count, 1))


def _draw(ranges: Augmentation, seed: int | None, sha256: str, view: int, size: tuple[int, int]) -> np.ndarray:
    row = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], float)
    if view == 0:
        return row
    if seed is None:
        uniform = sobol_point(sha256, view - 1, NUMBERS)
    else:
        uniform = np.random.default_rng([seed, view, int(sha256[:16], 16)]).random(NUMBERS)
    chosen = uniform[:3] < (ranges.affine_p, ranges.rgb_p, ranges.brightness_contrast_p)
    spread = 2 * uniform[3:12] - 1
    if chosen[0]:
        row[:6] = affine_row(ranges.shift * spread[:2], 1 + ranges.scale * spread[2], ranges.rotate * spread[3], size)
    if chosen[1]:
        row[6:9] = ranges.rgb_shift / 255 * spread[4:7]
    if chosen[2]:
        row[9] = 1 + ranges.contrast * spread[7]
        row[10] = ranges.brightness * spread[8]
    flips = uniform[12:] < (ranges.horizontal_flip_p, ranges.vertical_flip_p)  # last: the rest is as without flips
    row[:6] = (row[:6].reshape(2, 3) * [*np.where(flips, -1, 1), 1]).reshape(6)
    return row


def affine_row(shift: npt.ArrayLike, scale: float, degrees: float, size: tuple[int, int]) -> np.ndarray:
    """The affine map from view to sample, (6,) in row-major order, that transforms the content of an image about its center.

    Args:
        shift: (2,), fractions of width and height, to the right and down.
        scale: enlargement.
        degrees: rotation, clockwise on the screen.
        size: (width, height) of the image in pixels.
    """
    width, height = size[0] - 1, size[1] - 1
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.array([[cos, sin * height / width], [-sin * width / height, cos]]) / scale
    translation = -matrix @ (2 * np.array(shift))
    return np.concatenate([matrix, translation[:, None]], axis=1).reshape(6)


def to_float(images: Tensor) -> Tensor:
    """Images uint8 (B, H, W, 3) as a network's input, float32 (B, 3, H, W) in [0, 1]. Raises MtkdError for others."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise MtkdError(f"images are uint8 (B, H, W, 3), these are {images.dtype} {tuple(images.shape)}. Give them as stored.")
    return images.permute(0, 3, 1, 2).float() / 255


def warp(maps: Tensor, affine: Tensor, size: tuple[int, int], mode: str = "bilinear", padding: str = "border") -> Tensor:
    """Warp maps, and resize them in the same step: teachers' logits at their native stride become logits at the images' size.

    Args:
        maps: float (B, C, h, w).
        affine: float (B, 2, 3), `Views.affine`.
        size: (H, W) of the result; it need not be (h, w).
        mode: "bilinear" or "nearest", see torch's grid_sample.
        padding: "border", "reflection" or "zeros": what is shown beyond the sample's edge. Those pixels are not `valid` in what
            `apply_views` returns and count in no loss.

    Returns:
        float (B, C, H, W).
    """
    return _sample(maps, _grid(affine.to(maps.dtype), size), mode, padding)


def _grid(affine: Tensor, size: tuple[int, int]) -> Tensor:
    """The positions in the sample, (B, H, W, 2), that the pixels of views show."""
    return F.affine_grid(affine, [len(affine), 1, *size], align_corners=True)


def _sample(maps: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    return F.grid_sample(maps, grid, mode=mode, padding_mode=padding, align_corners=True)


def inside(affine: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of the views show the sample and not what lies beyond its edge: bool (B, H, W)."""
    return _inside(_grid(affine, size))


def _inside(grid: Tensor) -> Tensor:
    return (grid.abs() <= EDGE).all(-1)


def color_jitter(images: Tensor, views: Views) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] in the views' colors."""
    shifted = (images + views.shift[:, :, None, None]).clamp(0, 1)
    return (views.gain[:, :, None, None] * shifted + views.offset[:, :, None, None]).clamp(0, 1)


def apply_views(images: Tensor, masks: Tensor, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Show stored images and masks through views.

    Args:
        images: uint8 (B, H, W, 3).
        masks: uint8 (B, H, W), 0 and 1.
        views: B views, on the device of the images.

    Returns:
        images float (B, 3, H, W) in [0, 1]; masks bool (B, H, W); valid bool (B, H, W), the pixels that show the sample and not
        what lies beyond its edge.

    Raises:
        MtkdError: images of another type or shape.
    """
    _, height, width = masks.shape
    grid = _grid(views.affine, (height, width))
    shown = _sample(masks[:, None].float(), grid, "nearest", "border")[:, 0] > 0.5
    return _show(images, views, grid), shown, _inside(grid)


def show_images(images: Tensor, views: Views) -> Tensor:
    """The images that `apply_views` returns, without masks: float (B, 3, H, W)."""
    _, height, width, _ = images.shape
    return _show(images, views, _grid(views.affine, (height, width)))


def _show(images: Tensor, views: Views, grid: Tensor) -> Tensor:
    warped = _sample(to_float(images), grid, "bilinear", "reflection")
    return color_jitter(warped, views).contiguous(memory_format=torch.channels_last)
