"""The look of the figures, applied without touching matplotlib's global settings, and their files."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, QUIET, PALE, RED = "#1f2328", "#6b7280", "#cfd3d8", "#d0202e"
FAMILIES = {"DeepLabV3": "#2166ac", "SegFormer": "#00806a", "MiniNetV2": "#b06a00"}
OTHERS = ("#7b4fb3", "#4d4d4d", "#a3337a", "#5b7f00")

RULES: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.hashsalt": "mtkd-cache",
    "svg.fonttype": "path",
    "savefig.bbox": None,
}
DPI = 200

styled = matplotlib.rc_context(RULES)  # runs a drawing function under RULES


@styled
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg; the same figure gives the same bytes. Returns both paths."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
