"""mtkd-cache download"""

from pathlib import Path

import click

from mtkd_cache.cli.common import reports


@click.command("download")
@click.argument("out", type=click.Path(path_type=Path), default="data/dsad")
@click.option("--archive", type=click.Path(path_type=Path), help="A zip brought by hand, taken as it is.")
@reports
def command(out: Path, archive: Path | None) -> dict:
    """Fetch the Dresden Surgical Anatomy Dataset into OUT (data/dsad): resumed after a break, checked, unpacked safely."""
    from mtkd_cache.data.download import download

    return download(out, archive=archive)
