"""mtkd-cache report"""

from pathlib import Path
from typing import Any

import click

from .common import FOLDER, reports, say


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, default="runs/report", show_default=True, help="The report's folder.")
@click.option("--store", help="The sample store, for the pictures of figure 3.")
@reports
def command(runs: tuple[Path, ...], out: Path, store: str | None) -> dict[str, Any]:
    """Tables and figures from evaluated RUNS: students' run folders and folders of teachers.

    Times are those of a file bench-inference.json beside the RUNS: what `mtkd-cache bench inference --json` prints.
    """
    from mtkd_cache.study.report.write import write_report

    result = write_report(runs, out, store=store)
    for note in result["notes"]:
        say(note)
    say("written: " + ", ".join(result["files"]))
    return result
