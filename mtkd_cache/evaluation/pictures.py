"""What each picture of a split gets from the head of its anatomy: the rows that evaluations and comparisons summarize."""

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from segmentation_models_pytorch.metrics import get_stats
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.training.metrics import image_dice, split_logits

NAN = math.nan


@dataclass(frozen=True)
class Picture:
    """One picture of an anatomy's own subset; the figures are in [0, 1], NaN where they do not count.

    dice, iou, precision, recall: at the head's operating point, NaN also where it has none that was chosen on this store. dice
    and iou do not count where truth and prediction are empty, precision where nothing is predicted, recall for an empty truth.
    dice_at_half: Dice at probability 0.5, as in the paper. average_precision: the area under the precision-recall curve of the
    pixels, which depends on no threshold; it does not count where the truth is empty.
    """

    patient: str
    frame: int
    anatomy: str
    sha256: str
    dice: float
    iou: float
    precision: float
    recall: float
    dice_at_half: float
    average_precision: float


def score_pictures(predictor: Predictor, store: SampleStore, split: str, accelerator: Accelerator) -> list[Picture]:
    """The rows of a split, in the predictor's order of the anatomies and the store's of the pictures.

    predictor: of the store's anatomies, on the accelerator's device. All processes of a launch share the work and get all rows.
    """
    thresholds = predictor.thresholds_on(store)
    own = []
    for anatomy, rows, logits, truth in split_logits(predictor.heads, store, split, accelerator):
        threshold = thresholds.get(anatomy)
        figures = torch.stack(
            [
                *(torch.full((4, len(rows)), NAN) if threshold is None else overlap(logits > threshold, truth)),
                image_dice(logits > 0, truth).cpu(),
                average_precision(logits, truth),
            ],
            dim=1,
        ).tolist()
        for row, values in zip(rows.tolist(), figures, strict=True):
            name = str(store.patients[row]), int(store.frame[row]), anatomy, str(store.hashes[row])
            own.append((row, Picture(*name, *values)))
    place = {anatomy: number for number, anatomy in enumerate(predictor.anatomies)}
    scored = sorted(gather_object(own), key=lambda item: (place[item[1].anatomy], item[0]))
    return [picture for _, picture in scored]


def overlap(predicted: Tensor, truth: Tensor) -> Tensor:
    """Dice, intersection over union, precision and recall of each image: bool (B, H, W) twice -> float (4, B), on the CPU."""
    hits, extra, missed, _ = get_stats(predicted[:, None].long(), truth[:, None].long(), mode="binary")
    wholes = hits + (extra + missed) / 2, hits + extra + missed, hits + extra, hits + missed
    return torch.stack([hits / whole for whole in wholes])[..., 0].cpu()


def average_precision(logits: Tensor, truth: Tensor) -> Tensor:
    """Average precision of each image's pixels: float and bool (B, H, W) -> float (B,), on the CPU, NaN for an empty truth."""
    values = [
        float(binary_average_precision(image.double().flatten(), mask.long().flatten())) if mask.any() else NAN
        for image, mask in zip(logits, truth, strict=True)
    ]
    return torch.tensor(values)
