"""Dice as Kolbinger et al. 2023 compute it: an image at a time at the store's size, on each anatomy's own subset.

An image where truth and prediction are both empty does not count; an empty truth with a prediction counts 0. An anatomy's Dice is
the mean over its images, the mean Dice the unweighted mean over the anatomies.
"""

from accelerate import Accelerator

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.model_card import write_card
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import EVALUATION, Evaluation, write_json
from mtkd_cache.training.metrics import split_dice


def evaluate(predictor: Predictor, store: SampleStore, split: str, accelerator: Accelerator) -> Evaluation:
    """Dice of a student, or of teachers, on a split, written to evaluation-SPLIT.json in their folder, with a model card.

    predictor: of the store's anatomies, on the accelerator's device.
    """
    path = predictor.folder / EVALUATION.format(split)
    content = {
        **predictor.description(),
        "split": split,
        "dataset": store.name,
        "store_fingerprint": store.fingerprint,
        "size": list(store.size),
        **split_dice(predictor.heads, store, split, accelerator),
    }
    evaluation = Evaluation.from_json(content, path)
    if accelerator.is_main_process:
        write_json(path, evaluation.to_json())
        write_card(predictor.folder)
    return evaluation
