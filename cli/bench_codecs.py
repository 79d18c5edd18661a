"""mtkd-cache bench codecs"""

from pathlib import Path

import click

from . import common
from .common import reports, say


@click.command("codecs")
@common.store
@common.teachers
@click.option("--samples", type=click.IntRange(1), default=16, show_default=True, help="Training samples, drawn at random.")
@common.compute
@reports
def command(store: str, teachers: Path, samples: int, device, precision) -> dict:
    """Size and time of trained teachers' logits under standard Zarr codecs, at steps of 1/16 to 1/2."""
    from mtkd_cache.bench.codecs import bench_codecs, table
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.runtime.accelerator import make_accelerator

    result = bench_codecs(SampleStore.open(store), teachers, samples, make_accelerator(device, precision))
    for line in table(result["rows"]):
        say(line)
    return result
