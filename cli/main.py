"""`mtkd-cache`: the commands in the order of the work."""

import importlib

import click

COMMANDS = {
    "download": "the Dresden Surgical Anatomy Dataset's zip, checked and unpacked",
    "phantom": "a synthetic dataset in the real one's layout",
    "ingest": "dataset folder -> sample store",
    "train-teachers": "stage 1: one teacher for each anatomy",
    "build": "teachers + sample store -> logit cache",
    "verify": "is the cache whole, is it current",
    "inspect": "what is in a cache: figures and a contact sheet",
    "train-student": "stage 2: image, mask and cached logits -> student",
    "evaluate": "Dice by anatomy of a student or of the teachers",
    "report": "the paper's tables and figures with ours beside them",
    "study": "all rows of the paper's Table 1: train, evaluate, report; shared by GPUs and machines",
    "models": "every network in both layouts, parameters beside Table 1",
    "bench": "inference, stage2 and cache against their limits",
}


class Commands(click.Group):
    """Imports a command's file only when it is called, so that --help needs no torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"mtkd_cache.cli.{name.replace('-', '_')}").command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands, in the order of the work"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mtkd-cache")
def main() -> None:
    """Multi-teacher knowledge distillation for surgical anatomy segmentation, with the teachers run once."""
