"""mtkd-cache inspect"""

from pathlib import Path

import click

from mtkd_cache.cli import common
from mtkd_cache.cli.common import reports, say


@click.command("inspect")
@common.cache
@click.option("--sheet", type=click.Path(path_type=Path), help="Draw samples with every teacher's probability map into this PNG.")
@click.option("--store", default="data/samples.zarr", show_default=True, help="Sample store, for the pictures of --sheet.")
@click.option("--teachers", type=click.Path(path_type=Path), help="Order the sheet by these teachers' validation Dice.")
@click.option("--samples", type=click.IntRange(1), default=6, show_default=True, help="Rows of the sheet.")
@reports
def command(cache: str, sheet: Path | None, store: str, teachers: Path | None, samples: int) -> dict:
    """What a cache holds: its manifest, sizes, errors and progress, and a contact sheet, worst teacher first."""
    from mtkd_cache.cache.inspect import contact_sheet, inspect_cache
    from mtkd_cache.cache.reader import LogitCache
    from mtkd_cache.data.sample_store import SampleStore

    result = inspect_cache(cache)
    for key, value in result.items():
        if not isinstance(value, dict):
            say(f"{key:20}{value}")
    for anatomy, error in (result.get("errors") or {}).items():
        say(f"  {anatomy:28}" + "  ".join(f"{key} {value:.4g}" for key, value in error.items()))
    if sheet:
        order = contact_sheet(LogitCache.open(cache), SampleStore.open(store), sheet, samples, teachers)
        result |= {"sheet": str(sheet), "worst_first": order}
        say(f"{sheet}: teachers from the worst, {', '.join(order)}")
    return result
