"""Folders of finished and interrupted trainings, and what they record of themselves."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import STATE, WEIGHTS, file_sha256, read_weights
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.models.pretrained import load_pretrained, paper_source
from mtkd_cache.models.records import read_record, write_record
from mtkd_cache.runtime.accelerator import environment
from mtkd_cache.storage.checked_json import digest
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.training.loop import Task, fit

FORMAT = 1


def train_or_resume(
    path: Path, identity: dict, make_task: Callable[[], Task], accelerator: Accelerator, about: dict | None = None
) -> dict:
    """The record of a finished training at `path`, trained or resumed first where it or its weights are not there.

    identity: what the record must agree with. about: what it says besides. The folder is locked while it is trained.
    Raises MtkdError, naming what differs from `identity` or the precision, for weights that are damaged or not those recorded,
    and LockedError where another process trains there.
    """
    finished = partial(_finished, path, identity, accelerator.mixed_precision)
    if record := finished():
        return record
    with ExitStack() as held:

        def begin() -> dict | None:
            held.enter_context(locked(Folder(path.parent)))
            if (record := finished()) is None:
                path.unlink(missing_ok=True)  # a record without its weights
            return record

        return _decided(accelerator, begin) or _train(path, identity, make_task(), accelerator, about or {})


def _finished(path: Path, identity: dict, precision: str) -> dict | None:
    """The record of a finished training, None where it or its weights are not there. Raises as `train_once` does."""
    record = read_record(path)
    if record is None:
        return None
    said = {"precision": precision, **record}  # which earlier versions did not record
    expected = {**identity, "precision": precision}
    if differing := [key for key, value in expected.items() if said.get(key) != value]:
        raise MtkdError(
            f"{path.parent} was trained with another {', '.join(differing)}. Name another folder, or delete that one."
        )
    if not (path.parent / WEIGHTS).exists():
        return None
    read_weights(path.parent)
    return record


def _decided(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """What the main process's action returns, in every process; or raises there, so that none waits for another."""
    result = None
    if accelerator.is_main_process:
        try:
            result = action()
        except MtkdError as error:
            result = error
    [result] = broadcast_object_list([result])
    if isinstance(result, MtkdError):
        raise result
    return result


def _train(path: Path, identity: dict, task: Task, accelerator: Accelerator, about: dict) -> dict:
    result = fit(task, path.parent, digest(identity), accelerator)
    record = {
        "format": FORMAT,
        **identity,
        **about,
        **result,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "params_m": task.network.params_m,
        "environment": environment(accelerator.device),
        "weights_sha256": file_sha256(path.parent / WEIGHTS),
    }
    if accelerator.is_main_process:
        write_record(path, record)
        (path.parent / STATE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return record


def start_network(arch: str, heads: int, weights: str, seed: int) -> Network:
    """A new network, its random weights drawn from the seed and its pretrained ones loaded."""
    torch.manual_seed(seed)
    network = create_network(arch, heads)
    load_pretrained(network, paper_source(arch) if weights == "paper" else weights)
    return network
