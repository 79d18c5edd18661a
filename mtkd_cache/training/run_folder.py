"""Folders of finished and interrupted trainings: what is finished is left alone, what was interrupted is resumed."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import STATE, WEIGHTS, file_sha256, load_heads, read_weights
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.models.pretrained import load_pretrained, paper_source
from mtkd_cache.models.records import Training, read_as, write_json
from mtkd_cache.runtime.accelerator import environment
from mtkd_cache.storage.checked_json import digest
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
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
    details: dict[str, Any] | None = None,
) -> Record:
    """The record of a finished training at `path`, trained or resumed first where it or its weights are not there.

    run_config: what the record must agree with. details: what it tells besides. The folder is locked while it is trained.
    Raises MtkdError, naming what differs from `run_config` or the precision, for weights that are damaged or not those recorded,
    and LockedError where another process trains there.
    """
    finished = partial(_finished, kind, path, run_config, accelerator.mixed_precision)
    if record := finished():
        return record
    outcome: Record | MtkdError | None = None  # of the main process; its error is raised in all, so that none waits
    with ExitStack() as lock:
        if accelerator.is_main_process:
            try:
                lock.enter_context(locked(Folder(path.parent)))
                if (outcome := finished()) is None:
                    path.unlink(missing_ok=True)  # a record without its weights
            except MtkdError as error:
                outcome = error
        [outcome] = broadcast_object_list([outcome])
        if isinstance(outcome, MtkdError):
            raise outcome
        return outcome or _train(kind, path, run_config, make_task(), accelerator, details or {})


def _finished(kind: type[Record], path: Path, run_config: dict[str, Any], precision: str) -> Record | None:
    """The record of a finished training, None where it or its weights are not there. Raises as `train_or_resume` does."""
    record = read_as(kind, path)
    if record is None:
        return None
    recorded = {"precision": precision, **record.to_json()}  # which earlier versions did not record
    expected = {**run_config, "precision": precision}
    if differing := [key for key, value in expected.items() if recorded.get(key) != value]:
        raise MtkdError(
            f"{path.parent} was trained with another {', '.join(differing)}. Name another folder, or delete that one."
        )
    if not (path.parent / WEIGHTS).exists():
        return None
    read_weights(path.parent)
    return record


def _train(
    kind: type[Record], path: Path, run_config: dict[str, Any], task: Task, accelerator: Accelerator, details: dict[str, Any]
) -> Record:
    content = {
        "format": FORMAT,
        **run_config,
        **details,
        **fit(task, path.parent, digest(run_config), accelerator),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "params_m": task.network.params_m,
        "environment": environment(accelerator.device),
        "weights_sha256": file_sha256(path.parent / WEIGHTS),
    }
    record = kind.from_json(content, path)
    network, anatomies = load_heads(path.parent)  # of the best epoch
    network = network.to(accelerator.device)
    heads = {anatomy: (network, head) for head, anatomy in enumerate(anatomies)}
    write_operating_points(path.parent, heads, content["weights_sha256"], task.store, accelerator, task.validation)
    if accelerator.is_main_process:
        write_json(path, record.to_json())
        (path.parent / STATE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return record


def start_network(arch: str, heads: int, weights: str, seed: int) -> Network:
    """A new network, its random weights drawn from the seed and its pretrained ones loaded."""
    torch.manual_seed(seed)
    network = create_network(arch, heads)
    load_pretrained(network, paper_source(arch) if weights == "paper" else weights)
    return network
