"""Recipes: what ships, what is refused, what an override does."""

import itertools
from importlib import resources

import pytest

from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import load_recipe, recipe_from, shipped

PAPER = resources.files("mtkd_cache.recipes").joinpath("paper.toml").read_text()


def test_the_paper_recipe_is_the_papers_setting():
    recipe = load_recipe("paper")
    assert recipe.teacher.arch == "segformer-mit_b3"
    assert (recipe.teacher.epochs, recipe.teacher.batch, recipe.teacher.lr, recipe.teacher.final_lr) == (100, 8, 5e-4, 1.5e-6)
    assert (recipe.student.epochs, recipe.student.batch, recipe.student.lr, recipe.student.final_lr) == (60, 8, 1e-3, 2.5e-5)
    assert (recipe.distillation.temperature, recipe.distillation.weight, recipe.distillation.combine) == (4, 3, "sum")
    assert recipe.augmentation.shift == recipe.augmentation.scale == 0.1
    assert (recipe.augmentation.rotate, recipe.augmentation.rgb_shift) == (5, 20)
    assert recipe.augmentation.brightness == recipe.augmentation.contrast == 0.2
    assert recipe.augmentation.affine_p == recipe.augmentation.rgb_p == recipe.augmentation.brightness_contrast_p == 0.5
    assert (recipe.cache.step, recipe.cache.views) == (0.25, 1)


@pytest.mark.parametrize(("stage", "gamma"), [("teacher", 0.94356), ("student", 0.94037)])
def test_the_rate_falls_exponentially_from_lr_to_final_lr(stage, gamma):
    stage = getattr(load_recipe("paper"), stage)
    rates = [stage.learning_rate(epoch) for epoch in range(stage.epochs + 1)]
    assert rates[0] == stage.lr
    assert rates[-1] == pytest.approx(stage.final_lr)
    for before, after in itertools.pairwise(rates):
        assert after / before == pytest.approx(gamma, abs=5e-6)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_loads_and_comes_back_from_its_own_text(name):
    recipe = load_recipe(name)
    assert recipe_from(recipe.as_dict(), "again") == recipe


def test_overrides(tmp_path):
    recipe = load_recipe("paper", ["student.epochs=3", "seed=5", "teacher.arch=mininetv2", "student.lr=1", "cache.step=0.5"])
    assert (recipe.student.epochs, recipe.seed, recipe.teacher.arch, recipe.student.lr, recipe.cache.step) == (
        3,
        5,
        "mininetv2",
        1.0,
        0.5,
    )
    path = tmp_path / "mine.toml"
    path.write_text(PAPER)
    assert load_recipe(str(path)) == load_recipe("paper")
    assert load_recipe(str(path), ["student.epochs=4"]).student.epochs == 4


def test_values_override_the_recipe_and_its_overrides_where_they_are_not_none():
    recipe = load_recipe("paper", ["seed=5", "student.epochs=3"], {"seed": 7, "student.arch": 'a"b', "cache.step": None})
    assert (recipe.seed, recipe.student.epochs, recipe.student.arch, recipe.cache.step) == (7, 3, 'a"b', 0.25)
    with pytest.raises(MtkdError, match=r"cache\.views = 0 is out of range"):
        load_recipe("paper", values={"cache.views": 0})
    with pytest.raises(MtkdError, match=r"\[student\]: unknown key 'architecture'"):
        load_recipe("paper", values={"student.architecture": "mininetv2"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.epoch=3", r"\[student\]: unknown key 'epoch'\. Known here: arch, weights, epochs"),
        ("stage3.epochs=3", "unknown key 'stage3'"),
        ("colour=3", "unknown key 'colour'"),
        ("student=3", r"\[student\]: expected a section"),
        ("seed.x=3", "seed is not a section"),
        ("student.epochs", r"write KEY=VALUE, as student\.epochs=30"),
        ("student.epochs=three", "epochs = 'three' should be of type int"),
        ("student.epochs=3.5", "epochs = 3.5 should be of type int"),
        ("student.epochs=true", "epochs = True should be of type int"),
        ("student.lr=fast", "lr = 'fast' should be of type float"),
        ("teacher.arch=3", "arch = 3 should be of type str"),
        ("seed=-1", "seed = -1 is out of range"),
        ("student.epochs=0", r"student\.epochs = 0 is out of range"),
        ("teacher.batch=0", r"teacher\.batch = 0 is out of range"),
        ("teacher.lr=0", r"teacher\.lr = 0\.0 is out of range"),
        ("student.lr=nan", r"student\.lr = nan is out of range"),
        ("student.lr=inf", r"student\.lr = inf is out of range"),
        ("student.final_lr=1", r"student\.final_lr = 1\.0 is out of range\. Give more than 0 and at most lr, 0\.001"),
        ("student.final_lr=0", r"student\.final_lr = 0\.0 is out of range"),
        ("distillation.temperature=0", r"distillation\.temperature = 0\.0 is out of range"),
        ("distillation.temperature=nan", r"distillation\.temperature = nan is out of range"),
        ("distillation.weight=-1", r"distillation\.weight = -1\.0 is out of range"),
        ("distillation.combine=mean", r"distillation\.combine = 'mean' is out of range"),
        ("augmentation.affine_p=1.5", r"augmentation\.affine_p = 1\.5 is out of range"),
        ("augmentation.scale=1", r"augmentation\.scale = 1\.0 is out of range"),
        ("augmentation.rotate=-5", r"augmentation\.rotate = -5\.0 is out of range\. Give from 0 to 180"),
        ("augmentation.shift=nan", r"augmentation\.shift = nan is out of range"),
        ("cache.views=0", r"cache\.views = 0 is out of range"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(override, message):
    with pytest.raises(MtkdError, match=message):
        load_recipe("paper", [override])


def test_a_missing_key(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text("\n".join(line for line in PAPER.splitlines() if not line.startswith("temperature")))
    with pytest.raises(MtkdError, match=r"short\.toml, \[distillation\]: 'temperature' is missing"):
        load_recipe(str(path))


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(MtkdError, match=r"recipe 'papre': there is no such recipe\. Name one of .*paper"):
        load_recipe("papre")


@pytest.mark.parametrize("content", [b"student = [", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(MtkdError, match=r"bad\.toml: not TOML"):
        load_recipe(str(path))


def test_a_recipe_file_that_is_absent(tmp_path):
    with pytest.raises(MtkdError, match=r"absent\.toml: there is no such file"):
        load_recipe(str(tmp_path / "absent.toml"))
