"""What every measurement says of where it was made, and how one is taken."""

import os
import random
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mtkd_cache.runs import environment

HERE = Path(__file__).parent
CPU = torch.device("cpu")


def machine(device: torch.device) -> dict:
    """Versions, device, cores, load when asked, and the commit where this is a checkout."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False)
    return {
        **environment(device),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "commit": found.stdout.strip() or None,
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The time one call takes, the device's work included."""
    wait(device)
    start = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - start


def in_turn(actions: dict[str, Callable[[], object]], rounds: int, device: torch.device = CPU) -> dict[str, list[float]]:
    """Each action's seconds over rounds in which all take their turn, after one turn that is not counted.

    Their order changes from round to round, for an action leaves caches and threads as the next one finds them.
    """
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    order, shuffled = list(actions), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            times[name].append(seconds(actions[name], device))
    return times


def spread(times: list[float]) -> list[float]:
    """The smallest and the largest."""
    return [min(times), max(times)]


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """The median over rounds of the quotient of two actions' times; what slows a whole round down leaves it alone.

    Rounds that only one of them had do not count.
    """
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=False))


def start_peak(device: torch.device) -> None:
    """Begin to watch the memory `peak_mb` tells of."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")


def peak_mb(device: torch.device) -> float:
    """Most memory in use since `start_peak`, MB: allocated on a GPU, resident of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if (status := Path("/proc/self/status")).exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
