"""Dice as Kolbinger et al. 2023 compute it: an image at a time at the store's size, on each anatomy's own subset.

An image where truth and prediction are both empty does not count; an empty truth with a prediction counts 0. An anatomy's Dice is
the mean over its images, the mean Dice the unweighted mean over the anatomies.
"""

from pathlib import Path

from accelerate import Accelerator

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.model_card import write_card
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, load_network
from mtkd_cache.models.records import STUDENT, TEACHER, read_record, write_record
from mtkd_cache.training.metrics import split_dice


def evaluate_student(run: Path, store: SampleStore, split: str, accelerator: Accelerator) -> dict:
    """Dice of a student, written to run/evaluation-SPLIT.json. Raises MtkdError where the run does not fit the store."""
    network = load_network(run, anatomies=store.anatomies).to(accelerator.device)
    record = read_record(run / STUDENT) or {}
    heads = {anatomy: (network, index) for index, anatomy in enumerate(store.anatomies)}
    about = {
        "kind": "student",
        "layout": "shared",
        "arch": network.arch,
        **{key: record.get(key) for key in ("seed", "kd", "cache_fingerprint")},
        "weights_sha256": file_sha256(run / WEIGHTS),
    }
    return _evaluated(run, about, heads, store, split, accelerator)


def evaluate_teachers(folder: Path, store: SampleStore, split: str, accelerator: Accelerator) -> dict:
    """Dice of the teachers, each on its own anatomy, written to folder/evaluation-SPLIT.json."""
    networks = {
        anatomy: load_network(folder / anatomy, anatomies=[anatomy]).to(accelerator.device) for anatomy in store.anatomies
    }
    record = read_record(folder / store.anatomies[0] / TEACHER) or {}
    about = {
        "kind": "teachers",
        "layout": "separate",
        "arch": networks[store.anatomies[0]].arch,
        "seed": record.get("seed"),
        "kd": False,
        "weights_sha256": {anatomy: file_sha256(folder / anatomy / WEIGHTS) for anatomy in store.anatomies},
    }
    heads = {anatomy: (network, 0) for anatomy, network in networks.items()}
    return _evaluated(folder, about, heads, store, split, accelerator)


def _evaluated(folder: Path, about: dict, heads: dict, store: SampleStore, split: str, accelerator: Accelerator) -> dict:
    result = {
        **about,
        "split": split,
        "dataset": store.name,
        "store_fingerprint": store.fingerprint,
        "size": list(store.size),
        **split_dice(heads, store, split, accelerator),
    }
    if accelerator.is_main_process:
        write_record(folder / f"evaluation-{split}.json", result)
        write_card(folder)
    return result
