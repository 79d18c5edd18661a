"""The look of the figures, applied without touching matplotlib's global settings, and their files."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

QUIET, PALE, RED = "#6b7280", "#cfd3d8", "#d0202e"
FAMILIES = {"DeepLabV3": "#2166ac", "SegFormer": "#00806a", "MiniNetV2": "#b06a00"}
OTHERS = ("#7b4fb3", "#4d4d4d", "#a3337a", "#5b7f00")

DPI = 200

styled = matplotlib.rc_context(fname=Path(__file__).with_name("figures.mplstyle"))  # runs a drawing function in that style


@styled
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg; the same figure gives the same bytes. Returns both paths."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
