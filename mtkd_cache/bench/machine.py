"""What every measurement says of where it was made, and of the memory it took."""

import os
import resource
import subprocess
from pathlib import Path

import torch

from mtkd_cache.runtime.accelerator import environment
from mtkd_cache.runtime.malloc import give_back_freed_memory

HERE = Path(__file__).parent


def machine(device: torch.device) -> dict:
    """Versions, device, cores, load when asked, and the commit where this is a checkout."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False)
    return {
        **environment(device),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "commit": found.stdout.strip() or None,
    }


def start_peak(device: torch.device) -> None:
    """Begin to watch the memory `peak_mb` tells of. On the CPU what is allocated next is slow."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory()
    if (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def peak_mb(device: torch.device) -> float:
    """Most memory in use since `start_peak`, MB: allocated on a GPU, resident of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if (status := Path("/proc/self/status")).exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
