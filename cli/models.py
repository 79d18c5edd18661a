"""mtkd-cache models"""

from typing import Any

import click

from .common import reports, table


@click.command("models")
@reports
def command() -> list[Any]:
    """List the parameters of the paper's networks: one network per anatomy (separate), and one encoder for all (shared)."""
    from mtkd_cache.study.parameters import parameter_table

    rows = parameter_table()
    shown = [(row["arch"], row["layout"], f"{row['params_m']:.2f}", f"{row['paper_params_m']:.2f}", row["note"]) for row in rows]
    click.echo(table([("architecture", "layout", "parameters (M)", "paper (M)", ""), *shown]))
    return rows
