"""mtkd-cache phantom"""

from pathlib import Path
from typing import Any

import click

from .common import FOLDER, NUMBERS, SIZE, reports, say


@click.command("phantom")
@click.argument("out", type=FOLDER)
@click.option("--size", type=SIZE, default="320x256", help="Image size, width x height.")
@click.option("--images-per-surgery", type=int, default=4, help="Mean number of images per surgery.")
@click.option("--surgeries", type=NUMBERS, help="Surgeries of every anatomy.  [default: 20 to 23 of the 32 for each]")
@click.option("--seed", type=int, default=0, help="Random seed of the images.")
@click.option("--workers", type=int, default=2, help="Number of processes.")
@reports
def command(out: Path, **options: Any) -> dict[str, Any]:
    """Write a synthetic dataset in the Dresden layout to OUT: the same images for the same seed, on any machine.

    Resumes after an interruption.
    """
    from mtkd_cache.phantom.dataset import write_phantom

    result = write_phantom(out, **options)
    say(f"{result['images']} images in {out}")
    return result
