"""mtkd-cache download"""

from pathlib import Path
from typing import Any

import click

from .common import FOLDER, reports


@click.command("download")
@click.argument("out", type=FOLDER, default="data/dsad")
@click.option("--archive", type=FOLDER, help="Unpack this zip instead of downloading it.")
@reports
def command(out: Path, archive: Path | None) -> dict[str, Any]:
    """Download the Dresden Surgical Anatomy Dataset into OUT (data/dsad), verify its checksum and unpack it.

    Resumes after an interruption.
    """
    from mtkd_cache.data.download import download

    return download(out, archive=archive)
