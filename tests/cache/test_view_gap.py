"""What a student is shown against what its teachers say of the picture that it sees."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import TeacherRunner, Teachers
from mtkd_cache.cache.view_gap import means, measure_view_gap, parts_of, samples_of, told, view_gap
from mtkd_cache.cli.main import main
from mtkd_cache.data.augment import apply_views, draw_views, inside, warp
from mtkd_cache.evaluation.model_card import card_text
from mtkd_cache.models.network import upsample
from mtkd_cache.models.records import read_run
from mtkd_cache.recipe import load_recipe
from mtkd_cache.training.student import train_student

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

    def brightness(images: torch.Tensor) -> list[torch.Tensor]:
        return [40 * images.mean(1)] * 2

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
    gaps = measure_view_gap(
        lambda images: [native(0, images), native(1, images)],
        organ_store,
        rows,
        RANGES,
        STEP,
        TEMPERATURE,
        accelerator.device,
        draws=3,
    )
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


def test_build_verify_and_inspect_tell_it_and_the_run_and_its_card_carry_it(
    organ_store, organ_teachers, copy_of, tmp_path, recipe, accelerator
):
    """Measured once for the same maps; a cache of recorded views leaves the quantization alone."""
    cache, teachers = tmp_path / "logits.zarr", copy_of(organ_teachers)
    at = ["--store", organ_store.url, "--teachers", str(teachers), "--cache", str(cache)]

    def run(*words: str) -> tuple[dict, str]:
        done = CliRunner().invoke(main, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    built, said = run("build", *at)
    gap = built["view_gap_kl_nats"]
    rows = samples_of(organ_store, organ_store.rows("train"))
    runner = TeacherRunner(Teachers.load(organ_teachers, organ_store).networks, accelerator)
    live, settings = (lambda images: [runner.native(0, images), runner.native(1, images)]), (STEP, TEMPERATURE)
    assert gap == measure_view_gap(live, organ_store, rows, RANGES, *settings, accelerator.device)
    assert f"mean KL to live teachers of the augmented pictures: {told(gap)}" in said
    assert LogitCache.open(str(cache)).manifest.view_gap_kl_nats == gap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtkd_cache.cache.view_gap.measure_view_gap", lambda *_: pytest.fail("measured again"))
        assert run("build", *at)[0]["view_gap_kl_nats"] == gap
    inspected, said = run("inspect", "--cache", str(cache))
    assert inspected["view_gap_kl_nats"] == gap and told(gap) in said
    verified, said = run("verify", *at, "--live", "12")
    measured = verified["live"]["view_gap_kl_nats"]
    assert measured.keys() == gap.keys() and measured != gap and told(measured) in said

    run_folder = tmp_path / "run"
    train_student(organ_store, run_folder, recipe("student.epochs=1"), accelerator, LogitCache.open(str(cache)))
    assert read_run(run_folder).view_gap_kl_nats == gap
    assert f"by a mean KL of {told(gap)}" in card_text(run_folder)

    grown, _ = run("build", *at, "--views", "2")
    for anatomy, errors in grown["by_anatomy"].items():
        assert grown["view_gap_kl_nats"][anatomy] == {"quantization": errors["mean_kl_nats"], "recipe": errors["mean_kl_nats"]}
