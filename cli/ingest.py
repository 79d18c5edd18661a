"""mtkd-cache ingest"""

from pathlib import Path
from typing import Any

import click

from . import common


@click.command("ingest")
@click.argument("dataset", type=common.FOLDER, required=False)
@click.option("--csv", type=common.FOLDER, help="CSV that lists the samples, instead of DATASET: image, mask, anatomy, patient.")
@common.store
@click.option("--size", type=common.SIZE, default="640x512", help="Image size in the store, width x height.")
@click.option("--threshold", type=click.IntRange(0, 254), help="Foreground is mask > THRESHOLD; for masks that are not binary.")
@click.option("--validation", type=common.NUMBERS, help="Surgeries of the validation split, instead of the reference split's.")
@click.option("--test", type=common.NUMBERS, help="Surgeries of the test split, instead of the reference split's.")
@click.option("--resplit", is_flag=True, help="Move samples that the store holds already to another split.")
@click.option("--without-labels", is_flag=True, help="Do not read the files weak_labels.csv of a DATASET folder.")
@click.option("--workers", type=click.IntRange(1), default=2, help="Number of processes.")
@common.reports
def command(dataset: Path | None, csv: Path | None, store: str, without_labels: bool, **options: Any) -> dict[str, Any]:
    """Convert a DATASET folder (ANATOMY/SURGERY/imageNN.png with maskNN.png), or the samples in a CSV, into a sample store."""
    from mtkd_cache.data.dresden import Split
    from mtkd_cache.data.ingest import ingest, ingest_csv

    validation, test = options.pop("validation"), options.pop("test")
    if (dataset is None) == (csv is None):
        raise click.UsageError("Name a DATASET folder or --csv FILE.")
    if (validation is None) != (test is None):
        raise click.UsageError("--validation and --test go together.")
    if csv and (validation or without_labels):
        raise click.UsageError("--validation, --test and --without-labels are for a DATASET folder; a CSV has a column split.")
    if csv:
        result = ingest_csv(csv, store, **options)
    elif dataset:
        split = Split(validation, test, None) if validation else Split()
        result = ingest(dataset, store, split=split, without_labels=without_labels, **options)
    say(result)
    return result


def say(result: dict[str, Any]) -> None:
    """Tell people what was written, and what may be wrong with it."""
    patients = {part: common.plural(len(names), "patient") for part, names in result["patients"].items()}
    parts = ", ".join(f"{count} {part} ({patients[part]})" for part, count in result["by_split"].items())
    common.say(f"{result['samples']} samples in {result['store']}: {parts}")
    if result["assigned"]:
        common.say("no splits are given: each patient was assigned to one, see data/README.md")
    if result["removed"]:
        common.say(f"removed: {common.plural(result['removed'], 'sample')} that the dataset no longer has")
    if result["skipped"]:
        common.say("skipped: " + ", ".join(f"{count} {what}" for what, count in result["skipped"].items()))
    if result["labels"]:
        common.say("weak_labels.csv: " + ", ".join(f"{count} {what}" for what, count in result["labels"].items()))
    for size, uneven in result["uneven_sizes"].items():
        common.say(
            f"{common.plural(uneven['samples'], 'sample')} of {size} (first {uneven['first']}): resizing stretches them by "
            f"{100 * uneven['stretched']:.0f} % more in one direction than those of the commonest size"
        )
