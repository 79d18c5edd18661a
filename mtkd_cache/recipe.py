"""Recipes: every number of a training, read from TOML."""

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from mtkd_cache.errors import MtkdError

Section = TypeVar("Section")


@dataclass(frozen=True)
class Stage:
    """How the networks of one stage are trained: with Adam, its learning rate decaying exponentially from lr to final_lr.

    weights: the initial weights, see `mtkd_cache.models.pretrained.load_pretrained`; "paper" are those of the paper.
    """

    arch: str
    weights: str
    epochs: int
    batch: int
    lr: float
    final_lr: float

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0.

        As with torch's ExponentialLR stepped after each epoch: the first epoch uses `lr`, each later one the rate before times
        (final_lr / lr)^(1 / epochs), and the step after the last epoch reaches `final_lr`.
        """
        return self.lr * math.pow(self.final_lr / self.lr, epoch / self.epochs)


@dataclass(frozen=True)
class Distillation:
    """The KL term of stage 2; combine is "sum" or "product", see `mtkd_cache.losses.distillation_objective`."""

    temperature: float
    weight: float
    combine: str


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which views are drawn, see `mtkd_cache.data.augment`.

    A value is drawn from -range to +range: shift in fractions of the image's width and height, rotate in degrees, rgb_shift in
    levels of 255, scale, brightness and contrast as fractions. affine_p, rgb_p and brightness_contrast_p are probabilities.
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


@dataclass(frozen=True)
class Cache:
    """The logit cache: the quantizer's step in logits, and how many views of each sample are recorded."""

    step: float
    views: int


@dataclass(frozen=True)
class Recipe:
    """Every setting of both stages and of the cache, see `load_recipe`."""

    seed: int
    teacher: Stage
    student: Stage
    distillation: Distillation
    augmentation: Augmentation
    cache: Cache

    def as_dict(self) -> dict[str, Any]:
        """The recipe as runs and caches record it: JSON values, with the keys of version 0.1."""
        sections = asdict(self)
        sections["augmentation"]["light_p"] = sections["augmentation"].pop("brightness_contrast_p")
        return sections


OLD_KEYS = {"light_p": "brightness_contrast_p"}  # of recipes, runs and caches written by version 0.1


def augmentation_from(table: dict[str, Any]) -> Augmentation:
    """The augmentation that a run or a cache recorded."""
    return _read(Augmentation, table, "augmentation")


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    names = (path.name for path in resources.files("mtkd_cache.recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_recipe(name: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe and check it.

    Args:
        name: a recipe shipped with the package ("paper", "small", "demo", "smoke"), or the path of a .toml file.
        overrides: texts KEY=VALUE such as "student.epochs=30", the value in TOML or a bare string.
        values: by key, applied after `overrides`, such as {"seed": 3, "student.arch": "mininetv2"}; None keeps the recipe's.

    Returns:
        The recipe, a frozen dataclass, with the sections of the TOML file as attributes.

    Raises:
        MtkdError: an unknown recipe or key, a missing key, a value of another type, or one out of range.
    """
    path = Path(name)
    if path.suffix != ".toml" and name not in shipped():
        raise MtkdError(f"recipe {name!r}: there is no such recipe. Name one of {', '.join(shipped())}, or a .toml file.")
    file = path if path.suffix == ".toml" else resources.files("mtkd_cache.recipes").joinpath(f"{name}.toml")
    if not file.is_file():
        raise MtkdError(f"recipe {name}: there is no such file.")
    try:
        table = tomllib.loads(file.read_bytes().decode(errors="replace"))
    except tomllib.TOMLDecodeError as error:
        raise MtkdError(f"recipe {name}: not TOML ({error}).") from error
    for key, value in [*map(_parse, overrides), *(values or {}).items()]:
        if value is not None:
            _set(table, key, value)
    return recipe_from(table, name)


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise MtkdError(f"override {override!r}: write KEY=VALUE, as student.epochs=30.")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise MtkdError(f"override {key!r}: {section} is not a section of a recipe.")
    table[last] = value


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
    for key in [*table, *types]:
        if key not in types:
            raise MtkdError(f"{where}: unknown key {key!r}. Known here: {', '.join(types)}.")
        if key not in table:
            raise MtkdError(f"{where}: {key!r} is missing.")
    values = {}
    for key, expected in types.items():
        value = table[key]
        if hasattr(expected, "__dataclass_fields__"):
            value = _read(expected, value, f"{where}, [{key}]")
        elif expected is float and type(value) is int:
            value = float(value)
        elif type(value) is not expected:
            raise MtkdError(f"{where}: {key} = {value!r} should be of type {expected.__name__}.")
        values[key] = value
    return kind(**values)


def _check(recipe: Recipe, where: str) -> None:
    distillation = recipe.distillation
    limits = [
        ("seed", recipe.seed, recipe.seed >= 0, "0 or more"),
        ("distillation.temperature", distillation.temperature, 0 < distillation.temperature < math.inf, "more than 0"),
        ("distillation.weight", distillation.weight, 0 <= distillation.weight < math.inf, "0 or more"),
        ("distillation.combine", distillation.combine, distillation.combine in ("sum", "product"), '"sum" or "product"'),
        ("cache.views", recipe.cache.views, recipe.cache.views >= 1, "1 or more"),
    ]
    for name, stage in (("teacher", recipe.teacher), ("student", recipe.student)):
        limits += [
            (f"{name}.epochs", stage.epochs, stage.epochs >= 1, "1 or more"),
            (f"{name}.batch", stage.batch, stage.batch >= 1, "1 or more"),
            (f"{name}.lr", stage.lr, 0 < stage.lr < math.inf, "more than 0"),
            (f"{name}.final_lr", stage.final_lr, 0 < stage.final_lr <= stage.lr, f"more than 0 and at most lr, {stage.lr}"),
        ]
    for key, value in asdict(recipe.augmentation).items():
        high = {"scale": 0.99, "rotate": 180.0, "rgb_shift": 255.0}.get(key, 1.0)
        limits.append((f"augmentation.{key}", value, 0 <= value <= high, f"from 0 to {high:g}"))
    for key, value, allowed, limit in limits:
        if not allowed:
            raise MtkdError(f"{where}: {key} = {value!r} is out of range. Give {limit}.")


def seed_for(seed: int, *names: str) -> int:
    """A seed derived from a recipe's seed for one named use, so that no two uses draw the same numbers."""
    text = json.dumps([seed, *names], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
