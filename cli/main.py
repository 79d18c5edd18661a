"""`mtkd-cache`: the commands in the order of the work."""

import importlib
from typing import Any

import click

from mtkd_cache.runtime.malloc import keep_freed_memory

COMMANDS = {
    "download": "download and unpack the Dresden Surgical Anatomy Dataset",
    "phantom": "write a synthetic dataset in the same layout",
    "ingest": "convert a dataset folder into a sample store",
    "convert-weights": "convert a published surgical encoder to start from",
    "train-teachers": "stage 1: train one teacher per anatomy",
    "build": "run the teachers once and cache their logits",
    "verify": "check that a cache is intact and up to date",
    "inspect": "show what is in a cache, draw a contact sheet",
    "train-student": "stage 2: train a student on cached logits",
    "evaluate": "compute Dice per anatomy of a student or of the teachers",
    "compare": "test whether two evaluations differ, with patients as the unit",
    "predict": "segment images and videos: masks and overlays",
    "export": "write a network as an ONNX file, from frame to masks",
    "report": "write tables and figures, beside the paper's results",
    "study": "reproduce all rows of Table 1, on one or many GPUs",
    "gain": "measure what distillation gains, by its objective",
    "labels": "measure what presence labels and other subsets gain",
    "recipe": "list, show and compare recipes",
    "models": "list the networks' parameters beside Table 1",
    "bench": "measure speed, size and scaling on this machine",
}


class Commands(click.Group):
    """Imports a command's file only when it is called, so that --help needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Any:
        known = cmd_name in COMMANDS
        return importlib.import_module(f".{cmd_name.replace('-', '_')}", __package__).command if known else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands, in the order of the work"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="mtkd-cache")
def main() -> None:
    """Multi-teacher knowledge distillation for surgical anatomy segmentation with a cache of the teachers' logits."""
    keep_freed_memory()
