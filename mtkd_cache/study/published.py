"""The published figures of Maack et al. 2024 (MIDL), Tables 1 and 2, as data."""

import csv
from importlib.resources import files
from typing import TypedDict

from mtkd_cache.data.dresden import ANATOMIES


class Table1Row(TypedDict):
    """Parameters in millions, mean Dice in percent; ms and fps for one 1280x720 image on an RTX 3090."""

    arch: str
    encoder: str
    layout: str
    kd: bool
    params_m: float
    dice: float
    ms: float
    fps: float


class Table2Row(TypedDict):
    """Dice in percent by anatomy."""

    arch: str
    encoder: str
    layout: str
    kd: bool
    dice: dict[str, float]


def table1() -> list[Table1Row]:
    """The 18 rows of Table 1 in the paper's order; `arch` in this package's names ("segformer-mit_b0", "mininetv2")."""
    return [
        Table1Row(
            arch=_arch(row),
            encoder=row["encoder"],
            layout=row["layout"],
            kd=row["kd"] == "yes",
            params_m=float(row["params_m"]),
            dice=float(row["dice"]),
            ms=float(row["ms_rtx3090_1280x720"]),
            fps=float(row["fps"]),
        )
        for row in _read("table1.csv")
    ]


def table2() -> list[Table2Row]:
    """The 18 rows of Table 2 in the paper's order, the anatomies in the order of ANATOMIES."""
    return [
        Table2Row(
            arch=_arch(row),
            encoder=row["encoder"],
            layout=row["layout"],
            kd=row["kd"] == "yes",
            dice={anatomy: float(row[anatomy]) for anatomy in ANATOMIES},
        )
        for row in _read("table2.csv")
    ]


def _arch(row: dict[str, str]) -> str:
    decoder = row["architecture"].lower()
    return decoder if decoder == row["encoder"] else f"{decoder}-{row['encoder']}"


def _read(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((files(__package__) / name).read_text(encoding="utf-8").splitlines()))
