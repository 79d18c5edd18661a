"""What each picture of a split gets from the head of its anatomy: the rows that evaluations and comparisons summarize."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.evaluation.surface import surface_distances
from mtkd_cache.training.metrics import overlap, split_logits

NAN = math.nan
AT_POINT = "_at_operating_point"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of an anatomy's own subset. Shares are in [0, 1], distances in pixels; NaN does not count.

    dice, iou, precision, recall: at probability 0.5, as in the paper. dice and iou do not count where truth and prediction are
    empty, precision where nothing is predicted, recall for an empty truth. nsd, hd95: see `surface_distances`.
    FIGURE_at_operating_point: the same at the head's operating point; NaN where it has none that was chosen on this store.
    claimed: the share of the picture's pixels that are predicted; it always counts.
    average_precision: the area under the precision-recall curve of the pixels, which depends on no threshold; it does not count
    where the truth is empty.
    """

    patient: str
    frame: int
    anatomy: str
    sha256: str
    dice: float = NAN
    iou: float = NAN
    precision: float = NAN
    recall: float = NAN
    nsd: float = NAN
    hd95: float = NAN
    dice_at_operating_point: float = NAN
    iou_at_operating_point: float = NAN
    precision_at_operating_point: float = NAN
    recall_at_operating_point: float = NAN
    nsd_at_operating_point: float = NAN
    hd95_at_operating_point: float = NAN
    average_precision: float = NAN
    claimed: float = NAN
    claimed_at_operating_point: float = NAN


def score_pictures(
    predictor: Predictor, store: SampleStore, split: str, accelerator: Accelerator, tolerance: float | None = None
) -> list[Picture]:
    """The rows of a split, in the predictor's order of the anatomies and the store's of the pictures.

    predictor: of the store's anatomies, on the accelerator's device. tolerance: of nsd, in pixels; None leaves nsd and hd95 out.
    All processes of a launch share the work and get all rows.
    """
    thresholds = predictor.thresholds_on(store)
    own = []
    for anatomy, rows, logits, truth in split_logits(predictor.heads, store, split, accelerator, segment=_segment(predictor)):
        figures = _figures(logits, truth, thresholds.get(anatomy), tolerance)
        for place, row in enumerate(rows.tolist()):
            picture = Picture(
                patient=str(store.patients[row]),
                frame=int(store.frame[row]),
                anatomy=anatomy,
                sha256=str(store.hashes[row]),
                **{name: float(values[place]) for name, values in figures.items()},
            )
            own.append((row, picture))
    order = {anatomy: number for number, anatomy in enumerate(predictor.anatomies)}
    scored = sorted(gather_object(own), key=lambda item: (order[item[1].anatomy], item[0]))
    return [picture for _, picture in scored]


def _segment(predictor: Predictor) -> Callable[[Tensor, str], Tensor]:
    return lambda images, anatomy: predictor.logits(images, [anatomy])[:, 0]


def _figures(logits: Tensor, truth: Tensor, threshold: float | None, tolerance: float | None) -> dict[str, Tensor]:
    """The figures of a batch (B, H, W), float (B,) each."""
    predictions = {"": logits > 0} | ({} if threshold is None else {AT_POINT: logits > threshold})
    figures = {"average_precision": average_precision(logits, truth)}
    for suffix, predicted in predictions.items():
        own = {**overlap(predicted, truth), "claimed": predicted.float().mean((1, 2)).cpu()}
        if tolerance is not None:
            own["nsd"], own["hd95"] = surface_distances(predicted, truth, tolerance)
        figures |= {name + suffix: values for name, values in own.items()}
    return figures


def average_precision(logits: Tensor, truth: Tensor) -> Tensor:
    """Average precision of each image's pixels: float and bool (B, H, W) -> float (B,), on the CPU, NaN for an empty truth."""
    scores = logits.double().atan() / math.pi + 0.5  # in the order of the logits; a sigmoid makes the large ones equal
    values = [
        float(binary_average_precision(image.flatten(), mask.long().flatten())) if mask.any() else NAN
        for image, mask in zip(scores, truth, strict=True)
    ]
    return torch.tensor(values)
