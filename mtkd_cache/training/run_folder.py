"""Folders of finished and interrupted trainings: what is finished is left alone, what was interrupted is resumed."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mtkd_cache.cache.layout import holds_cache
from mtkd_cache.cache.overlap import check_overlap, seen_by
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import STATE, WEIGHTS, check_present, file_sha256, load_heads, load_trained, read_weights
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.models.pretrained import load_pretrained, paper_source
from mtkd_cache.models.records import (
    TEACHER,
    Training,
    differing_settings,
    read_as,
    read_run,
    read_teacher,
    with_epochs,
    write_json,
)
from mtkd_cache.models.seen import DIGITS, NOTHING, UNKNOWN, Seen
from mtkd_cache.models.weight_files import read_origin
from mtkd_cache.recipe import Stage
from mtkd_cache.runtime.accelerator import environment, precision_name
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.training.history import draw_curves
from mtkd_cache.training.loop import Task, fit
from mtkd_cache.training.operating_points import write_operating_points

FORMAT = 1
Record = TypeVar("Record", bound=Training)


def train_or_resume(
    kind: type[Record],
    path: Path,
    run_config: dict[str, Any],
    make_task: Callable[[], Task],
    accelerator: Accelerator,
    store: SampleStore,
    details: dict[str, Any] | None = None,
    allow_overlap: bool = False,
) -> Record:
    """The record of a finished training at `path`, trained or resumed first where it or its weights are not there.

    A finished training that is asked for more epochs is continued from its last one, at the final learning rate.
    run_config: what the record must agree with. store: the samples. details: what the record tells besides. allow_overlap: train
    also where the teachers or the initial weights have seen samples that the store holds out. The folder is locked meanwhile.
    Raises MtkdError, naming what differs from `run_config` or the precision, for weights that are damaged or not those recorded,
    for such an overlap, for a sample store's or a cache's folder, and LockedError where another process trains there.
    """
    finished = partial(_finished, kind, path, run_config, accelerator.mixed_precision, store)
    if record := finished():
        return record
    _check_place(path)
    outcome: Record | MtkdError | None = None  # of the main process; its error is raised in all, so that none waits
    with ExitStack() as lock:
        if accelerator.is_main_process:
            try:
                lock.enter_context(locked(Folder(path.parent)))
                if (outcome := finished()) is None and not (path.parent / WEIGHTS).exists():
                    (path.parent / STATE).unlink(missing_ok=True)
            except MtkdError as error:
                outcome = error
        [outcome] = broadcast_object_list([outcome])
        if isinstance(outcome, MtkdError):
            raise outcome
        if outcome:
            return outcome
        task = make_task()
        details = {**(details or {}), **_seen(task, allow_overlap)}
        if accelerator.is_main_process:
            path.unlink(missing_ok=True)  # of a training that lacks its weights, or is continued
        return _train(kind, path, run_config, task, accelerator, details)


def _finished(kind: type[Record], path: Path, run_config: dict[str, Any], precision: str, store: SampleStore) -> Record | None:
    """The record of a finished training, None where it is to be trained or continued. Raises as `train_or_resume` does."""
    record = read_as(kind, path)
    if record is None:
        return None
    recorded, expected = record.to_json(), {**run_config, "precision": precision_name(precision)}
    recorded["precision"] = precision_name(record.precision or precision)  # earlier versions recorded none
    trained, more = {key: recorded.get(key) for key in expected}, _more_epochs(record, run_config)
    if told := differing_settings(trained, with_epochs(expected, len(record.history)) if more else expected):
        if expected["store_fingerprint"] != record.store_fingerprint:
            told += _other_store(record, store)
        raise MtkdError(f"{path.parent} was trained with other settings: {told}. Name another folder, or delete that one.")
    if not (path.parent / WEIGHTS).exists():
        return None
    read_weights(path.parent)
    if more and not (path.parent / STATE).exists():
        raise MtkdError(
            f"{path.parent} ended after epoch {len(record.history)} and has no {STATE} to continue from. "
            f"Name another folder, and start there from these weights with --init-from {path.parent}."
        )
    return None if more else record


def _check_place(path: Path) -> None:
    """Raises MtkdError where a training would be written into a sample store or a cache."""
    folder = path.parent.parent if path.name == TEACHER else path.parent
    if holds_cache(Folder(folder)):
        raise MtkdError(f"{folder} is a sample store or a cache. Name another folder.")


def _more_epochs(record: Training, run_config: dict[str, Any]) -> bool:
    """Whether a finished training is asked for more epochs."""
    asked: int = run_config["recipe"][run_config["kind"]]["epochs"]
    return 0 < len(record.history) < asked


def _other_store(record: Training, store: SampleStore) -> str:
    """Whether a training was on other samples, or on another split of these, where its record tells."""
    if record.seen is None:
        return ""
    seen = record.seen.samples("train") | record.seen.samples("validation")
    same = seen <= {sha256[:DIGITS] for sha256 in store.hashes}
    return f": {store.url} has {'the same samples in another split' if same else 'other samples'}"


def _seen(task: Task, allow_overlap: bool) -> dict[str, Any]:
    """What the record says of the samples that a network has seen. Raises MtkdError for an overlap that is not allowed."""
    store, validation = task.store, [task.store.rows("validation", anatomy) for anatomy in task.anatomies]
    own = Seen.of(store.hashes[np.concatenate([task.rows, task.negatives])], store.hashes[np.concatenate(validation)])
    overlap = check_overlap(task.inherited, store, f"{task.label}: its teachers or initial weights", allow=allow_overlap)
    return {
        "initial_weights": task.initial_weights,
        "licenses": task.licenses,
        "seen": (own | task.inherited).to_json(),
        "overlap": None if task.inherited == NOTHING else overlap.to_json(),
    }


def _train(
    kind: type[Record], path: Path, run_config: dict[str, Any], task: Task, accelerator: Accelerator, details: dict[str, Any]
) -> Record:
    settings = run_config | ({"initial_weights": task.initial_weights} if task.initial_weights else {})
    content = {
        "format": FORMAT,
        **run_config,
        **details,
        **fit(task, path.parent, settings, accelerator),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "params_m": task.network.params_m,
        "environment": environment(accelerator.device),
        "weights_sha256": file_sha256(path.parent / WEIGHTS),
    }
    record = kind.from_json(content, path)
    network, anatomies = load_heads(path.parent, arch=task.network.arch)  # of the best epoch
    network = network.to(accelerator.device)
    heads = {anatomy: (network, head) for head, anatomy in enumerate(anatomies)}
    write_operating_points(path.parent, heads, content["weights_sha256"], task.store, accelerator, task.validation)
    if accelerator.is_main_process:
        write_json(path, record.to_json())
        draw_curves(path.parent, f"{task.label}, {task.network.arch}", record.history, record.best_epoch)
    accelerator.wait_for_everyone()
    return record


def start_network(
    stage: Stage, store: SampleStore, anatomies: Sequence[str], seed: int, layout: str | None = None
) -> tuple[Network, dict[str, Any]]:
    """A new network of these anatomies, its random weights drawn from the seed, and the initial ones of the recipe loaded.

    Returns also what the `Task` has to know of what it starts from, a network of this project or converted weights:
    initial_weights, inherited and licenses.
    """
    torch.manual_seed(seed)
    network = create_network(stage.arch, len(anatomies), layout)
    folder = trained_folder(stage.weights, anatomies)
    if folder is None:
        loaded = load_pretrained(network, paper_source(stage.arch) if stage.weights == "paper" else stage.weights)
        return network, _converted(Path(loaded))
    load_trained(network, folder, anatomies)
    source = {"source": str(folder / WEIGHTS), "sha256": file_sha256(folder / WEIGHTS)}
    record = read_run(folder) or read_teacher(folder)
    licenses = record.licenses if record else None
    return network, {"initial_weights": source, "inherited": seen_by([record], store.size), "licenses": licenses}


def _converted(path: Path) -> dict[str, Any]:
    """What the `Task` has to know of weights that `convert-weights` wrote; nothing of other files."""
    origin = read_origin(path)
    if origin is None:
        return {}
    source = {"source": str(path), "sha256": file_sha256(path)}
    return {"initial_weights": source, "licenses": (str(origin),), "inherited": UNKNOWN if origin.note else NOTHING}


def trained_folder(weights: str, anatomies: Sequence[str]) -> Path | None:
    """The folder of a training that initial weights name: a run folder, the file in it, or in a teachers folder the anatomy's."""
    path = Path(weights)
    folder = path.parent if path.name == WEIGHTS else path
    if len(anatomies) == 1 and not (folder / WEIGHTS).exists() and any(folder.glob(f"*/{WEIGHTS}")):
        check_present(folder, anatomies)
        folder = folder / anatomies[0]
    return folder if (folder / WEIGHTS).exists() else None
