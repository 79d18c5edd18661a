"""mtkd-cache report"""

from pathlib import Path
from typing import Any

import click

from .common import FOLDER, reports, say


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, default="runs/report", help="Folder to write the report to.")
@click.option("--store", help="Sample store with the images of figure 3.")
@reports
def command(runs: tuple[Path, ...], out: Path, store: str | None) -> dict[str, Any]:
    """Write tables and figures of evaluated RUNS: run folders of students and folders of teachers.

    Inference times come from bench-inference.json beside the RUNS, which is the output of `mtkd-cache bench inference --json`.
    """
    from mtkd_cache.study.report.write import write_report

    result = write_report(runs, out, store=store)
    say("\n".join([*result["notes"], "written: " + ", ".join(result["files"])]))
    return result
