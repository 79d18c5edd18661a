"""mtkd-cache phantom"""

from pathlib import Path

import click

from mtkd_cache.cli.common import NUMBERS, SIZE, reports, say


@click.command("phantom")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", type=SIZE, default="320x256", show_default=True, help="Width x height of the images.")
@click.option("--images-per-surgery", type=int, default=4, show_default=True, help="About how many images a surgery folder.")
@click.option("--surgeries", type=NUMBERS, help="These for every anatomy.  [default: 20 to 23 of the 32 for each]")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the pictures.")
@click.option("--workers", type=int, default=2, show_default=True, help="Processes.")
@reports
def command(out: Path, size: tuple[int, int], images_per_surgery: int, surgeries, seed: int, workers: int) -> dict:
    """Write a synthetic dataset in the Dresden layout to OUT: the same pictures for the same seed on any machine.

    Resumes after an interruption.
    """
    from mtkd_cache.phantom.dataset import write_phantom

    result = write_phantom(out, size=size, images_per_surgery=images_per_surgery, seed=seed, surgeries=surgeries, workers=workers)
    say(f"{result['images']} images in {out}")
    return result
