"""The rows of pictures, each figure against the same counted naively."""

import math

import numpy as np
import pytest
import torch

from mtkd_cache.evaluation.dice import figures_of
from mtkd_cache.evaluation.pictures import AT_POINT, Picture, average_precision, score_pictures
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.evaluation.tables import figure_intervals
from mtkd_cache.training.metrics import overlap
from mtkd_cache.training.operating_points import write_operating_points

NAN = math.nan
NAMES = ("dice", "iou", "precision", "recall")


def naive_precision(logits: np.ndarray, truth: np.ndarray) -> float:
    """Sum over the distinct logits, from the highest, of the precision above each times the recall it adds."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(logits.flat), reverse=True):
        claimed = logits >= threshold
        hits = (claimed & truth).sum()
        area += hits / claimed.sum() * (hits / truth.sum() - recall)
        recall = hits / truth.sum()
    return area


def test_average_precision_of_images():
    torch.manual_seed(0)
    logits, truth = (30 * torch.randn(3, 6, 7)).round() / 2, torch.rand(3, 6, 7) > 0.8  # with ties, and beyond a float's sigmoid
    truth[2] = False
    said = average_precision(logits, truth).tolist()
    assert said[:2] == pytest.approx([naive_precision(logits[i].numpy(), truth[i].numpy()) for i in (0, 1)])
    assert math.isnan(said[2])


def test_overlap_of_images():
    truth, predicted = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    truth[0, :2], predicted[0, 1:4] = True, True  # 8 and 12 pixels, 4 shared
    predicted[1, 0, 0] = True  # an empty truth with a prediction
    truth[2, 0, 0] = True  # a truth without a prediction
    dice, iou, precision, recall = (values.tolist() for values in overlap(predicted, truth).values())
    assert dice == pytest.approx([0.4, 0, 0, NAN], nan_ok=True)
    assert iou == pytest.approx([0.25, 0, 0, NAN], nan_ok=True)
    assert precision == pytest.approx([1 / 3, 0, NAN, NAN], nan_ok=True)
    assert recall == pytest.approx([0.5, NAN, 0, NAN], nan_ok=True)


def test_rows_are_scored_at_the_points_chosen_on_validation(organ_store, organ_teachers, accelerator, copy_of):
    folder = copy_of(organ_teachers)
    predictor = Predictor.load(folder)
    rows = score_pictures(predictor, organ_store, "test", accelerator)
    assert all(math.isnan(getattr(row, name + AT_POINT)) for row in rows for name in NAMES)
    weights = predictor.weights_sha256["tongue"]
    write_operating_points(folder / "tongue", {"tongue": predictor.heads["tongue"]}, weights, organ_store, accelerator)
    predictor = Predictor.load(folder)
    threshold = predictor.thresholds["tongue"]
    assert threshold != 0
    again = score_pictures(predictor, organ_store, "test", accelerator)
    assert [row.sha256 for row in again] == [row.sha256 for row in rows]
    assert [row.dice for row in again] == [row.dice for row in rows]
    numbers = np.concatenate([organ_store.rows("test", organ) for organ in organ_store.anatomies])
    for number, row in zip(numbers, again, strict=True):
        organ = organ_store.anatomies[organ_store.anatomy[number]]
        assert (row.patient, row.frame, row.anatomy) == ("50", organ_store.frame[number], organ)
        image, mask = (torch.from_numpy(values) for values in organ_store.read(np.array([number])))
        logits = predictor(image.permute(0, 3, 1, 2).float() / 255, [organ])[:, 0]
        at_half = overlap(logits > 0, mask > 0)
        assert [getattr(row, name) for name in NAMES] == pytest.approx(
            [float(at_half[name]) for name in NAMES], abs=1e-6, nan_ok=True
        )
        said = [getattr(row, name + AT_POINT) for name in NAMES]
        at_point = overlap(logits > threshold, mask > 0) if organ == "tongue" else dict.fromkeys(NAMES, NAN)
        assert said == pytest.approx([float(at_point[name]) for name in NAMES], abs=1e-6, nan_ok=True)


def picture(anatomy: str, half: float, dice: float, precision: float) -> Picture:
    return Picture(
        patient="1", frame=0, anatomy=anatomy, sha256="", dice=half, dice_at_operating_point=dice, average_precision=precision
    )


def test_figures_are_means_over_what_counts():
    rows = [picture("liver", 0.2, 0.4, 0.5), picture("liver", 0.4, 0.8, NAN), picture("ureter", NAN, 0.0, NAN)]
    said = figures_of(rows, figure_intervals(rows), {"liver": -2.0, "ureter": -1.0}, ("liver", "ureter"))
    assert said["dice"] == {"liver": pytest.approx(0.3), "ureter": None}
    assert said["mean_dice"] == pytest.approx(0.3)
    assert said["dice_at_operating_point"] == {"liver": pytest.approx(0.6), "ureter": 0.0}
    assert said["mean_dice_at_operating_point"] == pytest.approx(0.3)
    assert said["average_precision"] == {"liver": 0.5, "ureter": None}
    assert said["mean_average_precision"] == 0.5
    assert said["images"] == 3
    assert "dice_at_operating_point" not in figures_of(rows, figure_intervals(rows), {"liver": -2.0}, ("liver", "ureter"))
