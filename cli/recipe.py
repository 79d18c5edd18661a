"""mtkd-cache recipe"""

import json
from dataclasses import asdict
from typing import Any

import click

from mtkd_cache.recipe import RECIPES, Recipe, load_recipe, shipped

from . import common


@click.group("recipe")
def command() -> None:
    """Show the settings that trainings and caches are made with."""


@command.command("list")
@common.reports
def list_shipped() -> dict[str, str]:
    """List the recipes that come with the package."""
    about = {name: (RECIPES / f"{name}.toml").read_text().splitlines()[0].removeprefix("# ") for name in shipped()}
    click.echo(common.table(about.items()))
    return about


@command.command("show")
@click.argument("name", default="paper")
@common.overrides
@common.reports
def show(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Print every setting of a recipe as TOML: NAME is a shipped recipe, or the path of a TOML file."""
    settings = asdict(load_recipe(name, overrides))
    for section, values in settings.items():
        if isinstance(values, dict):
            click.echo(f"\n[{section}]")
        for key, value in (values if isinstance(values, dict) else {section: values}).items():
            click.echo(f"{key} = {_toml(value)}")
    return settings


@command.command("diff")
@click.argument("name")
@click.argument("other", default="paper")
@common.reports
def diff(name: str, other: str) -> dict[str, list[Any]]:
    """List the settings in which two recipes differ, e.g. of your TOML file and of the paper."""
    one, two = _keys(load_recipe(name)), _keys(load_recipe(other))
    differing = {key: [one[key], two[key]] for key in one if one[key] != two[key]}
    rows = [(key, *map(_toml, values)) for key, values in differing.items()]
    click.echo(common.table([("", name, other), *rows]) if rows else "the same settings")
    return differing


def _keys(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its name for --set, as student.epochs."""
    sections = {name: value if isinstance(value, dict) else {"": value} for name, value in asdict(recipe).items()}
    return {f"{name}.{key}".rstrip("."): value for name, values in sections.items() for key, value in values.items()}


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
