"""Recipes: every number of a training, read from TOML."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe_limits import limits

Section = TypeVar("Section")


@dataclass(frozen=True)
class Stage:
    """How the networks of one stage are trained.

    weights: the initial weights, see `mtkd_cache.models.pretrained.load_pretrained`; "paper" are those of the paper.
    lr, final_lr: the learning rate of the first epoch, and that which the schedule reaches after the last one.
    optimizer: "adam" or "adamw", torch's, on all parameters; with weight_decay 0 the two are the same.
    schedule: "exponential" (the paper's) or "cosine", see `mtkd_cache.training.optimizer.learning_rates`.
    select: the epoch that is kept has the best validation Dice, "dice" at probability 0.5 (the paper's) or "operating_point".
    """

    arch: str
    weights: str
    epochs: int
    batch: int
    lr: float
    final_lr: float
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "exponential"
    select: str = "dice"


@dataclass(frozen=True)
class Teacher(Stage):
    """How a teacher is trained.

    negatives: what pictures of other subsets teach besides its own: "own" nothing (the paper's), "exclusive" that the foreground
    of their masks is background, "absent" that everything is background where their label calls the anatomy absent, "both" the
    two together. negative_share: of the samples of each batch, which these pictures then have.
    """

    negatives: str = "own"
    negative_share: float = 0.25


@dataclass(frozen=True)
class Student(Stage):
    """How a student is trained.

    cross_entropy: "pixels", one mean over all that count (the paper's), or "heads", a mean in each head, then over the heads.
    prior_bias: start each head's last bias at its prior, see `mtkd_cache.training.balance.start_at_prior`.
    balanced: draw every anatomy equally often, see `mtkd_cache.training.balance.balanced_rows`.
    negatives: "exclusive", the foreground of a mask is background in all other heads (the paper's), or "absent", besides that
    heads whose anatomy a picture lacks by its label learn background everywhere. negative_share: the weight of that besides, of
    the cross-entropy in all, see `mtkd_cache.losses.absent_cross_entropy`.
    """

    cross_entropy: str = "pixels"
    prior_bias: bool = False
    balanced: bool = False
    negatives: str = "exclusive"
    negative_share: float = 0.25


@dataclass(frozen=True)
class Distillation:
    """The distillation terms of stage 2.

    term: "kl", "sigmoid", "pearson" or "standardized", or two of them joined by "+"; all are defined in `mtkd_cache.losses`.
    temperature, weight: of each term but "sigmoid", which has its own, sigmoid_temperature and sigmoid_weight.
    combine: "sum", "product" or "printed", see `mtkd_cache.losses.distillation_objective`.
    correct: what is done where masks and labels contradict a teacher: "none" (the paper's); "move", see
    `mtkd_cache.losses.move_to_known`, correct_margin in logits; "leave_out", no term compares the maps of anatomies that a
    picture lacks by its label.
    """

    temperature: float
    weight: float
    combine: str
    term: str = "kl"
    sigmoid_temperature: float = 1.0
    sigmoid_weight: float = 1.0
    correct: str = "none"
    correct_margin: float = 4.0

    @property
    def terms(self) -> dict[str, tuple[float, float]]:
        """Temperature and weight of each term, by its name."""
        sigmoid, other = (self.sigmoid_temperature, self.sigmoid_weight), (self.temperature, self.weight)
        return {name: sigmoid if name == "sigmoid" else other for name in self.term.split("+")}


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which views are drawn, see `mtkd_cache.data.augment`.

    A value is drawn from -range to +range: shift in fractions of the image's width and height, rotate in degrees, rgb_shift in
    levels of 255, scale, brightness and contrast as fractions. affine_p, rgb_p, brightness_contrast_p, horizontal_flip_p (left
    and right exchanged) and vertical_flip_p (top and bottom) are probabilities.
    """

    affine_p: float
    shift: float
    scale: float
    rotate: float
    rgb_p: float
    rgb_shift: float
    brightness_contrast_p: float
    brightness: float
    contrast: float
    horizontal_flip_p: float = 0.0
    vertical_flip_p: float = 0.0


@dataclass(frozen=True)
class Cache:
    """The logit cache: the quantizer's step in logits, how many views of each sample are recorded, and the codec of the maps.

    codec: "blosc", which any Zarr reader has, or "pcodec", smaller where maps are smooth, which needs a package.
    """

    step: float
    views: int
    codec: str = "blosc"


@dataclass(frozen=True)
class Recipe:
    """Every setting of both stages and of the cache, see `load_recipe`."""

    seed: int
    teacher: Teacher
    student: Student
    distillation: Distillation
    augmentation: Augmentation
    cache: Cache

    def as_dict(self) -> dict[str, Any]:
        """The recipe as runs and caches record it: JSON values, with the keys of version 0.1.

        Later keys are left out where they have their default, so that records and fingerprints stay as they were.
        """
        sections = {name: _changed(value) if is_dataclass(value) else value for name, value in vars(self).items()}
        sections["augmentation"]["light_p"] = sections["augmentation"].pop("brightness_contrast_p")
        return sections


RECIPES = Path(str(resources.files("mtkd_cache.recipes")))


def _changed(section: Any) -> dict[str, Any]:
    """A section's keys without those that have their default."""
    return {item.name: value for item in fields(section) if (value := getattr(section, item.name)) != item.default}


OLD_KEYS = {"light_p": "brightness_contrast_p"}  # of recipes, runs and caches written by version 0.1


def augmentation_from(table: dict[str, Any]) -> Augmentation:
    """The augmentation that a run or a cache recorded."""
    return _read(Augmentation, table, "augmentation")


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe and check it.

    Args:
        name: a recipe shipped with the package ("paper", "best", "labels", "small", "demo", "smoke"), or the path of a .toml
            file. A file that says `extends = "paper"`, a shipped recipe or the path of a file relative to its own, holds only
            what differs from that.
        overrides: texts KEY=VALUE such as "student.epochs=30", the value in TOML or a bare string.
        values: by key, applied after `overrides`, such as {"seed": 3, "student.arch": "mininetv2"}; None keeps the recipe's.

    Returns:
        The recipe, a frozen dataclass, with the sections of the TOML file as attributes.

    Raises:
        MtkdError: an unknown recipe or key, a missing key, a value of another type, one out of range, a recipe that extends
            itself.
    """
    try:
        table = _load_table(name, Path())
        for key, value in [*map(_parse, overrides), *(values or {}).items()]:
            if value is not None:
                *sections, last = key.split(".")
                table = _merged(table, reduce(lambda inner, section: {section: inner}, reversed(sections), {last: value}))
        return recipe_from(table, name)
    except RecursionError as error:
        raise MtkdError(f"recipe {name}: it, or an override, is nested too deeply. Write one value for a key.") from error


def _load_table(name: str, folder: Path, extending: Sequence[Path] = ()) -> dict[str, Any]:
    """A recipe's table, merged into that which it extends. folder: of the file that names it; extending: the files before it."""
    if not name.endswith(".toml") and name not in shipped():
        raise MtkdError(f"recipe {name!r}: there is no such recipe. Name one of {', '.join(shipped())}, or a .toml file.")
    file = (folder / name if name.endswith(".toml") else RECIPES / f"{name}.toml").resolve()
    if file in extending:
        raise MtkdError(f"recipe {name}: it extends itself, by {' -> '.join(path.name for path in [*extending, file])}.")
    if not file.is_file():
        raise MtkdError(f"recipe {name}: there is no such file.")
    try:
        table = tomllib.loads(file.read_bytes().decode(errors="replace"))
    except tomllib.TOMLDecodeError as error:
        raise MtkdError(f"recipe {name}: not TOML ({error}).") from error
    base = table.pop("extends", None)
    if not isinstance(base, str | None):
        raise MtkdError(f"recipe {name}: extends = {base!r} should be the name of a recipe, or the path of a .toml file.")
    return _merged(_load_table(base, file.parent, [*extending, file]) if base else {}, table)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe's table with the values of another one in place of its own, under the names of today."""
    merged = dict(base)
    for old, value in changes.items():
        key = OLD_KEYS.get(old, old)
        sections = isinstance(value, dict), isinstance(base.get(key, {}), dict)
        merged[key] = _merged(base.get(key, {}), value) if all(sections) else value
    return merged


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise MtkdError(f"override {override!r}: write KEY=VALUE, as student.epochs=30.")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def recipe_from(table: dict[str, Any], where: str) -> Recipe:
    """A recipe from its table; `where` names its origin in messages. Raises MtkdError as `load_recipe`."""
    recipe = _read(Recipe, table, f"recipe {where}")
    _check(recipe, f"recipe {where}")
    return recipe


def _read(kind: type[Section], table: Any, where: str) -> Section:
    if not isinstance(table, dict):
        raise MtkdError(f"{where}: expected a section.")
    table = {OLD_KEYS.get(key, key): value for key, value in table.items()}
    types = get_type_hints(kind)
    optional = {item.name for item in fields(kind) if item.default is not MISSING}  # type: ignore[arg-type]
    for key in [*table, *types]:
        if key not in types:
            raise MtkdError(f"{where}: unknown key {key!r}. Known here: {', '.join(types)}.")
        if key not in table and key not in optional:
            raise MtkdError(f"{where}: {key!r} is missing.")
    values = {}
    for key in table:
        value, expected = table[key], types[key]
        if hasattr(expected, "__dataclass_fields__"):
            value = _read(expected, value, f"{where}, [{key}]")
        elif expected is float and type(value) is int:
            value = float(value)
        elif type(value) is not expected:
            raise MtkdError(f"{where}: {key} = {value!r} should be of type {expected.__name__}.")
        values[key] = value
    return kind(**values)


def _check(recipe: Recipe, where: str) -> None:
    sections = {name: table for name, table in asdict(recipe).items() if isinstance(table, dict)}
    values = {f"{name}.{key}": value for name, table in sections.items() for key, value in table.items()}
    for key, allowed, limit in limits({"seed": recipe.seed, **values}):
        if not allowed:
            raise MtkdError(f"{where}: {key} = {values.get(key, recipe.seed)!r} is out of range. Give {limit}.")


def seed_for(seed: int, *names: str) -> int:
    """A seed derived from a recipe's seed for one named use, so that no two uses draw the same numbers."""
    text = json.dumps([seed, *names], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
