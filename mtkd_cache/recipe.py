"""Recipes: every number of a training, read from TOML."""

import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from mtkd_cache.errors import MtkdError


@dataclass(frozen=True)
class Stage:
    """How the networks of one stage are trained: Adam, the learning rate falling exponentially by epoch from lr to final_lr.

    weights: what the network starts from, see `mtkd_cache.models.pretrained.load_pretrained`; "paper" takes what the paper took.
    """

    arch: str
    weights: str
    epochs: int
    batch: int
    lr: float
    final_lr: float

    def learning_rate(self, epoch: int) -> float:
        """The rate of an epoch counted from 0.

        As with torch's ExponentialLR, stepped after each epoch: the first epoch has `lr`, each next one a factor
        (final_lr / lr)^(1 / epochs) less, and after the last one the rate has fallen to `final_lr`.
        """
        return self.lr * (self.final_lr / self.lr) ** (epoch / self.epochs)


@dataclass(frozen=True)
class Distillation:
    """The KL term of stage 2, see `mtkd_cache.losses`. combine: "sum" or "product"."""

    temperature: float
    weight: float
    combine: str


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which views are drawn, see `mtkd_cache.data.augment`.

    shift is in fractions of the picture, rotate in degrees, rgb_shift of 255.
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
    """The logit cache: the quantiser's step, and how many views of each sample are recorded."""

    step: float
    views: int


@dataclass(frozen=True)
class Recipe:
    seed: int
    teacher: Stage
    student: Stage
    distillation: Distillation
    augmentation: Augmentation
    cache: Cache

    def as_dict(self) -> dict:
        """The recipe as it is recorded: JSON values, under the keys of the first recorded runs and caches."""
        sections = asdict(self)
        sections["augmentation"]["light_p"] = sections["augmentation"].pop("brightness_contrast_p")
        return sections


OLD_KEYS = {"light_p": "brightness_contrast_p"}  # as recipes, runs and caches of version 0.1 have them


def augmentation_from(table: dict) -> Augmentation:
    """The augmentation that a run or a cache recorded."""
    return _read(Augmentation, table, "augmentation")


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(
        path.name.removesuffix(".toml") for path in resources.files("mtkd_cache.recipes").iterdir() if path.name.endswith(".toml")
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or a TOML file by path, with overrides such as ``student.epochs=30``.

    Raises MtkdError for an unknown recipe or key, a missing key, and a value that is of another type or impossible.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if name not in shipped():
            raise MtkdError(f"recipe {name!r}: there is no such recipe. Name one of {', '.join(shipped())}, or a .toml file.")
        text = resources.files("mtkd_cache.recipes").joinpath(f"{name}.toml").read_text()
    elif path.is_file():
        text = path.read_text(errors="replace")
    else:
        raise MtkdError(f"recipe {name}: there is no such file.")
    try:
        table = tomllib.loads(text)
        for override in overrides:
            _override(table, override)
    except tomllib.TOMLDecodeError as error:
        raise MtkdError(f"recipe {name}: not TOML ({error}).") from error
    return recipe_from(table, name)


def _override(table: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise MtkdError(f"override {override!r}: write KEY=VALUE, as student.epochs=30.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise MtkdError(f"override {override!r}: {section} is no section of a recipe.")
    table[last] = value


def recipe_from(table: dict, where: str) -> Recipe:
    """A recipe from its table; see `load_recipe` for the errors."""
    recipe = _read(Recipe, table, f"recipe {where}")
    _check(recipe, f"recipe {where}")
    return recipe


def _read(kind: type, table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise MtkdError(f"{where}: expected a section.")
    table = {OLD_KEYS.get(key, key): value for key, value in table.items()}
    known = {field.name: field.type for field in fields(kind)}
    for key in table:
        if key not in known:
            raise MtkdError(f"{where}: unknown key {key!r}. Known here: {', '.join(known)}.")
    values = {}
    for key, expected in known.items():
        if key not in table:
            raise MtkdError(f"{where}: {key!r} is missing.")
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
    for key, value, possible, what in limits:
        if not possible:
            raise MtkdError(f"{where}: {key} = {value!r} is impossible. Give {what}.")


def seed_for(seed: int, *names: str) -> int:
    """A seed of its own for each named use of a recipe's seed."""
    text = json.dumps([seed, *names], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
