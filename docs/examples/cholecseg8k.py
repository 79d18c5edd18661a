"""Lay CholecSeg8k out as a multilabel folder, to measure students and teachers on another hospital's cholecystectomies.

python docs/examples/cholecseg8k.py CHOLECSEG8K data/cholecseg8k --every 20
mtkd-cache evaluate --run RUN --store data/samples.zarr --multilabel data/cholecseg8k

Hong et al., "CholecSeg8k", arXiv:2012.12453, CC BY-NC-SA 4.0: 8,080 frames of 17 videos, in clips of 80 consecutive frames:

    CHOLECSEG8K/video01/video01_00080/frame_80_endo.png
                                      frame_80_endo_watershed_mask.png   a gray level per class (`CLASSES`)
                                      frame_80_endo_color_mask.png       a color per class, read where the other is absent

Written for that layout and tested on files made in it; it has not been run on the dataset itself.
"""

import argparse
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

import mtkd_cache as mc
from mtkd_cache.data.dresden import read_image

# Gray level in the watershed masks ("#505050" in the dataset's description is level 50), color in the color masks, and our name;
# None: not written, because it may contain some of our anatomies or lie on one (docs/evaluation.md says why for each).
CLASSES = {
    "Black Background": (50, (127, 127, 127), None),
    "Abdominal Wall": (11, (210, 140, 140), "abdominal_wall"),
    "Liver": (21, (255, 114, 114), "liver"),
    "Gastrointestinal Tract": (13, (231, 70, 156), None),
    "Fat": (12, (186, 183, 75), None),
    "Grasper": (31, (170, 255, 0), "grasper"),
    "Connective Tissue": (23, (255, 85, 0), None),
    "Blood": (24, (255, 0, 0), None),
    "Cystic Duct": (25, (255, 255, 0), "cystic_duct"),
    "L-hook Electrocautery": (32, (169, 255, 184), "l_hook_electrocautery"),
    "Gallbladder": (22, (255, 160, 165), "gallbladder"),
    "Hepatic Vein": (33, (0, 50, 128), "hepatic_vein"),
    "Liver Ligament": (5, (111, 74, 0), None),
}
UNLABELED = ((0, 0, 0), (255, 255, 255))  # beside the 13 classes: a border of one pixel, and pixels that were left out
TOLERATED = 0.01  # of a mask's pixels may have other colors
IMAGE = re.compile(r"frame_(\d+)_endo\.png")


def lay_out(source: Path, out: Path, every: int = 1) -> dict[str, int]:
    """Write OUT/multilabel/VIDEO/imageNNNNN.png with a mask of each class that has a name of ours, empty ones too.

    Args:
        source: folder of the dataset, with video01 and so on in it.
        out: the new dataset folder.
        every: take one frame of so many of a clip, beginning with the first; consecutive frames are almost equal.

    Returns:
        images, videos, and other_pixels: those of a color that is neither a class's nor `UNLABELED`; they count as unlabeled.

    Raises:
        MtkdError: no frame, a frame without mask, a mask of another size, or with more than 1 % of other colors.
    """
    target, part = out / "multilabel", out / "multilabel.part"
    shutil.rmtree(part, ignore_errors=True)
    counts: Counter[str] = Counter()
    for clip in sorted(path for path in source.glob("video*/video*") if path.is_dir()):
        frames = sorted((int(match[1]), path) for path in clip.iterdir() if (match := IMAGE.fullmatch(path.name)))
        folder = part / clip.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in frames[::every]:
            masks, other = read_classes(path)
            shutil.copyfile(path, folder / f"image{number:05d}.png")
            for name, mask in masks.items():
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"mask{number:05d}_{name}.png")
            counts.update(images=1, other_pixels=other)
    if not counts["images"]:
        raise mc.MtkdError(f"{source} has no video*/video*/frame_*_endo.png. Name the folder that holds video01.")
    counts["videos"] = len(list(part.iterdir()))
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    return dict(counts)


def read_classes(image: Path) -> tuple[dict[str, np.ndarray], int]:
    """The masks of an image, bool (H, W) by our name, and how many pixels have a color of no class. See `lay_out` for errors."""
    start = image.name.removesuffix(".png")
    path = next((path for kind in ("watershed", "color") if (path := image.with_name(f"{start}_{kind}_mask.png")).exists()), None)
    if path is None:
        raise mc.MtkdError(f"{image} has no {start}_watershed_mask.png and no {start}_color_mask.png. Restore one of them.")
    colors, size = read_image(path)
    if size != (expected := read_image(image)[1]):
        raise mc.MtkdError(f"{path} is {size[0]}x{size[1]}, its image {expected[0]}x{expected[1]}. Restore that mask.")
    codes = colors.astype(np.int32) @ (1 << 16, 1 << 8, 1)
    gray = path.name.endswith("_watershed_mask.png")
    of_class = {name: _code((level,) * 3 if gray else color) for name, (level, color, _) in CLASSES.items()}
    other = int((~np.isin(codes, [*of_class.values(), *map(_code, UNLABELED)])).sum())
    if other > TOLERATED * codes.size:
        raise mc.MtkdError(
            f"{path}: {100 * other / codes.size:.1f} % of the pixels are of no class. Is it a mask of CholecSeg8k?"
        )
    return {ours: codes == of_class[name] for name, (_, _, ours) in CLASSES.items() if ours}, other


def _code(color: tuple[int, ...]) -> int:
    red, green, blue = color
    return (red << 16) + (green << 8) + blue


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=1)
    try:
        print(lay_out(**vars(parser.parse_args())))
    except mc.MtkdError as error:
        parser.exit(1, f"{error}\n")
