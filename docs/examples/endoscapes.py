"""Lay the segmentations of Endoscapes2023 out as a multilabel folder, to measure students and teachers on its surgeries.

python docs/examples/endoscapes.py ENDOSCAPES/test_seg data/endoscapes
mtkd-cache evaluate --run RUN --store data/samples.zarr --multilabel data/endoscapes

Murali et al., "The Endoscapes Dataset for Surgical Scene Segmentation, Object Detection, and Critical View of Safety
Assessment", arXiv:2312.12429; 493 segmented frames of 50 cholecystectomies, in three folders (train_seg, val_seg, test_seg):

    ENDOSCAPES/test_seg/annotation_coco.json    COCO, segmentations as RLE; the images that it lists are read
                        VIDEO_FRAME.jpg

Needs pycocotools (pip install pycocotools). Written for that layout and tested on files made in it; it has not been run on the
dataset itself.
"""

import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mtkd_cache as mc
from mtkd_cache.data.dresden import read_image

ANNOTATIONS = "annotation_coco.json"
IMAGE = re.compile(r"(\d+)_(\d+)\.jpg")


def lay_out(source: Path, out: Path) -> dict[str, int]:
    """Write OUT/multilabel/endoscapes-VIDEO/imageFRAME.png with a mask of each of the categories, empty ones too.

    Args:
        source: one of the dataset's folders with segmentations.
        out: the new dataset folder.

    Returns:
        images, videos and annotations.

    Raises:
        MtkdError: the annotations are absent, no COCO, or boxes without segmentations; an image is missing.
    """
    coco = read_coco(source / ANNOTATIONS)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    of_image = defaultdict(list)
    for annotation in coco["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    target, part = out / "multilabel", out / "multilabel.part"
    shutil.rmtree(part, ignore_errors=True)
    for image in coco["images"]:
        match = IMAGE.fullmatch(Path(image["file_name"]).name)
        if not match:
            raise mc.MtkdError(
                f"{source / ANNOTATIONS}: {image['file_name']} is not named VIDEO_FRAME.jpg, as those of Endoscapes."
            )
        pixels, (width, height) = read_image(source / image["file_name"])
        masks = {name: np.zeros((height, width), bool) for name in names.values()}
        for annotation in of_image[image["id"]]:
            masks[names[annotation["category_id"]]] |= decode(annotation, height, width, source / ANNOTATIONS)
        folder = part / f"endoscapes-{match[1]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"image{match[2]}.png")
        for name, mask in masks.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"mask{match[2]}_{name}.png")
    counts = {"images": len(coco["images"]), "videos": len(list(part.iterdir())), "annotations": len(coco["annotations"])}
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    return counts


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO file. Raises MtkdError where it is absent or lacks one of COCO's lists."""
    try:
        content = json.loads(path.read_bytes())
        if not all(isinstance(content[key], list) and content[key] for key in ("images", "annotations", "categories")):
            raise ValueError("a list is empty")
    except FileNotFoundError:
        raise mc.MtkdError(f"{path} is missing. Name a folder with segmentations, as ENDOSCAPES/test_seg.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise mc.MtkdError(f"{path} has no images, annotations and categories of COCO ({error}). Restore it.") from error
    return content


def decode(annotation: dict[str, Any], height: int, width: int, where: Path) -> np.ndarray:
    """The mask of an annotation, bool (height, width): run lengths (compressed or not) or polygons. `where` is for messages."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise mc.MtkdError("Decoding COCO masks needs pycocotools. Run pip install pycocotools.") from error
    segmentation = annotation.get("segmentation")
    if not segmentation:
        raise mc.MtkdError(f"{where} has boxes without segmentations. Name train_seg, val_seg or test_seg.")
    if isinstance(segmentation, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        runs = (
            coco_mask.frPyObjects(segmentation, *segmentation["size"])
            if isinstance(segmentation["counts"], list)
            else segmentation
        )
    mask = coco_mask.decode(runs).astype(bool)
    if mask.shape != (height, width):
        raise mc.MtkdError(
            f"{where}: a mask of image {annotation['image_id']} is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}."
        )
    return mask


if __name__ == "__main__":
    try:
        print(lay_out(Path(sys.argv[1]), Path(sys.argv[2])))
    except mc.MtkdError as error:
        sys.exit(str(error))
