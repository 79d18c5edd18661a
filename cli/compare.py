"""mtkd-cache compare"""

import math
from pathlib import Path
from typing import Any

import click

from . import common


@click.command("compare")
@click.argument("run_a", type=common.FOLDER)
@click.argument("run_b", type=common.FOLDER)
@click.option("--split", type=common.SPLIT, default="test", help="Split both were evaluated on.")
@click.option("--figure", help="Column of evaluation-SPLIT.csv.  [default: Dice at the operating points, where both have them]")
@common.reports
def command(run_a: Path, run_b: Path, split: str, figure: str | None) -> dict[str, Any]:
    """Test whether RUN_B differs from RUN_A: run folders or teachers folders, evaluated on the same pictures.

    Intervals are 95 %, by bootstrap over patients. P values are of a paired permutation test over patients; Holm's method adjusts
    those of the anatomies for their number.
    """
    from mtkd_cache.evaluation.compare import compare
    from mtkd_cache.evaluation.statistics import smallest_p

    comparison = compare(run_a, run_b, split, figure)
    scale, unit = (1, "pixels") if comparison.figure.startswith("hd95") else (100, "%")
    rows = [["", "A", "B", "B - A", "95 % interval", "p", "effect d_z", "patients higher, lower"]]
    mean, *anatomies = comparison.differences.items()
    for name, row in (*anatomies, mean):
        if row:
            low, high = row.interval or (math.nan, math.nan)
            values = [f"{scale * row.first:.1f}", f"{scale * row.second:.1f}", f"{scale * row.difference:+.1f}"]
            values += [f"{scale * low:+.1f} to {scale * high:+.1f}" if row.interval else "-"]
            values += [f"{row.p if row.p_holm is None else row.p_holm:.4f}"]
            values += ["-" if row.effect_size is None else f"{row.effect_size:+.2f}", f"{row.higher}, {row.lower}"]
            rows.append([name, *values])
    patients = common.plural(comparison.patients, "patient")
    named = comparison.figure.replace("dice", "Dice").replace("_", " ")
    common.say(f"{named} ({unit}) on {split}, {comparison.images} pictures of {patients}\nA: {run_a}\nB: {run_b}")
    common.say(common.table(rows))
    smallest = smallest_p(comparison.patients)
    adjusted = min(1.0, smallest * sum(row is not None for _, row in anatomies))
    common.say(f"the smallest p that {patients} can give is {smallest:.2g} for the mean, {adjusted:.2g} for an anatomy")
    return comparison.to_json()
