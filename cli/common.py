"""Options that several commands share, and how every command ends."""

import errno
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from mtkd_cache.errors import MtkdError


class Size(click.ParamType):
    name = "WxH"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        width, _, height = value.lower().partition("x")
        if not (_is_number(width) and _is_number(height) and int(width) and int(height)):
            self.fail(f"{value!r} is no size; write WIDTHxHEIGHT as 640x512.", param, context)
        return int(width), int(height)


class Numbers(click.ParamType):
    name = "N,N,..."

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        numbers = [number.strip() for number in value.split(",")]
        if not all(map(_is_number, numbers)):
            self.fail(f"{value!r} is no list of numbers as 3,21,26.", param, context)
        return tuple(map(int, numbers))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


SIZE, NUMBERS = Size(), Numbers()
SPLIT = click.Choice(["train", "validation", "test"])

store = click.option("--store", default="data/samples.zarr", show_default=True, help="Sample store: a folder or an fsspec URL.")
cache = click.option("--cache", default="data/logits.zarr", show_default=True, help="Logit cache: a folder or an fsspec URL.")
teachers = click.option(
    "--teachers", type=click.Path(path_type=Path), default="data/teachers", show_default=True, help="Teachers' folder."
)
splits = click.option(
    "--split",
    "splits",
    multiple=True,
    type=SPLIT,
    default=["train"],
    show_default=True,
    help="Parts of the samples (repeatable).",
)
recipe = click.option("--recipe", default="paper", show_default=True, help="A shipped recipe, or a TOML file.")
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the recipe (repeatable), as student.epochs=30."
)
seed = click.option("--seed", type=int, help="Override the recipe's seed.")
device = click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute.  [default: what is there]")
precision = click.option(
    "--precision", type=click.Choice(["no", "bf16", "fp16"]), default="no", show_default=True, help="Mixed precision."
)
resident = click.option(
    "--resident",
    type=click.Choice(["auto", "device", "host", "off"]),
    default="auto",
    show_default=True,
    help="Hold the samples in the memory of the device or the host, or read them from the disk; auto holds them where they fit.",
)
compiled = click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the networks, which makes the first step long: pays on some devices, see --compile of mtkd-cache bench.",
)


def stack(*options: Callable) -> Callable:
    """Several options as one decorator."""
    return lambda function: functools.reduce(lambda inner, option: option(inner), reversed(options), function)


compute = stack(device, precision)
from_recipe = stack(recipe, overrides, seed)


def reports(function: Callable[..., dict | list | None]) -> Callable:
    """Give a command --json and --debug: it returns what it did; a failure ends in one or two lines and with status 1,
    an interruption with 130.

    A command prints for people with `say`, on standard error where --json owns standard output's last line.
    """

    @click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of standard output.")
    @click.option("--debug", is_flag=True, help="Show a traceback.")
    @functools.wraps(function)
    def run(*args, as_json: bool, debug: bool, **options) -> None:
        try:
            result = function(*args, **options)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            click.echo(f"mtkd-cache: {in_words(error)}", err=True)
            sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
        if as_json and _speaks():
            click.echo(json.dumps(result))
        if isinstance(result, dict) and result.get("ok") is False:
            sys.exit(1)

    return run


def in_words(error: BaseException) -> str:
    """One or two lines for a person: what, where, what to do."""
    if isinstance(error, MtkdError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted. What is finished is kept; the same command resumes from there."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or ''}: the disk is full. What is finished is kept; make room and run the same command again."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}. Name another path, or change this one."
    full = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch's only word of it
    if full or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory. Take a smaller batch or smaller pictures, or hold less in memory with --resident off."
    last = traceback.extract_tb(error.__traceback__)[-1]
    first_line = (str(error).splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first_line} ({last.filename}:{last.lineno}). Report it with what --debug shows."


def say(text: str) -> None:
    """A message for a person."""
    if _speaks():
        click.echo(text, err=True)


def _speaks() -> bool:
    """Of the processes of a launch (torchrun, accelerate) the first one reports; errors come from each."""
    return os.environ.get("RANK", "0") == "0"


def load(recipe: str, overrides: tuple[str, ...], seed: int | None):
    """The recipe with a command's overrides."""
    from mtkd_cache.recipe import load_recipe

    return load_recipe(recipe, [*overrides, *([f"seed={seed}"] if seed is not None else [])])


def dice_lines(dice: dict[str, float | None]) -> str:
    """Dice by anatomy, a line each, in percent."""
    return "\n".join(f"  {anatomy:28}{'-' if value is None else f'{100 * value:5.1f}'}" for anatomy, value in dice.items())
