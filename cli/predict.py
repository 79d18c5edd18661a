"""mtkd-cache predict"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("predict")
@click.argument("run", type=common.FOLDER)
@click.argument("inputs", type=common.FOLDER, nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=common.FOLDER, required=True, help="Folder of the outputs.")
@click.option(
    "--masks",
    type=click.Choice(["indexed", "separate", "none"]),
    default="indexed",
    help="One PNG per frame, the anatomy on top of each pixel by its number; or one per anatomy, with overlaps; or none.",
)
@click.option("--probabilities", is_flag=True, help="Write the probabilities too, as float16 in an .npz file per frame.")
@click.option("--overlays/--no-overlays", default=True, help="Draw outlines, names and a legend; of a video as H.264.")
@click.option(
    "--smooth", type=common.FiniteRange(0), default=0, metavar="FRAMES", help="Average logits over time, lagging FRAMES."
)
@common.own_arch
@common.device
@common.reports
def command(run: Path, inputs: tuple[Path, ...], out: Path, smooth: float, **options: Any) -> dict[str, Any]:
    """Segment images, videos and folders of them (INPUT...) with the student in RUN, or the teachers in a teachers folder.

    A video, or the images of a folder in the order of their names, are consecutive frames for --smooth.
    """
    from mtkd_cache.deploy.predict import Outputs, predict
    from mtkd_cache.runtime.accelerator import make_accelerator

    predictor = mc.Predictor.load(run, make_accelerator(options.pop("device")).device, arch=options.pop("arch"))
    result = predict(predictor, inputs, out, Outputs(**options), smooth)
    for message in result["damaged"]:
        common.say(message)
    frames, files = (common.plural(count, noun) for count, noun in ((result["frames"], "frame"), (len(result["files"]), "file")))
    common.say(f"{files} of {frames} in {out}, {result['ms']:.1f} ms a frame")
    return result
