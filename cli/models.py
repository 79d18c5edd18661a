"""mtkd-cache models"""

import click

from .common import reports


@click.command("models")
@reports
def command() -> list[dict]:
    """Parameters of the paper's networks, one network an anatomy (separate) and one encoder with 11 decoders (shared)."""
    from mtkd_cache.study.parameters import parameter_table

    rows = parameter_table()
    for row in rows:
        paper = f"paper {row['paper_params_m']:7.2f} M" if row["paper_params_m"] else ""
        click.echo(f"{row['arch']:28}{row['layout']:10}{row['params_m']:8.2f} M   {paper}  {row.get('note') or ''}".rstrip())
    return rows
