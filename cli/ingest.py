"""mtkd-cache ingest"""

from pathlib import Path

import click

from mtkd_cache.cli import common
from mtkd_cache.cli.common import NUMBERS, SIZE, reports, say


@click.command("ingest")
@click.argument("dataset", type=click.Path(path_type=Path))
@common.store
@click.option("--size", type=SIZE, default="640x512", show_default=True, help="Width x height in the store.")
@click.option(
    "--threshold", type=click.IntRange(0, 254), help="Mask values above it are the anatomy; without it masks must be binary."
)
@click.option("--validation", type=NUMBERS, help="Surgeries for validation, instead of the reference split.")
@click.option("--test", type=NUMBERS, help="Surgeries for test, instead of the reference split.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@reports
def command(dataset: Path, store: str, size, threshold: int | None, validation, test, workers: int) -> dict:
    """Turn the DATASET folder (ANATOMY/SURGERY/imageNN.png beside maskNN.png) into a sample store."""
    from mtkd_cache.data.dresden import Split
    from mtkd_cache.data.ingest import ingest

    if (validation is None) != (test is None):
        raise click.UsageError("--validation and --test go together.")
    split = Split() if validation is None else Split(validation, test, None)
    result = ingest(dataset, store, size=size, split=split, threshold=threshold, workers=workers)
    say(f"{result['samples']} samples in {store}: " + ", ".join(f"{n} {part}" for part, n in result["by_split"].items()))
    if result["skipped"]:
        say("left alone: " + ", ".join(f"{count} {what}" for what, count in result["skipped"].items()))
    return result
