"""The published figures of Maack et al. 2024 (MIDL), Tables 1 and 2, as data."""

import csv
from dataclasses import dataclass
from importlib.resources import files

from mtkd_cache.data.dresden import ANATOMIES

Key = tuple[str, str, bool]  # architecture, layout ("separate" or "shared"), distilled


@dataclass(frozen=True)
class Published:
    """What the paper reports of one network.

    arch: in this package's names ("segformer-mit_b0", "mininetv2"). params_m: millions. dice: the mean Dice in percent;
    by_anatomy: in percent, in the order of ANATOMIES. ms, fps: of one 1280x720 image on an RTX 3090.
    """

    arch: str
    layout: str
    kd: bool
    encoder: str
    params_m: float
    dice: float
    ms: float
    fps: float
    by_anatomy: dict[str, float]


Paper = dict[Key, Published]


def published() -> Paper:
    """The 18 rows of Tables 1 and 2 by (arch, layout, kd), in the paper's order."""
    by_anatomy = {_key(row): {anatomy: float(row[anatomy]) for anatomy in ANATOMIES} for row in _read("table2.csv")}
    return {
        (key := _key(row)): Published(
            *key,
            encoder=row["encoder"],
            params_m=float(row["params_m"]),
            dice=float(row["dice"]),
            ms=float(row["ms_rtx3090_1280x720"]),
            fps=float(row["fps"]),
            by_anatomy=by_anatomy[key],
        )
        for row in _read("table1.csv")
    }


def _key(row: dict[str, str]) -> Key:
    decoder, encoder = row["architecture"].lower(), row["encoder"]
    return decoder if decoder == encoder else f"{decoder}-{encoder}", row["layout"], row["kd"] == "yes"


def _read(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((files(__package__) / name).read_text(encoding="utf-8").splitlines()))
