"""mtkd-cache export"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("export")
@click.argument("run", type=common.FOLDER)
@click.option("--format", "_format", type=click.Choice(["onnx"]), default="onnx", help="Format of the file.")
@click.option("--frame", type=common.SIZE, required=True, metavar="WxH", help="Size of the frames that it will be given.")
@click.option("--out", type=common.FOLDER, required=True, help="The new file.")
@click.option(
    "--check",
    "sources",
    type=common.FOLDER,
    multiple=True,
    help="Compare with torch on these images or sample store (repeatable).",
)
@click.option("--frames", type=click.IntRange(1), default=100, help="Pictures of each --check that are compared, at most.")
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["onnxruntime", "openvino"]),
    multiple=True,
    default=["onnxruntime"],
    help="What runs the file for --check (repeatable).",
)
@common.own_arch
@common.reports
def command(
    run: Path, frame: tuple[int, int], out: Path, sources: tuple[Path, ...], frames: int, **options: Any
) -> dict[str, Any]:
    """Write the student in RUN, or the teachers in a teachers folder, as one ONNX file.

    It takes a decoded frame, uint8 RGB (H, W, 3), and gives masks, uint8 (anatomies, H, W), and probabilities at its size.
    """
    from mtkd_cache.deploy.export import export_onnx
    from mtkd_cache.deploy.onnx_file import check_packages
    from mtkd_cache.deploy.parity import check, frames_of

    if sources:
        check_packages(*options["runtimes"])
    for source in sources:
        next(frames_of(source, frame[::-1], 1), None)  # raises where it holds no picture
    predictor = mc.Predictor.load(run, arch=options["arch"])
    record = export_onnx(predictor, out, frame[::-1])
    common.say(f"{out}, {common.file_size(record.bytes)}, opset {record.opset}: frames of {frame[0]}x{frame[1]}")
    result: dict[str, Any] = {
        "file": str(out),
        "format": "onnx",
        "opset": record.opset,
        "bytes": record.bytes,
        "arch": record.arch,
        "layout": record.layout,
        "anatomies": list(record.anatomies),
        "frame": list(frame),
        "size": list(record.size[::-1]),
    }
    if not sources:
        return result
    result["parity"] = parity = check(predictor, out, record.frame, sources, frames, options["runtimes"])
    pictures = common.plural(parity["frames"], "frame")
    common.say(
        f"of {parity['pixels']:,} pixels of {pictures} {parity['differing']:,} differ from torch, "
        f"{parity['unexplained']:,} of them further than {parity['near']} from the threshold "
        f"({parity['near_threshold']:,} pixels lie within it)"
    )
    return {**result, "ok": parity["ok"]}
