"""Inference times for the report, from what `mtkd-cache bench inference --json` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtkd_cache.errors import MtkdError, said
from mtkd_cache.models.records import read_json
from mtkd_cache.study.report.formats import TIMES

TIMINGS = "bench-inference.json"
BENCH = "mtkd-cache bench inference --json"
PAPER_SIZE = (1280, 720)


class Timing(NamedTuple):
    """Time of one image."""

    ms: float
    fps: float


Timings = dict[tuple[str, str], dict[str, Timing]]  # by (arch, layout) and device, with the images' size if it is not PAPER_SIZE


def find_timings(folders: Sequence[Path]) -> Timings:
    """The timings in `bench-inference.json` beside the folders; empty where there is none."""
    for parent in dict.fromkeys(Path(folder).absolute().parent for folder in folders):
        if bench := read_json(parent / TIMINGS):
            return read_timings(bench, parent / TIMINGS)
    return {}


def read_timings(bench: dict[str, Any], where: Path | str = "timings") -> Timings:
    """Timings by (arch, layout) and device, from what `mtkd-cache bench inference --json` prints; MtkdError for other JSON."""
    try:
        machine = bench["machine"]
        kind, _, device = machine["device"].partition(": ")
        device += f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if kind == "cpu" else ""
        timings: Timings = {}
        for row in bench["rows"]:
            width, height = row["size"]
            column = device if (width, height) == PAPER_SIZE else f"{device}, {width}{TIMES}{height}"
            timings.setdefault((row["arch"], row["layout"]), {})[column] = Timing(float(row["ms"]), float(row["fps"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MtkdError(
            f"{where} is not the output of {BENCH} ({said(error)}). Delete it, or make it with {BENCH} > {TIMINGS}."
        ) from error
    return timings
