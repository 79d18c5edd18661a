"""Folders of finished and interrupted trainings, and what they record of themselves."""

import platform
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, gather_object
from torch import Tensor

from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime.malloc import keep_freed_memory


def environment(device: torch.device) -> dict[str, Any]:
    """What a run was made with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {
        "mtkd_cache": version("mtkd-cache"),
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


def mean_across_ranks(accelerator: Accelerator) -> Callable[[Tensor], Tensor] | None:
    """The mean of a number over the processes of a training, None for a single one."""
    return partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None


def make_accelerator(device: str | None, precision: str = "no", log_with: str | None = None) -> Accelerator:
    """What trainings and teachers run on; this process keeps its memory from now on, see `mtkd_cache.runtime.malloc`.

    device: "cpu", "cuda", or None for what is there. precision: "no", "bf16" or "fp16". log_with: the tracker that trainings
    report their epochs to, "tensorboard" or another that accelerate knows.

    Without a GPU accelerate joins the processes of a launch only when it is told that the CPU is meant.
    Raises MtkdError for "cuda" where there is none, and for a tracker that is unknown or not installed.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise MtkdError("no CUDA device is there, or torch cannot use it. Leave --device out to compute on what is there.")
    known = sorted(set(LoggerType.list()) - {"all"})
    if log_with is not None and log_with not in known:
        raise MtkdError(f"tracker {log_with!r} is unknown. Choose one of {', '.join(known)}.")
    if log_with is not None and log_with not in map(str, get_available_trackers()):
        raise MtkdError(f"the package of tracker {log_with} is not installed. Install it first: pip install {log_with}.")
    keep_freed_memory()
    cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
    return Accelerator(cpu=cpu, mixed_precision=precision, log_with=log_with, project_dir=".")


def run_on_all_ranks(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """What an action returns, once every process has run it. Where one fails, all fail, so that none waits for ever."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    try:
        failures = gather_object([failure and str(failure)])
    except RuntimeError as error:
        raise failure or MtkdError("another process is gone. Run the same command again, which goes on from here.") from error
    if failure:
        raise failure
    for text in filter(None, failures):
        raise MtkdError(f"another process failed: {text}")
    return result
