"""Dice of trained networks on a split (see `mtkd_cache.training.metrics`), recorded beside their weights with a model card."""

from typing import Any, TypeVar

from accelerate import Accelerator

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.model_card import write_card
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import Evaluation, write_json
from mtkd_cache.training.metrics import split_dice

Kind = TypeVar("Kind", bound=Evaluation)


def evaluate(predictor: Predictor, store: SampleStore, split: str, accelerator: Accelerator) -> Evaluation:
    """Dice of a student, or of teachers, on a split, written to evaluation-SPLIT.json in their folder, with a model card.

    predictor: of the store's anatomies, on the accelerator's device.
    """
    figures = {"dataset": store.name, **split_dice(predictor.heads, store, split, accelerator)}
    return record(Evaluation, predictor, store, split, accelerator, figures)


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
