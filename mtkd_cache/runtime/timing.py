"""Timing of actions that alternate in one run, the work of the device included."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

CPU = torch.device("cpu")


def wait(device: torch.device) -> None:
    """Wait until the device has finished the work queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, the work of the device included."""
    wait(device)
    start = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - start


def interleaved(actions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device = CPU) -> dict[str, list[float]]:
    """Time each action once a round, in an order that changes from round to round, after a first round that does not count.

    An action leaves caches and threads in the state that the next one finds: hence the changing order.

    Returns:
        Seconds of each action, a value a round.
    """
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    order, random_order = list(actions), random.Random(0)
    for _ in range(rounds):
        random_order.shuffle(order)
        for name in order:
            times[name].append(seconds(actions[name], device))
    return times


def medians(times: Mapping[str, list[float]], factor: float = 1.0) -> dict[str, float]:
    """The median time of each action, times a factor."""
    return {name: factor * statistics.median(values) for name, values in times.items()}


def spreads(times: Mapping[str, list[float]], factor: float = 1.0) -> dict[str, list[float]]:
    """The smallest and the largest time of each action, times a factor."""
    return {name: [factor * min(values), factor * max(values)] for name, values in times.items()}


def ratio(times: Mapping[str, list[float]], above: str, below: str) -> float:
    """The median over rounds of the quotient of two actions' times, which a slow round as a whole does not change.

    Rounds in which only one of them was timed do not count.
    """
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=False))
