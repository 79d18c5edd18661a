"""The device and the processes that trainings and teachers run on."""

import os
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


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, as a run records them."""
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
    """The processor's model name if the system gives it, else its architecture."""
    try:
        model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return model[1] if model else platform.processor() or platform.machine()


def mean_across_ranks(accelerator: Accelerator) -> Callable[[Tensor], Tensor] | None:
    """A function that averages a number over the processes of a training; None if there is only one."""
    return partial(accelerator.reduce, reduction="mean") if accelerator.num_processes > 1 else None


def make_accelerator(device: str | None, precision: str = "no", log_with: str | None = None) -> Accelerator:
    """What trainings and teachers run on. Without a GPU, the processes of a launch (torchrun, accelerate) are joined on the CPU.

    Args:
        device: "cpu", "cuda", "cuda:1" for one of several GPUs, or None for a GPU if there is one. The processes of a launch
            take a GPU each.
        precision: mixed precision: "no", "bf16" or "fp16".
        log_with: the tracker that trainings report their epochs to: "tensorboard", or another that Accelerate supports.

    Raises:
        MtkdError: "cuda" without a GPU, or without that one; a tracker that is unknown or not installed.
    """
    if device is not None and device != "cpu":
        _choose_gpu(device)
    known = sorted(set(LoggerType.list()) - {"all"})
    if log_with is not None and log_with not in known:
        raise MtkdError(f"tracker {log_with!r} is unknown. Choose one of {', '.join(known)}.")
    if log_with is not None and log_with not in map(str, get_available_trackers()):
        raise MtkdError(f"the package of tracker {log_with} is not installed. Install it first: pip install {log_with}.")
    cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
    return Accelerator(cpu=cpu, mixed_precision=precision, log_with=log_with, project_dir=".")


def precision_name(precision: str) -> str:
    """Accelerate's name of a precision as --precision takes it: "no" mixed precision is fp32."""
    return {"no": "fp32"}.get(precision, precision)


def _choose_gpu(device: str) -> None:
    """Let Accelerate and this thread use "cuda" or, as "cuda:1", one of several GPUs. Raises MtkdError where there is none."""
    if not torch.cuda.is_available():
        raise MtkdError("no CUDA device is available to torch. Leave --device out to use the available one.")
    count, number = torch.cuda.device_count(), torch.device(device).index
    if number is None:
        return
    if number >= count:
        raise MtkdError(f"there is no {device}: torch sees {count} GPU{'s' * (count > 1)}. Give cuda:0 to cuda:{count - 1}.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MtkdError(f"{device} is one GPU, and each process of a launch takes its own. Choose them by CUDA_VISIBLE_DEVICES.")
    os.environ["ACCELERATE_TORCH_DEVICE"] = device  # Accelerate has no argument for it
    torch.cuda.set_device(number)


def run_on_all_ranks(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """Run an action in every process and return its result. If it fails in one, all raise, so that none waits forever."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    try:
        failures = gather_object([failure and str(failure)])
    except RuntimeError as error:
        raise failure or MtkdError("another process has ended. Run the same command again to resume.") from error
    if failure:
        raise failure
    for message in filter(None, failures):
        raise MtkdError(f"another process failed: {message}")
    return result
