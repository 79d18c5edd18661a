"""How far the outline of a prediction lies from that of the truth, by MONAI: the extra `surface` of this package.

NSD    normalized surface Dice (Nikolov et al. 2021): the share of both outlines that lies within a tolerance of the other
HD95   the larger of the two directed 95th percentiles of the distances between the outlines (95 % Hausdorff distance)

Distances are in pixels of the sample store's images. A mask that reaches the image's border has an outline there.
"""

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

from mtkd_cache.errors import MtkdError


def check_surface_extra() -> None:
    """Raises MtkdError where MONAI or SciPy, which it needs, is missing."""
    if not (find_spec("monai") and find_spec("scipy")):
        raise MtkdError("NSD and HD95 are computed by MONAI. Install it with: pip install 'mtkd-cache[surface]'")


def surface_distances(predicted: Tensor, truth: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """NSD in 0..1 and HD95 in pixels of each image.

    Args:
        predicted, truth: bool (B, H, W).
        tolerance: of NSD, in pixels.

    Returns:
        NSD and HD95, float (B,), on the CPU. NSD is NaN where both masks are empty and 0 where one is; HD95 is NaN where one is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls what it deprecates itself
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance
        from monai.metrics.surface_dice import compute_surface_dice

        nsd, hd95 = [], []
        for masks in zip(predicted[:, None, None].cpu(), truth[:, None, None].cpu(), strict=True):
            filled = sum(bool(mask.any()) for mask in masks)
            if filled == 2:
                nsd.append(float(compute_surface_dice(*masks, [tolerance], include_background=True)))
                hd95.append(float(compute_hausdorff_distance(*masks, include_background=True, percentile=95)))
            else:
                nsd.append(0.0 if filled else torch.nan)
                hd95.append(torch.nan)
    return torch.tensor(nsd), torch.tensor(hd95)
