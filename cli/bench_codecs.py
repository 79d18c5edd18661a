"""mtkd-cache bench codecs"""

from pathlib import Path
from typing import Any

import click

from . import common
from .common import accelerator_of, reports, say


@click.command("codecs")
@common.store
@common.teachers
@click.option("--samples", type=click.IntRange(1), default=16, help="Number of training samples, drawn at random.")
@common.compute
@reports
def command(store: str, teachers: Path, samples: int, **options: Any) -> dict[str, Any]:
    """Size and time of trained teachers' logits under standard Zarr codecs, at steps of 1/16 to 1/2."""
    from mtkd_cache.bench.codecs import bench_codecs, table
    from mtkd_cache.data.sample_store import SampleStore

    result = bench_codecs(SampleStore.open(store), teachers, samples, accelerator_of(options))
    for line in table(result["rows"]):
        say(line)
    return result
