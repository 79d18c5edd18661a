"""mtkd-cache report"""

from pathlib import Path
from typing import Any

import click
from click.types import FuncParamType

from .common import FOLDER, reports, say


def _label(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (separator and name.strip() and folder):
        raise click.BadParameter(f"{text!r} is not a name and a folder; write it as NAME=runs/RUN.")
    return name.strip(), Path(folder)


LABEL = FuncParamType(_label)


@click.command("report")
@click.argument("runs", nargs=-1, type=FOLDER)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=FOLDER",
    type=LABEL,
    help="A run with a name, and a row, of its own (repeatable).",
)
@click.option("--out", type=FOLDER, default="runs/report", help="Folder to write the report to.")
@click.option("--store", help="Sample store with the images of figure 3; the paper's figures are shown only beside its data.")
@reports
def command(runs: tuple[Path, ...], labels: tuple[tuple[str, Path], ...], out: Path, store: str | None) -> dict[str, Any]:
    """Write tables and figures of evaluated RUNS: run folders of students and folders of teachers.

    The seeds of an architecture, with or without distillation, are one row. --label tells apart runs that differ in
    anything else; the seeds of one NAME are one row. A row is compared with the first of its architecture, a distilled one with
    masks alone.

    Inference times come from bench-inference.json beside the RUNS, which is the output of `mtkd-cache bench inference --json`.
    """
    from mtkd_cache.study.report.write import write_report

    names = {folder: name for name, folder in labels}
    result = write_report([*runs, *names], out, store=store, labels=names)
    say("\n".join([*result["notes"], "written: " + ", ".join(result["files"])]))
    return result
