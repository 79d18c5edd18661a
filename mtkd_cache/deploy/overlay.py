"""A prediction drawn on its frame: filled and outlined regions, their names, and a legend."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mtkd_cache.evaluation.frames import Prediction, topmost

# The smallest difference of two of them is 30 in CIELAB for normal sight, protanopia, deuteranopia and tritanopia (Machado et al.
# 2009) alike; of Okabe and Ito's eight colors it is 16. Found by exchange on a grid of sRGB, away from the reds of tissue.
COLORS = np.array(
    [
        (255, 255, 0),
        (96, 160, 255),
        (0, 255, 128),
        (255, 128, 0),
        (96, 0, 160),
        (192, 255, 224),
        (192, 0, 0),
        (0, 64, 96),
        (160, 160, 192),
        (96, 0, 255),
        (160, 96, 96),
    ],
    np.uint8,
)
LARGE = 640  # pixels: frames whose longer side is shorter are drawn enlarged by a whole number, so that names can be read
FILL, CASING = 0.3, 0.6  # opacity of a region, and of the line around its outline: black, or white around a color below DARK
DARK = 90
SMALLEST = 0.002  # share of the picture from which a region is named
WHITE, GRAY, BLACK = (255, 255, 255), (110, 110, 110), (0, 0, 0)


def colors_of(count: int) -> np.ndarray:
    """uint8 (1 + count, 3): black for the background, then a color for each anatomy. After eleven they repeat."""
    return np.concatenate([np.zeros((1, 3), np.uint8), COLORS[np.arange(count) % len(COLORS)]])


def overlay(frame: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Draw a prediction.

    Every mask is outlined, also where another lies over it; the anatomy on top of a pixel fills it (`Prediction.labels`). Where
    outlines coincide, the same rule says which is seen.

    Args:
        frame: uint8 RGB (H, W, 3).
        prediction: of this frame.

    Returns:
        the picture, uint8 RGB, of even width and height (as H.264 wants them): the frame, enlarged where it is smaller than
        LARGE, above the legend.
    """
    scale = -(-LARGE // max(frame.shape[:2]))
    colors = colors_of(len(prediction.anatomies))
    labels = prediction.labels.repeat(scale, 0).repeat(scale, 1)
    picture = frame.repeat(scale, 0).repeat(scale, 1)
    _blend(picture, labels > 0, colors[labels], FILL)
    outlines, casings = _outlines(
        F.interpolate(prediction.margins[None], scale_factor=scale)[0], max(1, min(labels.shape) // 200)
    )
    _blend(picture, casings > 0, np.where(colors.mean(1) < DARK, 255, 0).astype(np.uint8)[casings][..., None], CASING)
    _blend(picture, outlines > 0, colors[outlines], 1)
    present = {anatomy: bool(mask.any()) for anatomy, mask in zip(prediction.anatomies, prediction.masks, strict=True)}
    return _write_names(picture, labels, present, colors)


def _blend(picture: np.ndarray, where: np.ndarray, colors: np.ndarray, opacity: float) -> None:
    picture[where] = (1 - opacity) * picture[where] + opacity * colors[where]


def _outlines(margins: Tensor, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The outlines of all masks, `width` pixels wide, and the lines around them, each as labels uint8 (H, W)."""
    masks = margins > 0
    inner = -F.max_pool2d(-masks.float(), 2 * width + 1, 1, width) > 0
    outlines = topmost(margins, masks & ~inner)
    near = F.max_pool2d(outlines[None].float(), 2 * width + 1, 1, width)[0].to(torch.uint8)
    return outlines.cpu().numpy(), torch.where(outlines > 0, 0, near).cpu().numpy()


def _write_names(picture: np.ndarray, labels: np.ndarray, present: dict[str, bool], colors: np.ndarray) -> np.ndarray:
    """The picture with names in its regions, over a legend of all anatomies, the present ones bright."""
    names = [name.replace("_", " ") for name in present]
    height, width = labels.shape
    size = max(12, min(height, width) // 36)
    font, line = ImageFont.load_default(size), round(1.6 * size)
    column = round(max(map(font.getlength, names))) + 2 * line
    columns = max(1, width // column)
    rows = -(-len(names) // columns)
    sides = max(width, column), height + rows * line
    canvas = Image.new("RGB", (sides[0] + sides[0] % 2, sides[1] + sides[1] % 2))
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for number, (name, bright) in enumerate(zip(names, present.values(), strict=True)):
        x, y = number % columns * column + line // 4, height + number // columns * line
        draw.rectangle((x, y + line // 5, x + line - line // 3, y + line - line // 5), tuple(colors[number + 1].tolist()), WHITE)
        draw.text((x + line, y + line // 2), name, WHITE if bright else GRAY, font, anchor="lm")
    for number, (x, y) in _places(labels).items():
        half = font.getlength(names[number - 1]) / 2 + 2
        place = (min(max(x, half), max(width - half, half)), min(max(y, line / 2), height - line / 2))
        draw.text(place, names[number - 1], WHITE, font, anchor="mm", stroke_width=max(1, line // 12), stroke_fill=BLACK)
    return np.asarray(canvas)


def _places(labels: np.ndarray) -> dict[int, tuple[int, int]]:
    """Where to name each label's region: its pixel (x, y) that is nearest to its center. Small regions have no place."""
    step = max(1, min(labels.shape) // 128)
    coarse = labels[::step, ::step]
    places = {}
    for number in np.unique(coarse[coarse > 0]).tolist():
        rows, columns = np.nonzero(coarse == number)
        if len(rows) >= SMALLEST * coarse.size:
            nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            places[number] = (int(columns[nearest]) * step, int(rows[nearest]) * step)
    return places
