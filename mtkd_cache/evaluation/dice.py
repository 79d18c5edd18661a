"""Dice of trained networks on a split (see `mtkd_cache.training.metrics`), recorded beside their weights with a model card."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from accelerate import Accelerator

from mtkd_cache.cache.overlap import check_overlap
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.model_card import write_card
from mtkd_cache.evaluation.pictures import Picture, score_pictures
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.evaluation.surface import check_surface_extra
from mtkd_cache.evaluation.tables import Intervals, figure_intervals, write_tables
from mtkd_cache.evaluation.worst_cases import write_worst_cases
from mtkd_cache.models.records import Evaluation, OperatingPoints, write_json
from mtkd_cache.training.metrics import summarize
from mtkd_cache.training.operating_points import write_operating_points

WITH_INTERVAL = ("dice", "dice_at_operating_point", "average_precision")
Kind = TypeVar("Kind", bound=Evaluation)


def evaluate(
    predictor: Predictor,
    store: SampleStore,
    split: str,
    accelerator: Accelerator,
    tolerance: float | None = None,
    allow_overlap: bool = False,
) -> Evaluation:
    """Dice of a student, or of teachers, on a split, written to evaluation-SPLIT.json in their folder.

    Beside it: the figures of each picture and their summary, see `mtkd_cache.evaluation.tables`, a page of the pictures with the
    lowest Dice, and the model card.

    On the validation split, heads without an operating point get theirs first; none is ever chosen on another split.

    predictor: of the store's anatomies, on the accelerator's device. allow_overlap: see `overlap_with`, which also raises.
    tolerance: of the normalized surface Dice, in pixels; None computes no surface distances, which need an extra.
    """
    if tolerance is not None:
        check_surface_extra()
    overlap = overlap_with(predictor, store, split, allow_overlap)
    if split == "validation":
        predictor = with_operating_points(predictor, store, accelerator)
    pictures = score_pictures(predictor, store, split, accelerator, tolerance)
    bounds = figure_intervals(pictures)
    if accelerator.is_main_process:
        write_tables(predictor.folder, split, pictures, bounds)
        write_worst_cases(pictures, predictor, store, split)
    figures = figures_of(pictures, bounds, predictor.thresholds_on(store), predictor.anatomies)
    figures |= {"dataset": store.name, "nsd_tolerance": tolerance, **overlap}
    return record(Evaluation, predictor, store, split, accelerator, figures)


def overlap_with(predictor: Predictor, store: SampleStore, split: str, allow: bool) -> dict[str, Any]:
    """What an evaluation records of a split's samples that its networks have seen; nothing of the training split.

    Raises MtkdError where they have seen some, unless that is allowed.
    """
    if split == "train":
        return {}
    return {"overlap": check_overlap(predictor.seen(store.size), store, str(predictor.folder), [split], allow).to_json()}


def figures_of(
    pictures: Sequence[Picture], bounds: Intervals, thresholds: dict[str, float], anatomies: tuple[str, ...]
) -> dict[str, Any]:
    """Means of pictures as an `Evaluation` has them. bounds: their intervals; thresholds: see `Predictor.thresholds_on`."""
    precision = summarize((picture.anatomy, [picture.average_precision]) for picture in pictures)
    figures = {
        **summarize((picture.anatomy, [picture.dice]) for picture in pictures),
        "average_precision": precision["dice"],
        "mean_average_precision": precision["mean_dice"],
        "patients": len({picture.patient for picture in pictures}),
        "intervals": {figure: own for figure, own in bounds.items() if figure in WITH_INTERVAL},
    }
    if thresholds.keys() >= set(anatomies):
        chosen = summarize((picture.anatomy, [picture.dice_at_operating_point]) for picture in pictures)
        figures |= {
            "thresholds": thresholds,
            "dice_at_operating_point": chosen["dice"],
            "mean_dice_at_operating_point": chosen["mean_dice"],
            "claims_at_operating_point": summarize((each.anatomy, [each.claimed_at_operating_point]) for each in pictures)[
                "dice"
            ],
        }
    return figures


def without_operating_points(predictor: Predictor, store: SampleStore) -> str:
    """Why there are no figures at the operating points, and how to get them."""
    files = [each for each in predictor.operating_points if each.store_fingerprint != store.fingerprint]
    first = f"mtkd-cache evaluate --split validation on {predictor.folder}, once, chooses them."
    if files:
        return f"the operating points were chosen on another sample store. With {OperatingPoints.FILE} deleted, {first}"
    return f"no operating points are chosen yet; {first}"


def with_operating_points(predictor: Predictor, store: SampleStore, accelerator: Accelerator) -> Predictor:
    """The predictor with operating points for the heads that have none, chosen on the store's validation split and written."""
    weights, points = predictor.weights_sha256, list(predictor.operating_points)
    known = {anatomy for each in points for anatomy in each.points}
    if isinstance(weights, str):
        missing = [] if known else [(predictor.folder, predictor.heads, weights)]
    else:
        missing = [
            (predictor.folder / anatomy, {anatomy: predictor.heads[anatomy]}, sha256)
            for anatomy, sha256 in weights.items()
            if anatomy not in known
        ]
    points += [write_operating_points(*each, store, accelerator) for each in missing]
    return replace(predictor, operating_points=points)


def record(
    kind: type[Kind], predictor: Predictor, store: SampleStore, split: str, accelerator: Accelerator, figures: dict[str, Any]
) -> Kind:
    """An evaluation with these figures, written with the model card into the folder of the networks."""
    path = predictor.folder / kind.FILE.format(split)
    conditions = {"split": split, "store_fingerprint": store.fingerprint, "size": list(store.size)}
    evaluation = kind.from_json({**predictor.description(), **conditions, **figures}, path)
    if accelerator.is_main_process:
        write_json(path, evaluation.to_json())
        write_card(predictor.folder)
    return evaluation
