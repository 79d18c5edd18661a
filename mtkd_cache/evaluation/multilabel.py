"""The multilabel subset: what networks trained on one annotation an image do where several are known.

    DATASET/multilabel/{patient}/imageNN.png beside maskNN_{anatomy}.png; a number may have leading zeros, as 03

In the Dresden set these are the stomach images again, annotated for seven anatomies. Every head sees every image; a head claims a
pixel where its logit is above a threshold: 0, and where all heads have one their operating points. Dice is that of
`mtkd_cache.evaluation.dice`. Two figures measure mutual exclusivity, which the
subsets with one annotation cannot:

    claimed_twice        pixels that two heads or more claim / all pixels
    known_precision[a]   |P_a and T_a| / (|P_a and T_a| + |P_a and K_a|), counted over all images together

P_a: what head a claims; T_a: the annotated mask of a; K_a: pixels annotated as another anatomy and not as a. Background, which
nobody annotated as such, is in neither, so known_precision is 1 for a head that never claims another anatomy's pixels.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mtkd_cache.data.augment import to_float
from mtkd_cache.data.dresden import MULTILABEL, patient_of, read_image, read_mask
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.samples import check_anatomies
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.dice import overlap_with, record
from mtkd_cache.evaluation.pictures import AT_POINT
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import MultilabelEvaluation
from mtkd_cache.training.metrics import image_dice, summarize

_IMAGE = re.compile(r"image(\d+)\.png")


def find_scenes(dataset: Path, patients: set[str]) -> dict[Path, dict[str, Path]]:
    """The multilabel images of some patients, each with the masks beside it by anatomy.

    Raises MtkdError where there is none, and for one without mask.
    """
    root = dataset / MULTILABEL
    if not root.is_dir():
        raise MtkdError(f"{dataset} has no folder {MULTILABEL}. Name the dataset's folder, which holds it beside the anatomies'.")
    scenes: dict[Path, dict[str, Path]] = {}
    for folder in sorted(path for path in root.iterdir() if patient_of(path.name) in patients):
        scenes |= scenes_in(folder)
    if not scenes:
        raise MtkdError(f"{root} holds no image of the patients {', '.join(sorted(patients))}. Choose another split.")
    return scenes


def scenes_in(folder: Path) -> dict[Path, dict[str, Path]]:
    """The images in a folder by their number, each with the masks beside it by anatomy. Raises MtkdError for one without mask."""
    numbered = ((match, image) for image in folder.iterdir() if (match := _IMAGE.fullmatch(image.name)))
    scenes = {}
    for match, image in sorted(numbered, key=lambda each: (int(each[0][1]), each[1])):
        start = f"mask{match[1]}_"
        masks = {path.stem.removeprefix(start): path for path in folder.glob(f"{start}*.png")}
        if not masks:
            raise MtkdError(f"{image} has no mask: {start}ANATOMY.png is missing. Restore the masks or remove the image.")
        check_anatomies(masks, folder)
        scenes[image] = dict(sorted(masks.items()))
    return scenes


def evaluate_multilabel(
    predictor: Predictor, dataset: Path, store: SampleStore, split: str, accelerator: Accelerator, allow_overlap: bool = False
) -> MultilabelEvaluation:
    """Dice and precision of a student, or of teachers, on the multilabel images; written to multilabel-SPLIT.json.

    predictor: of the store's anatomies, on the accelerator's device. dataset: the dataset folder. store: tells the size of the
    images and the patients of the split.
    Returns what `evaluate` does, of the anatomies that have masks, and claimed (pixels that a head claims / all pixels),
    claimed_twice and known_precision {anatomy: value, None where the head claims no pixel that is annotated}; each also at the
    operating points where all heads have one.
    Raises MtkdError for an image without mask, for a mask of another size than its image, and, unless allow_overlap, where the
    networks have seen samples of the split.
    """
    overlap = overlap_with(predictor, store, split, allow_overlap)
    scenes = find_scenes(Path(dataset), set(store.patients[store.rows(split)].tolist()))
    own_scenes = list(scenes.items())[accelerator.process_index :: accelerator.num_processes]
    levels, points = {"": dict.fromkeys(predictor.heads, 0.0)}, predictor.thresholds_on(store)
    if points.keys() == predictor.heads.keys():
        levels[AT_POINT] = points
    counts = gather_object([_count(predictor, accelerator, store, levels, *scene) for scene in own_scenes])
    figures = {"dataset": f"{store.name}/{MULTILABEL}", **overlap, **({"thresholds": points} if AT_POINT in levels else {})}
    for level in levels:
        figures |= {name + level: value for name, value in _figures([count[level] for count in counts]).items()}
    summary = summarize((anatomy, [dice]) for count in counts for anatomy, dice in count[""]["dice"].items())
    figures |= {"images": len(scenes), "images_by_anatomy": summary["images_by_anatomy"]}
    return record(MultilabelEvaluation, predictor, store, split, accelerator, figures)


def _figures(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all images, from what `count_pixels` gave of each."""
    dice = summarize((anatomy, [dice]) for count in counts for anatomy, dice in count["dice"].items())
    return {
        "dice": dice["dice"],
        "mean_dice": dice["mean_dice"],
        **{share: float(np.mean([count[share] for count in counts])) for share in ("claimed", "claimed_twice")},
        "known_precision": known_precision([count["known"] for count in counts]),
    }


def known_precision(counts: list[dict[str, tuple[int, int]]]) -> dict[str, float | None]:
    """Right / (right + wrong) by anatomy over all images' {anatomy: (right, wrong)} pixels; None where both are 0."""
    right, wrong = (Counter[str]() for _ in range(2))
    for count in counts:
        right.update({anatomy: pixels[0] for anatomy, pixels in count.items()})
        wrong.update({anatomy: pixels[1] for anatomy, pixels in count.items()})
    claimed = right + wrong  # without the anatomies of no pixel
    return {anatomy: right[anatomy] / claimed[anatomy] if anatomy in claimed else None for anatomy in sorted(right)}


def count_pixels(claims: dict[str, Tensor], truths: dict[str, Tensor]) -> dict[str, Any]:
    """One image's figures. claims: bool (H, W) of every head; truths: bool (H, W) of every annotated anatomy.

    Returns dice {anatomy: value, NaN where truth and claim are empty}, claimed and claimed_twice as shares of the pixels, and
    known {anatomy: (pixels claimed rightly, pixels claimed that are annotated as another anatomy)}; an anatomy without head is
    left out.
    """
    heads = torch.stack(list(claims.values())).sum(0)
    annotated = torch.stack(list(truths.values())).any(0)
    dice, known = {}, {}
    for anatomy in (name for name in truths if name in claims):
        claim, truth = claims[anatomy], truths[anatomy]
        dice[anatomy] = float(image_dice(claim[None], truth[None]))
        known[anatomy] = (int((claim & truth).sum()), int((claim & annotated & ~truth).sum()))
    return {
        "dice": dice,
        "claimed": float((heads >= 1).float().mean()),
        "claimed_twice": float((heads >= 2).float().mean()),
        "known": known,
    }


def _count(
    predictor: Predictor,
    accelerator: Accelerator,
    store: SampleStore,
    levels: dict[str, dict[str, float]],
    path: Path,
    masks: dict[str, Path],
) -> dict[str, dict[str, Any]]:
    """What `count_pixels` gives at each level's thresholds of an image, which is resized with its masks as at ingest."""
    image, size = read_image(path, store.size)
    truths: dict[str, Tensor] = {}
    threshold: Any = store.group.attrs.get("threshold")
    for anatomy, mask in masks.items():
        truth, mask_size = read_mask(mask, store.size, threshold)
        if mask_size != size:
            raise MtkdError(f"{mask} is {mask_size[0]}x{mask_size[1]}, its image {size[0]}x{size[1]}. Restore that image's mask.")
        truths[anatomy] = torch.from_numpy(truth > 0)
    with accelerator.autocast():
        logits = dict(zip(predictor.anatomies, predictor(to_float(torch.from_numpy(image.copy())[None]))[0].cpu(), strict=True))
    return {
        name: count_pixels({anatomy: values > thresholds[anatomy] for anatomy, values in logits.items()}, truths)
        for name, thresholds in levels.items()
    }
