"""mtkd-cache models"""

from typing import TYPE_CHECKING

import click

from .common import reports

if TYPE_CHECKING:
    from mtkd_cache.study.parameters import ParameterRow


@click.command("models")
@reports
def command() -> "list[ParameterRow]":
    """Parameters of the paper's networks, one network an anatomy (separate) and one encoder with 11 decoders (shared)."""
    from mtkd_cache.study.parameters import parameter_table

    rows = parameter_table()
    for row in rows:
        published = f"paper {row['paper_params_m']:7.2f} M"
        click.echo(f"{row['arch']:28}{row['layout']:10}{row['params_m']:8.2f} M   {published}  {row['note']}".rstrip())
    return rows
