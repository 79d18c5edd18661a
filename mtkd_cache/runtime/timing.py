"""How long things take, measured in turn, the device's work included."""

import random
import statistics
import time
from collections.abc import Callable

import torch

CPU = torch.device("cpu")


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


def interleaved(actions: dict[str, Callable[[], object]], rounds: int, device: torch.device = CPU) -> dict[str, list[float]]:
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
