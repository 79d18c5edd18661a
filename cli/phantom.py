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
@click.option("--all-multilabel", is_flag=True, help="Give every image of every anatomy all its masks in the multilabel folder.")
@click.option("--clip", type=int, metavar="FRAMES", help="Write one clip instead: a moving camera, masks of all anatomies.")
@reports
def command(out: Path, clip: int | None, **options: Any) -> dict[str, Any]:
    """Write a synthetic dataset in the Dresden layout to OUT: the same images for the same seed, on any machine.

    Resumes after an interruption. With --clip, OUT gets imageNNNN.png and maskNNNN_ANATOMY.png of consecutive frames.
    """
    from mtkd_cache.phantom.clip import write_clip
    from mtkd_cache.phantom.dataset import write_phantom

    if clip is not None:
        surgery = {"surgery": options["surgeries"][0]} if options["surgeries"] else {}
        written = write_clip(out, frames=clip, size=options["size"], seed=options["seed"], **surgery)
        say(f"{clip} frames in {out}")
        return written
    result = write_phantom(out, **options)
    say(f"{result['images']} images in {out}")
    return result
