"""The multilabel subset: what networks trained on one annotation an image do where several are known.

    DATASET/multilabel/{patient}/imageNN.png beside maskNN_{anatomy}.png; a number may have leading zeros, as 03

In the Dresden set these are the stomach images again, annotated for seven anatomies. Every head sees every image; a head claims a
pixel where its logit is above a threshold: 0, and where all heads have one their operating points, these also with the presence
thresholds of those that have some (`mtkd_cache.training.presence`). Dice is that of `mtkd_cache.evaluation.dice`. Three figures
measure mutual exclusivity, which the subsets with one annotation cannot:

    claimed_twice          pixels that two heads or more claim / all pixels
    known_precision[a]     |P_a and T_a| / (|P_a and T_a| + |P_a and K_a|), counted over all images together
    claimed_elsewhere[a]   |P_a and K_a| / |K_a|, counted in the same way, also of heads without annotation

P_a: what head a claims; T_a: the annotated mask of a; K_a: pixels annotated as another anatomy and not as a. Background, which
nobody annotated as such, is in neither, so known_precision is 1 for a head that never claims another anatomy's pixels.

A folder of another dataset, none of whose patients the store knows, is evaluated whole (docs/evaluation.md lists some). Its masks
may be of structures that have no head: they say whose pixels are not a head's.
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
from mtkd_cache.data.samples import SPLITS, check_anatomies
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.dice import overlap_with, record
from mtkd_cache.evaluation.frames import silenced
from mtkd_cache.evaluation.pictures import AT_POINT
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import MultilabelEvaluation
from mtkd_cache.training.metrics import image_dice, summarize

WITH_PRESENCE = "_with_presence"  # suffix of figures
Levels = dict[str, tuple[Tensor, Tensor]]  # by suffix of figures, thresholds and presence thresholds as `Predictor.limits`
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


def other_patients(dataset: Path, store: SampleStore) -> set[str]:
    """The patients of another dataset's multilabel folder; none where the store knows any of them, or the folder is absent."""
    root = dataset / MULTILABEL
    patients = {patient_of(path.name) for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    return patients if patients.isdisjoint(store.patients.tolist()) else set()


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
    images and the patients of the split. Of another dataset all images count, and `split` in the result, and in the file's name,
    is the name of its folder.
    Returns what `evaluate` does, of the anatomies that have masks, and claimed (pixels that a head claims / all pixels),
    claimed_twice, known_precision {anatomy: value, None where the head claims no pixel that is annotated} and claimed_elsewhere
    {anatomy: value, None where no pixel is annotated as another}; each also at the operating points where all heads have one, and
    there with presence where some head has such a threshold.
    Raises MtkdError for an image without mask, for a mask of another size than its image, and, unless allow_overlap, where the
    networks have seen samples of the split; also for a folder of another dataset that is named as a split.
    """
    patients, name, overlap = set(store.patients[store.rows(split)].tolist()), store.name, {}
    if others := other_patients(Path(dataset), store):
        patients, name = others, Path(dataset).resolve().name
        if (split := name) in SPLITS:
            raise MtkdError(f"{dataset}: a folder of another dataset is named {name}, as a split of the store's. Rename it.")
    else:
        overlap = overlap_with(predictor, store, split, allow_overlap)
    scenes = find_scenes(Path(dataset), patients)
    own_scenes = list(scenes.items())[accelerator.process_index :: accelerator.num_processes]
    (thresholds, presence), points = predictor.limits(), predictor.thresholds_on(store)
    without = torch.full_like(presence, -torch.inf)
    levels: Levels = {"": (torch.zeros_like(thresholds), without)}
    if points.keys() == predictor.heads.keys():
        levels[AT_POINT] = thresholds, without
        levels |= {WITH_PRESENCE: (thresholds, presence)} if predictor.presence else {}
    counts = gather_object([_count(predictor, accelerator, store, levels, *scene) for scene in own_scenes])
    figures = {"dataset": f"{name}/{MULTILABEL}", **overlap, **({"thresholds": points} if AT_POINT in levels else {})}
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
        "known_precision": pooled_shares([count["known"] for count in counts]),
        "claimed_elsewhere": pooled_shares([count["elsewhere"] for count in counts]),
    }


def pooled_shares(counts: list[dict[str, tuple[int, int]]]) -> dict[str, float | None]:
    """First / (first + second) by anatomy over all images' {anatomy: (first, second)} pixels; None where both are 0."""
    first, second = (Counter[str]() for _ in range(2))
    for count in counts:
        first.update({anatomy: pixels[0] for anatomy, pixels in count.items()})
        second.update({anatomy: pixels[1] for anatomy, pixels in count.items()})
    both = first + second  # without the anatomies of no pixel
    return {anatomy: first[anatomy] / both[anatomy] if anatomy in both else None for anatomy in sorted(first)}


def count_pixels(claims: dict[str, Tensor], truths: dict[str, Tensor]) -> dict[str, Any]:
    """One image's figures. claims: bool (H, W) of every head; truths: bool (H, W) of every annotated anatomy.

    Returns dice {anatomy: value, NaN where truth and claim are empty}, claimed and claimed_twice as shares of the pixels, known
    {anatomy: (pixels claimed rightly, pixels claimed that are annotated as another anatomy)} and elsewhere {anatomy: (of the
    pixels annotated as another, those that its head claims, those that it does not)}. Without an annotation an anatomy is only
    in the last, without a head in none.
    """
    heads = torch.stack(list(claims.values())).sum(0)
    annotated = torch.stack(list(truths.values())).any(0)
    dice, known = {}, {}
    for anatomy in (name for name in truths if name in claims):
        claim, truth = claims[anatomy], truths[anatomy]
        dice[anatomy] = float(image_dice(claim[None], truth[None]))
        known[anatomy] = (int((claim & truth).sum()), int((claim & annotated & ~truth).sum()))
    elsewhere = {}
    for anatomy, claim in claims.items():
        others = annotated & ~truths[anatomy] if anatomy in truths else annotated
        elsewhere[anatomy] = (int((claim & others).sum()), int((~claim & others).sum()))
    return {
        "dice": dice,
        "claimed": float((heads >= 1).float().mean()),
        "claimed_twice": float((heads >= 2).float().mean()),
        "known": known,
        "elsewhere": elsewhere,
    }


def _count(
    predictor: Predictor, accelerator: Accelerator, store: SampleStore, levels: Levels, path: Path, masks: dict[str, Path]
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
        maps, upsampling = predictor.maps(to_float(torch.from_numpy(image.copy())[None].to(predictor.device)))
        logits = upsampling(maps)[0]
    claims = {name: (logits > silenced(thresholds, maps[0], presence)).cpu() for name, (thresholds, presence) in levels.items()}
    return {name: count_pixels(dict(zip(predictor.anatomies, each, strict=True)), truths) for name, each in claims.items()}
