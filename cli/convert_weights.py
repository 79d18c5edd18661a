"""mtkd-cache convert-weights"""

from pathlib import Path
from typing import Any

import click

from . import common


@click.command("convert-weights")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--source", help="Whose weights they are, where the file's name does not tell.")
@click.option("--license", help="The license of the weights, where the file's name does not tell.")
@common.reports
def command(file: Path, out: Path, source: str | None, license: str | None) -> dict[str, Any]:
    """Convert a published encoder, FILE, into OUT, a .safetensors file to start from, which names its source and license.

    FILE is SurgeNet's CAFormer-S18 or PVTv2-B2, EndoViT, or a vision transformer of DINO, DINOv2 or DINOv3. Only tensors are read
    of it: no code that it may carry is run.
    """
    from mtkd_cache.models.convert import convert_weights

    result = convert_weights(file, out, source, license)
    click.echo(f"{out}: {result['source']}, {result['license']}{'; ' + result['note'] if result['note'] else ''}")
    click.echo(f"mtkd-cache train-teachers --arch {result['arch']} --set teacher.weights={out}")
    return result
