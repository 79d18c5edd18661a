"""Folders of finished and interrupted trainings, and what they record of themselves."""

import platform
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

import mtkd_cache
from mtkd_cache.checkpoints import STATE, WEIGHTS, file_sha256, read_weights
from mtkd_cache.errors import MtkdError
from mtkd_cache.lock import locked
from mtkd_cache.manifest import digest
from mtkd_cache.memory import keep_freed_memory
from mtkd_cache.models import Network, build, load_pretrained, paper_source
from mtkd_cache.records import read_record, write_record
from mtkd_cache.storage import Folder
from mtkd_cache.training import Task, fit

FORMAT = 1


def train_once(
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


def seed_for(seed: int, *names: str) -> int:
    """A seed of its own for each named use of a recipe's seed."""
    return int(digest([seed, *names])[:12], 16)


def start_network(arch: str, heads: int, weights: str, seed: int) -> Network:
    """A new network, its random weights drawn from the seed and its pretrained ones loaded."""
    torch.manual_seed(seed)
    network = build(arch, heads)
    load_pretrained(network, paper_source(arch) if weights == "paper" else weights)
    return network


def environment(device: torch.device) -> dict:
    """What a run was made with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {
        "mtkd_cache": mtkd_cache.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{device.type}: {name}",
        "machine": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def _cpu() -> str:
    """The processor's name where the system tells it, else its kind."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def over_processes(accelerator: Accelerator) -> Callable[[Tensor], Tensor] | None:
    """The mean of a number over the processes of a training, None for a single one."""
    return partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None


def make_accelerator(device: str | None, precision: str = "no") -> Accelerator:
    """What trainings and teachers run on; this process keeps its memory from now on, see `mtkd_cache.memory`.

    device: "cpu", "cuda", or None for what is there. precision: "no", "bf16" or "fp16".

    Without a GPU accelerate joins the processes of a launch only when it is told that the CPU is meant.
    Raises MtkdError for "cuda" where there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise MtkdError("no CUDA device is there, or torch cannot use it. Leave --device out to compute on what is there.")
    keep_freed_memory()
    cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
    return Accelerator(cpu=cpu, mixed_precision=precision)
