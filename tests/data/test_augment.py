"""Views: one draw moves image, mask and logits alike, in the direction and by the amount that is said."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtkd_cache.data.augment import (
    Views,
    affine_row,
    apply_views,
    color_jitter,
    draw_views,
    identity_views,
    inside,
    show_images,
    to_float,
    warp,
)
from mtkd_cache.models.network import upsample
from mtkd_cache.recipe import Augmentation

WIDTH, HEIGHT = 96, 64
SIZE = (WIDTH, HEIGHT)
PAPER = Augmentation(
    affine_p=0.5,
    shift=0.1,
    scale=0.1,
    rotate=5.0,
    rgb_p=0.5,
    rgb_shift=20.0,
    brightness_contrast_p=0.5,
    brightness=0.2,
    contrast=0.2,
)
ALWAYS = replace(PAPER, affine_p=1.0, rgb_p=1.0, brightness_contrast_p=1.0)
HASHES = [f"{number:064x}" for number in np.random.default_rng(0).integers(0, 2**62, 400).astype(object) * 2**190]
WARPS = [  # shift, scale, degrees
    ((0.1, 0.0), 1.0, 0.0),
    ((0.0, -0.1), 1.0, 0.0),
    ((0.0, 0.0), 1.1, 0.0),
    ((0.0, 0.0), 0.9, 0.0),
    ((0.0, 0.0), 1.0, 5.0),
    ((0.0, 0.0), 1.0, -20.0),
    ((-0.07, 0.1), 1.1, 5.0),
    ((0.1, 0.08), 0.9, -5.0),
]


def affine(shift=(0.0, 0.0), scale=1.0, degrees=0.0, size=SIZE) -> Tensor:
    return torch.tensor(affine_row(shift, scale, degrees, size), dtype=torch.float64).reshape(1, 2, 3)


def moved(point: tuple[float, float], shift, scale, degrees, size=SIZE) -> tuple[float, float]:
    """Where a content pixel (x, y) goes: enlarged and turned clockwise (y points down) about the center, then shifted."""
    width, height = size[0] - 1, size[1] - 1
    x, y = point[0] - width / 2, point[1] - height / 2
    turn = math.radians(degrees)
    x, y = scale * (math.cos(turn) * x - math.sin(turn) * y), scale * (math.sin(turn) * x + math.cos(turn) * y)
    return x + width / 2 + shift[0] * width, y + height / 2 + shift[1] * height


def blob(center: tuple[float, float], spread: float, stride: int = 1) -> Tensor:
    """A smooth bump about a pixel of the full size, drawn on the corner-aligned grid of a stride: (1, 1, h, w), float64."""
    x = torch.linspace(0, WIDTH - 1, WIDTH // stride, dtype=torch.float64)
    y = torch.linspace(0, HEIGHT - 1, HEIGHT // stride, dtype=torch.float64)
    return torch.exp(-((x - center[0]) ** 2 + (y[:, None] - center[1]) ** 2) / (2 * spread**2))[None, None]


def centroid(maps: Tensor) -> tuple[float, float]:
    """Centre of mass of (1, 1, h, w) in pixels of the full size."""
    *_, height, width = maps.shape
    x = torch.linspace(0, WIDTH - 1, width, dtype=torch.float64)
    y = torch.linspace(0, HEIGHT - 1, height, dtype=torch.float64)
    weights = maps[0, 0].double() / maps.sum()
    return float((weights * x).sum()), float((weights * y[:, None]).sum())


@pytest.mark.parametrize(("shift", "scale", "degrees"), WARPS)
@pytest.mark.parametrize("start", [(47.5, 31.5), (30.0, 38.0), (62.0, 26.0)])
def test_image_mask_and_logits_move_to_the_same_place(start, shift, scale, degrees):
    """Image and mask at full size, logits at strides 2, 4 and 8: each within half a pixel of its own grid of the goal."""
    view = Views(affine(shift, scale, degrees).float(), torch.zeros(1, 3), torch.ones(1, 1), torch.zeros(1, 1))
    goal = moved(start, shift, scale, degrees)
    fine = blob(start, 5)
    images = (255 * fine).round().to(torch.uint8)[:, 0, :, :, None].expand(1, HEIGHT, WIDTH, 3)
    masks = (fine[:, 0] > 0.5).to(torch.uint8)
    picture, mask, valid = apply_views(images, masks, view)
    assert math.dist(centroid(picture[:, :1]), goal) < 0.5
    assert math.dist(centroid(mask[:, None]), goal) < 0.51  # nearest: half a pixel
    for stride in (2, 4, 8):
        coarse = blob(start, 5, stride)
        for size in ((HEIGHT, WIDTH), coarse.shape[2:]):
            assert math.dist(centroid(warp(coarse, view.affine, size)), goal) < stride / 2
    assert valid[0, round(goal[1]), round(goal[0])]


@pytest.mark.parametrize(("shift", "scale", "degrees"), WARPS)
def test_one_step_is_upsampling_and_then_warping(shift, scale, degrees):
    """Sampling coarse logits at the fine positions gives what upsampling as the network does and then warping would."""
    view = affine(shift, scale, degrees)
    for stride in (2, 4, 8):
        coarse = blob((40.0, 30.0), 8, stride)
        at_once = warp(coarse, view, (HEIGHT, WIDTH))
        in_turn = warp(upsample(coarse, (HEIGHT, WIDTH)), view, (HEIGHT, WIDTH))
        assert (at_once - in_turn).abs().max() < 0.03


def test_the_plain_view_upsamples_exactly_as_the_networks_do():
    coarse = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    plain = warp(coarse, identity_views(2).affine, (HEIGHT, WIDTH))
    torch.testing.assert_close(plain, upsample(coarse, (HEIGHT, WIDTH)), atol=1e-9, rtol=0)


def lit(x: int, y: int, size: tuple[int, int]) -> Tensor:
    picture = torch.zeros(1, 1, size[1], size[0], dtype=torch.float64)
    picture[0, 0, y, x] = 1
    return picture


def test_a_shift_moves_right_and_down_by_fractions_of_the_picture():
    size = (21, 11)
    seen = warp(lit(4, 3, size), affine((5 / 20, 2 / 10), size=size), (11, 21))
    torch.testing.assert_close(seen, lit(9, 5, size))


def test_a_mask_is_picked_and_not_blended():
    """Two fifths of a pixel right and down: a blend would leave the lone pixel 36 % of itself."""
    size = (21, 11)
    view = Views(affine((0.4 / 20, 0.4 / 10), size=size).float(), torch.zeros(1, 3), torch.ones(1, 1), torch.zeros(1, 1))
    mask = lit(4, 3, size)[:, 0].to(torch.uint8)
    assert torch.equal(apply_views(torch.zeros(1, 11, 21, 3, dtype=torch.uint8), mask, view)[1], mask > 0)


def test_a_scale_enlarges_about_the_center():
    size = (21, 11)
    assert warp(lit(13, 6, size), affine(scale=2, size=size), (11, 21))[0, 0, 7, 16] == pytest.approx(1)
    assert warp(lit(16, 7, size), affine(scale=0.5, size=size), (11, 21))[0, 0, 6, 13] == pytest.approx(1)


def test_a_rotation_is_clockwise_and_keeps_angles_in_pictures_that_are_not_square():
    square = torch.rand(1, 1, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(warp(square, affine(degrees=90, size=(9, 9)), (9, 9)), torch.rot90(square, -1, (2, 3)))
    size = (21, 11)
    seen = warp(lit(10, 2, size), affine(degrees=90, size=size), (11, 21))  # 3 above the center -> 3 to its right
    torch.testing.assert_close(seen, lit(13, 5, size))


@pytest.mark.parametrize(("shift", "scale", "degrees"), [*WARPS, ((0.3, -0.4), 0.5, 40.0)])
def test_inside_marks_exactly_what_comes_from_the_sample(shift, scale, degrees):
    """Against the inverse of the forward geometry, pixel by pixel, except within 1/50 of a pixel of the border."""
    matrix = np.array([moved(point, shift, scale, degrees) for point in ((0, 0), (1, 0), (0, 1))])
    forward = (matrix[1:] - matrix[0]).T
    marked = inside(affine(shift, scale, degrees).float(), (HEIGHT, WIDTH))[0].numpy()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    source = np.linalg.solve(forward, np.stack([x.ravel(), y.ravel()]) - matrix[0][:, None])
    margin = np.min([source[0], WIDTH - 1 - source[0], source[1], HEIGHT - 1 - source[1]], axis=0).reshape(HEIGHT, WIDTH)
    assert marked[margin > 0.02].all()
    assert not marked[margin < -0.02].any()
    assert (scale >= 1 and shift == (0, 0) and degrees == 0) or not marked.all()


@pytest.mark.parametrize("size", [(96, 64), (640, 512), (37, 53)])
def test_inside_is_everything_in_the_plain_view_and_loses_whole_columns_to_a_shift(size):
    width, height = size
    assert inside(identity_views(3).affine, (height, width)).all()
    marked = inside(affine((7 / (width - 1), 0), size=size).float(), (height, width))[0]
    assert not marked[:, :7].any()
    assert marked[:, 7:].all()


@pytest.mark.parametrize("size", [(96, 64), (640, 512), (37, 53)])
def test_the_border_of_a_shrunken_sample_is_inside_however_it_is_rounded(size):
    """Shrunk about the center so that its border falls on the middle of pixels, a whole number of them from the view's."""
    width, height = size
    for pixels in range(1, 18):
        marked = inside(affine(scale=1 - 2 * pixels / (width - 1), size=size).float(), (height, width))[0, height // 2]
        assert marked.tolist() == [pixels <= x < width - pixels for x in range(width)], pixels


def test_what_a_warp_brings_in_is_neither_black_nor_counted():
    images = torch.full((1, HEIGHT, WIDTH, 3), 200, dtype=torch.uint8)
    view = Views(affine((0.2, 0.0)).float(), torch.zeros(1, 3), torch.ones(1, 1), torch.zeros(1, 1))
    picture, _, valid = apply_views(images, torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8), view)
    assert not valid.all()
    torch.testing.assert_close(picture, torch.full_like(picture, 200 / 255))


def test_view_0_is_the_plain_sample():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, HEIGHT, WIDTH, 3), generator=random, dtype=torch.uint8)
    masks = torch.randint(0, 2, (5, HEIGHT, WIDTH), generator=random, dtype=torch.uint8)
    view = draw_views(ALWAYS, 7, HASHES[:5], 0, SIZE)
    for name in ("affine", "shift", "gain", "offset"):
        assert torch.equal(getattr(view, name), getattr(identity_views(5), name))
    picture, mask, valid = apply_views(images, masks, view)
    torch.testing.assert_close(picture, images.permute(0, 3, 1, 2) / 255, atol=1e-4, rtol=0)
    assert torch.equal(mask, masks > 0)
    assert valid.all()


def test_a_view_shows_image_mask_and_edge_each_as_its_own_function_does():
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (5, HEIGHT, WIDTH, 3), generator=random, dtype=torch.uint8)
    masks = torch.randint(0, 2, (5, HEIGHT, WIDTH), generator=random, dtype=torch.uint8)
    views = draw_views(ALWAYS, 7, HASHES[:5], 1, SIZE)
    size = (HEIGHT, WIDTH)
    picture, mask, valid = apply_views(images, masks, views)
    assert torch.equal(picture, color_jitter(warp(to_float(images), views.affine, size, padding="reflection"), views))
    assert torch.equal(mask, warp(masks[:, None].float(), views.affine, size, mode="nearest")[:, 0] > 0.5)
    assert torch.equal(valid, inside(views.affine, size))
    assert torch.equal(show_images(images, views), picture)


def numbers(views: Views) -> Tensor:
    return torch.cat([views.affine.flatten(1), views.shift, views.gain, views.offset], 1)


def test_a_view_is_determined_by_seed_sample_and_number_alone():
    views = numbers(draw_views(ALWAYS, 7, HASHES[:6], 3, SIZE))
    torch.manual_seed(99)
    np.random.seed(99)
    alone = torch.cat([numbers(draw_views(ALWAYS, 7, [sha256], 3, SIZE)) for sha256 in HASHES[:6]])
    assert torch.equal(views, alone)
    assert torch.equal(views.flip(0), numbers(draw_views(ALWAYS, 7, HASHES[5::-1], 3, SIZE)))
    for other in (draw_views(ALWAYS, 8, HASHES[:6], 3, SIZE), draw_views(ALWAYS, 7, HASHES[:6], 4, SIZE)):
        assert (views != numbers(other)).any(1).all()
    assert len(views.unique(dim=0)) == 6


def test_the_draws_stay_what_they_are():
    """A cache with recorded views is read by redrawing them: another draw would pair its maps with other pictures."""
    view = draw_views(ALWAYS, 1, [64 * "a"], 2, SIZE)
    expected = [0.9744338, -0.0106923, -0.1307146, 0.0243129, 0.9744338, 0.0740975]
    expected += [0.0749903, 0.0719371, 0.0070619, 1.175315, -0.0165701]
    torch.testing.assert_close(numbers(view)[0], torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("across", "axis"), [("horizontal_flip_p", -1), ("vertical_flip_p", -2)])
def test_a_flip_exchanges_the_pixels_of_image_mask_and_maps_exactly(across, axis):
    """The flipped view is the same draw mirrored, to the bit, at each stride; so is the flip of the plain sample."""
    hashes, random = HASHES[:6], np.random.default_rng(1)
    drawn = draw_views(ALWAYS, 7, hashes, 3, SIZE)
    flipped = draw_views(replace(ALWAYS, **{across: 1.0}), 7, hashes, 3, SIZE)
    images = torch.from_numpy(random.integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8))
    masks = torch.from_numpy(random.integers(0, 2, (6, HEIGHT, WIDTH), dtype=np.uint8))
    for plain, mirrored in zip(apply_views(images, masks, drawn), apply_views(images, masks, flipped), strict=True):
        assert torch.equal(mirrored, plain.flip(axis))
    only_flipped = identity_views(6).affine * torch.tensor([-1.0, 1, 1] if axis == -1 else [1.0, -1, 1])
    for stride in (1, 2, 4, 16):
        maps = torch.from_numpy(random.normal(0, 5, (6, 2, HEIGHT // stride, WIDTH // stride)).astype(np.float32))
        assert torch.equal(warp(maps, flipped.affine, (HEIGHT, WIDTH)), warp(maps, drawn.affine, (HEIGHT, WIDTH)).flip(axis))
        fine = warp(maps, identity_views(6).affine, (HEIGHT, WIDTH))
        assert torch.equal(warp(maps, only_flipped, (HEIGHT, WIDTH)), fine.flip(axis))
        networks = upsample(maps.flip(axis), (HEIGHT, WIDTH))
        torch.testing.assert_close(warp(maps, only_flipped, (HEIGHT, WIDTH)), networks, atol=1e-3, rtol=0)


def test_flips_are_drawn_by_their_probabilities_and_change_nothing_else():
    plain = draw_views(PAPER, 7, HASHES, 3, SIZE)
    some = draw_views(replace(PAPER, horizontal_flip_p=0.5, vertical_flip_p=0.25), 7, HASHES, 3, SIZE)
    signs = (some.affine[:, [0, 1], [0, 1]] / plain.affine[:, [0, 1], [0, 1]]).round()
    assert (signs < 0).float().mean(0).tolist() == pytest.approx([0.5, 0.25], abs=0.06)
    assert ((signs[:, 0] < 0) & (signs[:, 1] < 0)).float().mean() == pytest.approx(0.125, abs=0.05)
    assert torch.equal(some.affine[:, :, :2], plain.affine[:, :, :2] * signs[:, None, :])
    assert torch.equal(numbers(some)[:, 6:], numbers(plain)[:, 6:]) and torch.equal(some.affine[:, :, 2], plain.affine[:, :, 2])


def test_the_draws_fill_the_paper_codes_ranges():
    views = draw_views(PAPER, 0, HASHES, 1, SIZE)
    aspect = (WIDTH - 1) / (HEIGHT - 1)
    a, b = views.affine[:, 0, 0].double(), views.affine[:, 0, 1].double() * aspect
    scale, degrees = 1 / torch.hypot(a, b), torch.rad2deg(torch.atan2(b, a))
    shift = -torch.linalg.solve(views.affine[:, :, :2].double(), views.affine[:, :, 2:].double())[..., 0] / 2
    plain = (numbers(views)[:, :6] == numbers(identity_views(1))[:, :6]).all(1)
    for values, low, high in (
        (scale, 0.9, 1.1),
        (degrees, -5, 5),
        (shift[:, 0], -0.1, 0.1),
        (shift[:, 1], -0.1, 0.1),
        (255 * views.shift, -20, 20),
        (views.gain, 0.8, 1.2),
        (views.offset, -0.2, 0.2),
    ):
        assert low - 1e-4 <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high + 1e-4
    for share in (plain.double().mean(), (views.shift == 0).all(1).double().mean(), (views.gain == 1).double().mean()):
        assert 0.4 < share < 0.6  # p = 1/2 each; 400 draws


def test_colors_are_the_formula_and_touch_no_mask():
    images = torch.rand(2, 3, 4, 5)
    views = Views(
        identity_views(2).affine,
        torch.tensor([[0.05, -0.02, 0.0], [0.0, 0.3, -0.3]]),
        torch.tensor([[1.2], [0.8]]),
        torch.tensor([[-0.1], [0.2]]),
    )
    ours = color_jitter(images, views)
    for b in range(2):
        for c in range(3):
            for y in range(4):
                for x in range(5):
                    shifted = min(max(float(images[b, c, y, x] + views.shift[b, c]), 0), 1)
                    naive = min(max(float(views.gain[b, 0]) * shifted + float(views.offset[b, 0]), 0), 1)
                    assert float(ours[b, c, y, x]) == pytest.approx(naive, abs=1e-6)
    masks = torch.randint(0, 2, (2, 4, 5), dtype=torch.uint8)
    assert torch.equal(apply_views((images * 255).permute(0, 2, 3, 1).to(torch.uint8), masks, views)[1], masks > 0)
