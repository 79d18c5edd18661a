"""What a student is shown against what its teachers say of the picture that it sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtkd_cache.cache.teacher_runner import TeacherRunner, Teachers
from mtkd_cache.cache.view_gap import means, measure_view_gap, parts_of, samples_of, view_gap
from mtkd_cache.data.augment import apply_views, draw_views, inside, warp
from mtkd_cache.models.network import upsample
from mtkd_cache.recipe import load_recipe

RANGES = load_recipe("paper").augmentation
ALWAYS = replace(RANGES, affine_p=1.0, rgb_p=1.0, brightness_contrast_p=1.0)
STEP, TEMPERATURE = 0.25, 4.0
HASHES = [f"{number:064x}" for number in range(10**50, 10**50 + 3)]


def naive(live: torch.Tensor, plain: torch.Tensor, affine: torch.Tensor, size: tuple[int, int]) -> float:
    """KL of one map from the definition, over the pixels that show the sample."""
    shown = warp((torch.round(plain.double() / STEP) * STEP)[None, None], affine[None].double(), size)[0, 0]
    answer = upsample(live.double()[None, None], size)[0, 0]
    valid = inside(affine[None], size)[0]
    p, q = (torch.softmax(values[valid] / TEMPERATURE, 0) for values in (answer, shown))
    return float((p * (p / q).log()).sum())


def test_it_is_the_kl_of_the_definition():
    random = torch.Generator().manual_seed(0)
    live, plain = (8 * torch.randn(3, 8, 10, generator=random) for _ in range(2))
    views = draw_views(ALWAYS, None, HASHES, 1, (40, 32))
    gaps = view_gap(live, plain, views, (32, 40), STEP, TEMPERATURE)
    for index in range(3):
        assert float(gaps[index]) == pytest.approx(naive(live[index], plain[index], views.affine[index], (32, 40)), rel=1e-4)


def test_the_parts_are_told_apart():
    parts = parts_of(replace(RANGES, horizontal_flip_p=0.5))
    assert {name: (part.affine_p, part.rgb_p, part.horizontal_flip_p) for name, part in parts.items()} == {
        "quantization": (0, 0, 0),
        "geometry": (1, 0, 0.5),
        "color": (0, 1, 0),
        "recipe": (0.5, 0.5, 0.5),
    }
    assert parts_of(replace(RANGES, affine_p=0.0))["geometry"].affine_p == 0


def test_a_teacher_of_one_pixel_has_no_geometry_gap_but_one_of_colors(organ_store):
    """A teacher whose logit is a pixel's brightness follows every warp, but for the resampling; colors it does not foresee."""

    def brightness(_: int, images: torch.Tensor) -> torch.Tensor:
        return 40 * images.mean(1)

    rows = samples_of(organ_store, organ_store.rows("train"))
    gaps = measure_view_gap(brightness, organ_store, rows, RANGES, STEP, TEMPERATURE, torch.device("cpu"))
    for by_part in gaps.values():
        assert by_part["quantization"] < 1e-3 < by_part["recipe"]
    colorless = replace(RANGES, rgb_p=0.0, brightness_contrast_p=0.0)
    still = measure_view_gap(brightness, organ_store, rows, colorless, STEP, TEMPERATURE, torch.device("cpu"))
    assert all(by_part["color"] == by_part["quantization"] for by_part in still.values())


def test_measured_on_teachers_it_is_the_mean_over_samples_and_views(organ_store, organ_teachers, accelerator):
    teachers = Teachers.load(organ_teachers, organ_store)
    native = TeacherRunner(teachers.networks, accelerator).native
    rows = samples_of(organ_store, organ_store.rows("train"), 2)
    gaps = measure_view_gap(native, organ_store, rows, RANGES, STEP, TEMPERATURE, accelerator.device, draws=3)
    images, masks = map(torch.from_numpy, organ_store.read(rows))
    found = []
    for number in (1, 2, 3):
        views = draw_views(RANGES, None, organ_store.hashes[rows], number, organ_store.size)
        seen = apply_views(images, masks, views)[0]
        with torch.inference_mode():
            live, plain = native(1, seen), native(1, images.permute(0, 3, 1, 2) / 255)
        found += [naive(live[index], plain[index], views.affine[index], (64, 64)) for index in range(2)]
    assert gaps["tongue"]["recipe"] == pytest.approx(np.mean(found), rel=1e-3)
    assert means(gaps)["recipe"] == pytest.approx((gaps["kidney"]["recipe"] + gaps["tongue"]["recipe"]) / 2)


def test_the_samples_do_not_depend_on_the_order_of_rows(organ_store):
    rows = organ_store.rows("train")
    chosen = samples_of(organ_store, rows, 3)
    assert chosen.tolist() == samples_of(organ_store, rows[::-1], 3).tolist()
    assert sorted(organ_store.hashes[rows])[:3] == list(organ_store.hashes[chosen])
