"""The loop both stages share: epochs of steps, validation, the best weights kept, going on after an interruption.

Everything random is drawn from (seed, epoch) or (seed, sample, view), so that an interrupted training ends with the weights of an
uninterrupted one on the CPU.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mtkd_cache.cache.loader import Batch
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import STATE, WEIGHTS, load_state, save_network, save_state
from mtkd_cache.models.fast import compile_parts
from mtkd_cache.models.network import Network
from mtkd_cache.recipe import Stage
from mtkd_cache.storage.checked_json import digest


@dataclass
class Task:
    """What `fit` trains and how.

    batches(epoch): the batches of an epoch. losses(forward, batch, epoch): the loss's parts by name, "loss" the one to descend.
    validate(network): mean Dice in [0, 1]. name_samples(rows): the samples of a batch in words. compiled: compile encoder and
    decoders, which makes the first step long, the others shorter, and the weights others in the last digits.
    """

    label: str
    network: Network
    anatomies: Sequence[str]
    stage: Stage
    seed: int
    batches: Callable[[int], Iterable[Batch]]
    steps: int
    losses: Callable[[Callable, Batch, int], dict[str, Tensor]]
    validate: Callable[[Network], float]
    name_samples: Callable[[np.ndarray], str]
    compiled: bool = False

    def start(self, device: torch.device) -> tuple[Network, torch.optim.Optimizer]:
        """The network on a device, as it is trained there, and its optimiser."""
        network = self.network.to(device, memory_format=torch.channels_last)
        if self.compiled:
            compile_parts(network)
        return network, torch.optim.Adam(network.parameters(), lr=self.stage.lr, fused=device.type == "cuda")


def fit(task: Task, folder: Path, identity: str, accelerator: Accelerator) -> dict:
    """Train; keep the weights of the best validation Dice in folder/weights.safetensors.

    identity: a hash of what must be equal for an interrupted training to be gone on with.
    Returns history, best_epoch, val_dice, seconds_per_epoch, warm_up_seconds (of the first step, with its compilation).
    Raises MtkdError for a loss that is not finite, and where the folder holds the state of a training with another identity
    or precision.
    """
    network, optimizer = task.start(accelerator.device)
    history: list[dict] = []
    state, precision = folder / STATE, accelerator.mixed_precision
    if state.exists():
        history = load_state(state, network, optimizer, identity, precision)["history"]
    forward, optimizer = accelerator.prepare(network, optimizer)
    progress = tqdm(
        total=task.stage.epochs * task.steps,
        initial=len(history) * task.steps,
        desc=task.label,
        unit="step",
        disable=None if accelerator.is_main_process else True,
    )
    for epoch in range(len(history), task.stage.epochs):
        torch.manual_seed(int(digest([task.seed, epoch, accelerator.process_index])[:15], 16))
        for group in optimizer.param_groups:
            group["lr"] = task.stage.learning_rate(epoch)
        network.train()
        row = _epoch(task, epoch, forward, optimizer, accelerator, progress)
        network.eval()
        row["val_dice"] = task.validate(network)
        best = max((past["val_dice"] for past in history), default=-1.0)
        history.append(row)
        progress.set_postfix(dice=f"{row['val_dice']:.3f}", best=f"{max(best, row['val_dice']):.3f}", loss=f"{row['loss']:.3g}")
        if accelerator.is_main_process:
            if row["val_dice"] > best:
                save_network(folder / WEIGHTS, network, task.anatomies)
            about = {"identity": identity, "precision": precision, "history": history}
            save_state(state, network, optimizer.optimizer, about)
        accelerator.wait_for_everyone()
    progress.close()
    accelerator.free_memory()
    top = max(history, key=lambda row: row["val_dice"])
    seconds = sorted(row["seconds"] for row in history)
    return {
        "history": history,
        "best_epoch": top["epoch"],
        "val_dice": top["val_dice"],
        "seconds_per_epoch": seconds[len(seconds) // 2],
        "warm_up_seconds": history[0].get("first_step"),
    }


def _epoch(
    task: Task, epoch: int, forward: Callable, optimizer: torch.optim.Optimizer, accelerator: Accelerator, progress: tqdm
) -> dict:
    """One epoch's steps.

    Returns the mean of each part of the loss, the learning rate, the seconds in all and of the first step, and the share of them
    spent waiting for data.
    """
    device = accelerator.device
    sums: dict[str, Tensor] = {}
    unchecked: tuple[int, Batch, Tensor] | None = None
    start, waited, steps = time.perf_counter(), 0.0, 0
    batches = iter(task.batches(epoch))
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - before
        if batch is None:
            break
        batch = batch.to(device)
        try:
            with accelerator.autocast():
                parts = task.losses(forward, batch, epoch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise MtkdError(
                f"{task.label}: {task.network.arch} cannot be trained on a batch of {len(batch.rows)}: a batch norm finds one "
                "value a channel. Take a larger batch, two training samples or more, or larger pictures."
            ) from error
        if device.type == "cpu":
            _check(task, epoch, (steps, batch, parts["loss"]))
        elif unchecked:  # a step late, so that the host never waits for the device
            _check(task, epoch, unchecked)
        unchecked = (steps, batch, parts["loss"])
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(parts["loss"])
        optimizer.step()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value.detach()
        steps += 1
        if steps == 1:
            first_step = time.perf_counter() - start
        progress.update()
    if unchecked:
        _check(task, epoch, unchecked)
    seconds = time.perf_counter() - start
    means = {name: float(value) / steps for name, value in sums.items()}
    return {
        "epoch": epoch,
        **means,
        "lr": task.stage.learning_rate(epoch),
        "seconds": seconds,
        "first_step": first_step,
        "waiting": waited / seconds,
    }


def _check(task: Task, epoch: int, done: tuple[int, Batch, Tensor]) -> None:
    step, batch, loss = done
    if not torch.isfinite(loss):
        raise MtkdError(
            f"{task.label}: the loss is {float(loss.detach())} at step {step} of epoch {epoch}, "
            f"samples {task.name_samples(batch.rows)}. "
            "Lower the learning rate or train in full precision; the last whole epoch is kept."
        )
