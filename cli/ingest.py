"""mtkd-cache ingest"""

from pathlib import Path
from typing import Any

import click

from . import common


@click.command("ingest")
@click.argument("dataset", type=common.FOLDER)
@common.store
@click.option("--size", type=common.SIZE, default="640x512", help="Image size in the store, width x height.")
@click.option("--threshold", type=click.IntRange(0, 254), help="Foreground is mask > THRESHOLD; for masks that are not binary.")
@click.option("--validation", type=common.NUMBERS, help="Surgeries of the validation split, instead of the reference split's.")
@click.option("--test", type=common.NUMBERS, help="Surgeries of the test split, instead of the reference split's.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Number of processes.")
@common.reports
def command(dataset: Path, store: str, **options: Any) -> dict[str, Any]:
    """Convert a DATASET folder (ANATOMY/SURGERY/imageNN.png with maskNN.png) into a sample store."""
    from mtkd_cache.data.dresden import Split
    from mtkd_cache.data.ingest import ingest

    validation, test = options.pop("validation"), options.pop("test")
    if (validation is None) != (test is None):
        raise click.UsageError("--validation and --test go together.")
    split = Split() if validation is None else Split(validation, test, None)
    result = ingest(dataset, store, split=split, **options)
    common.say(f"{result['samples']} samples in {store}: " + ", ".join(f"{n} {part}" for part, n in result["by_split"].items()))
    if result["skipped"]:
        common.say("skipped: " + ", ".join(f"{count} {what}" for what, count in result["skipped"].items()))
    return result
