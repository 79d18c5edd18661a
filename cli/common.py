"""Options that several commands share, and how every command ends."""

import errno
import functools
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.types import FuncParamType

from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Recipe, load_recipe, shipped

if TYPE_CHECKING:
    from accelerate import Accelerator

    from mtkd_cache.study.jobs import Job
    from mtkd_cache.study.run import Study

Function = TypeVar("Function", bound=Callable[..., Any])
Numbers = tuple[int, ...]


def _integers(name: str, pattern: str, example: str) -> Callable[[str], Numbers]:
    def convert(text: str) -> Numbers:
        if not re.fullmatch(pattern, text):
            raise click.BadParameter(f"{text!r} is not a {name}; write it as {example}.")
        return tuple(map(int, re.split("[xX,]", text)))

    convert.__name__ = name
    return convert


def _device(text: str) -> str:
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", text):
        raise click.BadParameter(f"{text!r} is not a device; write it as cpu, cuda or cuda:1.")
    return text


class FiniteRange(click.FloatRange):
    """A range of finite numbers: click takes NaN as lying in every range, and infinity in one without an end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


DEVICE = FuncParamType(_device)
SIZE = FuncParamType(_integers("size", "[1-9][0-9]{0,4}[xX][1-9][0-9]{0,4}", "640x512"))
NUMBERS = FuncParamType(_integers("list", " *[0-9]{1,9} *(, *[0-9]{1,9} *)*", "3,21,26"))
FOLDER = click.Path(path_type=Path)
SPLIT = click.Choice(["train", "validation", "test"])
DECODERS = "deeplabv3, deeplabv3plus, dpt, fpn, linknet, manet, pan, pspnet, segformer, unet, unetplusplus, upernet"  # smp's
ARCHITECTURES = (
    "mininetv2; pidnet-s; lraspp-mobilenet_v3_large; "
    f"DECODER-ENCODER as segformer-mit_b3, with a decoder ({DECODERS}) and any smp encoder; or package.module:factory, your own"
)
LAYOUTS = ("shared", "shared-refine", "joint")

store = click.option("--store", default="data/samples.zarr", help="Sample store: a folder or fsspec URL.")
cache = click.option("--cache", default="data/logits.zarr", help="Logit cache: a folder or fsspec URL.")
teachers = click.option("--teachers", type=FOLDER, default="data/teachers", help="Folder of the trained teachers.")
teacher = click.option(
    "--teacher",
    "named",
    multiple=True,
    metavar="TEACHER",
    help="A student's run, a folder of teachers, or package.module:factory, your own (repeatable): used for the anatomies it "
    "covers; where several cover one, their logits are averaged; --teachers covers the rest.",
)
layout = click.option(
    "--layout", type=click.Choice(LAYOUTS), help="What the anatomies share.  [default: shared, the encoder; your own: joint]"
)
phase = click.option(
    "--phase", type=click.Choice(["choose", "test"]), default="choose", help="Compare on validation, confirm on test."
)
arms = click.option(
    "--arm", "arms", multiple=True, metavar="NAME", help="Only this arm (repeatable).  [default: all, or those to test]"
)
study_seeds = click.option("--seeds", type=NUMBERS, help="Seeds of the students.  [default: 0,1,2, to test 10,11,12,13,14]")
joined = click.option(
    "--join", "joined", multiple=True, type=FOLDER, metavar="FOLDER", help="Only show these studies (repeatable)."
)
splits = click.option("--split", "splits", multiple=True, type=SPLIT, default=["train"], help="Cached split (repeatable).")
recipe = click.option("--recipe", default="paper", help=f"Shipped recipe ({', '.join(shipped())}), or path of a TOML file.")
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the recipe (repeatable), e.g. student.epochs=30."
)
seed = click.option("--seed", type=int, help="Override the recipe's seed.")
device = click.option(
    "--device",
    type=DEVICE,
    metavar="DEVICE",
    help="cpu, cuda, or cuda:N for one of several GPUs.  [default: the GPU if there is one]",
)
precision = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "no"]),
    metavar="[fp32|bf16|fp16]",
    default="fp32",
    callback=lambda _, __, name: "no" if name == "fp32" else name,  # as Accelerate calls it, and version 0.1 did
    help="fp32, or mixed precision.",
)
allow_overlap = click.option(
    "--allow-overlap", is_flag=True, help="Go on where samples held out here were seen in training; the result records it."
)
init_from = click.option(
    "--init-from",
    type=click.Path(),
    help="Override the recipe's weights: start from those of this run, or of the same anatomy in this teachers folder.",
)
resident = click.option(
    "--resident",
    type=click.Choice(["auto", "device", "host", "off"]),
    default="auto",
    help="Keep samples in device or host memory, or stream them from disk (off); auto uses memory if they fit.",
)
own_arch = click.option(
    "--arch", metavar="MODULE:FACTORY", help="The network's own code, where it is yours: imported only where you name it."
)
compiled = click.option("--compile", "compiled", is_flag=True, help="Use torch.compile: a slow first step, then often faster.")
log_with = click.option("--log-with", metavar="NAME", help="Log epochs to this tracker of Accelerate, e.g. tensorboard.")


def stack(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Several options as one decorator."""
    return lambda function: functools.reduce(lambda inner, option: option(inner), reversed(options), function)


compute = stack(device, precision)
training = stack(compute, resident, compiled, log_with)
from_recipe = stack(recipe, overrides, seed)


def reports(function: Callable[..., object]) -> Callable[..., None]:
    """Add --json and --debug to a command that returns what it did.

    An error ends it with one or two lines and status 1, an interruption with status 130. Messages for people go through `say` to
    standard error: with --json, the last line of standard output is the result.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object, on the last line of stdout.")
    @click.option("--debug", is_flag=True, help="Print the traceback of an error.")
    @functools.wraps(function)
    def run(*, as_json: bool, debug: bool, **options: Any) -> None:
        try:
            result = function(**options)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            _fail(error, debug)
        if as_json and _is_first_process():
            _print(json.dumps(result), debug)
        if isinstance(result, dict) and result.get("ok") is False:
            sys.exit(1)

    return run


def _fail(error: BaseException, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    click.echo(f"mtkd-cache: {explain(error)}", err=True)
    sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _print(line: str, debug: bool) -> None:
    """Print a line on standard output; where its reader has gone, click ends the command."""
    try:
        click.echo(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would flush it once more at its end
        error.filename = "standard output"
        _fail(error, debug)


def explain(error: BaseException) -> str:
    """An error in one or two lines: what, where, what to do."""
    if isinstance(error, MtkdError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted. Finished work is kept; the same command resumes from there."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or ''}: the disk is full. Finished work is kept; free some space and run the same command again."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}. Name another path, or change this one."
    cpu_memory = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch has no class of its own for it
    if cpu_memory or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory. Use a smaller batch or smaller images, or keep less in memory with --resident off."
    last = traceback.extract_tb(error.__traceback__)[-1]
    first_line = (str(error).splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first_line} ({last.filename}:{last.lineno}). Report it, with --debug's output."


def say(text: str) -> None:
    """Print a message for people."""
    if _is_first_process():
        click.echo(text, err=True)


def _is_first_process() -> bool:
    """Of the processes of a launch (torchrun, accelerate) only the first reports; each prints its own errors."""
    return os.environ.get("RANK", "0") == "0"


def recipe_of(options: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that --recipe, --set and --seed name, with the values of a command's own options, by key.

    Raises MtkdError where the recipe's file names code to be imported: only the command line does.
    """
    loaded = load_recipe(options["recipe"], options["overrides"], {"seed": options.get("seed"), **(values or {})})
    named = " ".join(map(str, (*options["overrides"], *(values or {}).values())))
    for arch in (loaded.teacher.arch, loaded.student.arch):
        if ":" in arch and arch not in named:
            raise MtkdError(
                f"{arch} in {options['recipe']} is your own code, imported only where you name it: add --arch {arch}."
            )
    return loaded


def accelerator_of(options: Mapping[str, Any]) -> "Accelerator":
    """What --device, --precision and --log-with name."""
    from mtkd_cache.runtime.accelerator import make_accelerator

    return make_accelerator(options["device"], options["precision"], options.get("log_with"))


def table(rows: Iterable[Iterable[str]]) -> str:
    """Rows as aligned columns: text to the left, numbers to the right."""
    columns = map(_aligned, zip(*rows, strict=True))
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) if column[-1].lstrip("+-")[:1].isdigit() else cell.ljust(width) for cell in column]


def dice_table(dice: Mapping[str, float | None]) -> str:
    """Dice by anatomy, in percent."""
    return table((f"  {anatomy}", "-" if value is None else f"{100 * value:.1f}") for anatomy, value in dice.items())


def file_size(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def say_overlap(content: Mapping[str, Any] | None) -> None:
    """Tell which samples that are held out were seen in training, or that it is unknown; content: of an `Overlap` in JSON."""
    from mtkd_cache.models.seen import Overlap

    if content and (overlap := str(Overlap.from_json(content, "overlap"))) != "none":
        say(f"held-out samples that were seen in training: {overlap}")


def say_view_gap(gap: Mapping[str, dict[str, float]] | None) -> None:
    """Tell the KL of a cache's maps, as students are shown them, to live teachers of the pictures that they see."""
    from mtkd_cache.cache.view_gap import told

    if gap:
        say(f"mean KL to live teachers of the augmented pictures: {told(gap)}")


def run_study(study: "Study", jobs: Sequence["Job"], accelerator: "Accelerator") -> dict[str, Any]:
    """Run a study's jobs and tell what it reports. Of a launch only the main process returns."""
    from mtkd_cache.study.run import run_study as run

    result = run(study, jobs, accelerator, say)
    if not accelerator.is_main_process:
        click.get_current_context().exit()
    if result["report"]:
        say_report(result["report"])
    return result


def say_report(report: dict[str, Any]) -> dict[str, Any]:
    """Tell the tables of a study and the files it wrote."""
    if "markdown" in report:
        say(report["markdown"])
    for path in report["files"]:
        say(f"written: {path}")
    return report


def plural(count: int, noun: str) -> str:
    """1 view, 2 views"""
    return f"{count} {noun}{'s' * (count != 1)}"
