"""The conditions of a measurement (settings, machine), and peak memory."""

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mtkd_cache.runtime.accelerator import environment
from mtkd_cache.runtime.malloc import give_back_freed_memory

Result = dict[str, Any]  # of a measurement, as --json prints it
Size = tuple[int, int]  # width, height


def conditions(accelerator: Accelerator, size: Size, **settings: Any) -> Result:
    """The part that all results share: image size, the command's own settings, precision and machine."""
    return {"size": list(size), **settings, "precision": accelerator.mixed_precision, "machine": machine(accelerator.device)}


def machine(device: torch.device) -> Result:
    """Versions, device, cores, the present load, and the commit if this is a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    return {
        **environment(device),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit or None,
    }


def peak_mb(action: Callable[[], object], device: torch.device) -> float:
    """Peak memory in MB during a call: allocated on a GPU, resident of this process on the CPU, where allocations become slow."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return torch.cuda.max_memory_allocated(device) / 1e6
    give_back_freed_memory()
    if (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")
    action()
    if (status := Path("/proc/self/status")).exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
