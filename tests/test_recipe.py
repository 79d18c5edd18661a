"""Recipes: what ships, what is refused, what an override does."""

from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest

from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import load_recipe, recipe_from, shipped

PAPER = resources.files("mtkd_cache.recipes").joinpath("paper.toml").read_text()


PAPERS = {
    "seed": 0,
    "teacher": {"arch": "segformer-mit_b3", "epochs": 100, "lr": 5e-4, "final_lr": 1.5e-6},
    "student": {"arch": "mininetv2", "epochs": 60, "lr": 1e-3, "final_lr": 2.5e-5},
    "distillation": {"temperature": 4.0, "weight": 3.0, "combine": "sum"},
    "augmentation": {
        "affine_p": 0.5,
        "shift": 0.1,
        "scale": 0.1,
        "rotate": 5.0,
        "rgb_p": 0.5,
        "rgb_shift": 20.0,
        "brightness": 0.2,
        "contrast": 0.2,
    },
    "cache": {"step": 0.25, "views": 1},
}
BOTH_STAGES = {"weights": "paper", "batch": 8}


def test_the_paper_recipe_is_the_papers_setting():
    """Whatever a recipe can say besides is off in the paper's; what is recorded are the keys of version 0.1."""
    resolved = asdict(load_recipe("paper"))
    off = {"optimizer": "adam", "weight_decay": 0.0, "schedule": "exponential"}
    flips = {"horizontal_flip_p": 0.0, "vertical_flip_p": 0.0}
    for stage in ("teacher", "student"):
        assert resolved[stage].items() >= (PAPERS[stage] | BOTH_STAGES | off).items()
    assert resolved["augmentation"] == PAPERS["augmentation"] | {"brightness_contrast_p": 0.5} | flips
    recorded = {key: PAPERS[key] | BOTH_STAGES if key in ("teacher", "student") else PAPERS[key] for key in PAPERS}
    recorded["augmentation"] = PAPERS["augmentation"] | {"light_p": 0.5}
    assert load_recipe("paper").as_dict() == recorded


def test_a_key_that_is_not_at_its_default_is_recorded():
    changed = load_recipe("paper", ["student.optimizer=adamw", "student.weight_decay=0.01", "augmentation.vertical_flip_p=0.5"])
    recorded = changed.as_dict()
    assert recorded["student"].items() >= {"optimizer": "adamw", "weight_decay": 0.01}.items()
    assert recorded["augmentation"]["vertical_flip_p"] == 0.5
    assert recipe_from(recorded, "again") == changed


@pytest.fixture
def write(tmp_path):
    """write(name, text) writes a recipe's file and returns its path."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_recipe_holds_what_differs_from_that_which_it_extends(write):
    write("lab/base.toml", 'extends = "paper"\nseed = 3\n[augmentation]\nlight_p = 0.1\nshift = 0.2\n')
    path = write("mine.toml", 'extends = "lab/base.toml"\n[augmentation]\nshift = 0.3\n[student]\nepochs = 5\n')
    expected = ["seed=3", "augmentation.brightness_contrast_p=0.1", "augmentation.shift=0.3", "student.epochs=5"]
    assert load_recipe(path) == load_recipe("paper", expected)
    assert load_recipe(path, ["augmentation.brightness_contrast_p=0.4"]).augmentation.brightness_contrast_p == 0.4
    assert load_recipe(path, ["augmentation.light_p=0.4"]).augmentation.brightness_contrast_p == 0.4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "mine.toml"', r"it extends itself, by mine\.toml -> mine\.toml"),
        ('extends = "papre"', r"recipe 'papre': there is no such recipe"),
        ('extends = "gone.toml"', r"recipe gone\.toml: there is no such file"),
        ("extends = 3", r"extends = 3 should be the name of a recipe"),
        ('extends = "paper"\nteacher = 3', r"\[teacher\]: expected a section"),
        ('extends = "paper"\n[student]\nepoch = 3', r"\[student\]: unknown key 'epoch'"),
    ],
)
def test_what_a_recipe_cannot_extend(write, text, message):
    with pytest.raises(MtkdError, match=message):
        load_recipe(write("mine.toml", text))


def test_a_circle_of_recipes_is_refused(write):
    write("one.toml", 'extends = "two.toml"')
    with pytest.raises(MtkdError, match=r"recipe two\.toml: it extends itself, by two\.toml -> one\.toml -> two\.toml"):
        load_recipe(write("two.toml", 'extends = "one.toml"'))


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
        ("seed.x=3", r"seed = \{'x': 3\} should be of type int"),
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
        ("student.optimizer=sgd", r"student\.optimizer = 'sgd' is out of range\. Give \"adam\" or \"adamw\""),
        ("teacher.schedule=linear", r"teacher\.schedule = 'linear' is out of range"),
        ("student.weight_decay=-1", r"student\.weight_decay = -1\.0 is out of range"),
        ("augmentation.vertical_flip_p=2", r"augmentation\.vertical_flip_p = 2\.0 is out of range"),
        ("distillation.temperature=0", r"distillation\.temperature = 0\.0 is out of range"),
        ("distillation.temperature=nan", r"distillation\.temperature = nan is out of range"),
        ("distillation.weight=-1", r"distillation\.weight = -1\.0 is out of range"),
        ("student.cross_entropy=batch", r"student\.cross_entropy = 'batch' is out of range"),
        ("teacher.balanced=true", r"\[teacher\]: unknown key 'balanced'"),
        ("distillation.combine=mean", r"distillation\.combine = 'mean' is out of range"),
        ("distillation.term=cosine", r"distillation\.term = 'cosine' is out of range\. Give one of kl, sigmoid, .* or A\+B"),
        ("distillation.term=kl+", r"distillation\.term = 'kl\+' is out of range"),
        ("distillation.sigmoid_weight=-1", r"distillation\.sigmoid_weight = -1\.0 is out of range"),
        ("distillation.sigmoid_temperature=0", r"distillation\.sigmoid_temperature = 0\.0 is out of range"),
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


@pytest.mark.parametrize("nested", ["a = " + "[" * 3000, ".".join("a" * 3000) + " = 1", "seed" + ".a" * 3000 + " = 1"])
def test_what_is_nested_too_deeply_is_refused(tmp_path, nested):
    (tmp_path / "deep.toml").write_text(nested)
    for name, overrides in ((str(tmp_path / "deep.toml"), []), ("paper", [nested.replace(" ", "")])):
        with pytest.raises(MtkdError, match=f"recipe {name}: it, or an override, is nested too deeply"):
            load_recipe(name, overrides)


def test_a_recipe_file_that_is_absent(tmp_path):
    with pytest.raises(MtkdError, match=r"absent\.toml: there is no such file"):
        load_recipe(str(tmp_path / "absent.toml"))


def test_the_docs_name_every_setting():
    page = (Path(__file__).parents[1] / "docs/recipes.md").read_text().split("\n## ")
    for section, settings in asdict(load_recipe("paper")).items():
        [told] = [part for part in page if f"`{section}`" in part.splitlines()[0] or f"`[{section}]`" in part.splitlines()[0]]
        assert all(f"`{key}`" in told for key in (settings if isinstance(settings, dict) else ())), section
    assert all(f"`{name}`" in page[0] for name in shipped())
