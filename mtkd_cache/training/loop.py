"""The loop both stages share: epochs of steps, validation, the best weights kept, resumption after an interruption.

Everything random is drawn from (seed, epoch) or (seed, sample, view), so that on the CPU a resumed training ends with the weights
of an uninterrupted one.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from mtkd_cache.cache.loader import Batch, Source, epoch_batches, prefetch_batches
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import STATE, WEIGHTS, load_state, save_network, save_state
from mtkd_cache.models.fast import compile_parts
from mtkd_cache.models.network import Network
from mtkd_cache.models.seen import NOTHING, Seen
from mtkd_cache.recipe import Stage
from mtkd_cache.storage.checked_json import digest
from mtkd_cache.training.balance import balanced_rows
from mtkd_cache.training.history import write_metrics
from mtkd_cache.training.metrics import split_curves
from mtkd_cache.training.negatives import with_negatives
from mtkd_cache.training.operating_points import SCORES, validation_figures
from mtkd_cache.training.optimizer import learning_rates, make_optimizer
from mtkd_cache.training.progress import ALONE, Place, Progress

Forward = Callable[[Tensor], Tensor]


@dataclass
class Task:
    """What `fit` trains, and on what.

    label: its name in messages. anatomies: of the network's heads. rows: the training samples in `store`. source, validation:
    where these and the validation samples are read. losses(forward, batch, epoch): the loss's parts by name; "loss" is
    minimized. compiled: compile encoder and decoders, which makes the first step long, the others shorter, and the weights differ
    in the last digits. place: among the trainings of its command. initial_weights: what the record says of the network of this
    project that it starts from; inherited: the samples that this network and the teachers have seen; licenses: theirs. balanced:
    an epoch has every anatomy equally often. negatives: samples in `store` that take a share of each batch, negative_share, see
    `mtkd_cache.training.negatives.with_negatives`.
    """

    label: str
    network: Network
    anatomies: Sequence[str]
    stage: Stage
    seed: int
    store: SampleStore
    rows: np.ndarray
    source: Source
    validation: Source
    losses: Callable[[Forward, Batch, int], dict[str, Tensor]]
    accelerator: Accelerator
    compiled: bool = False
    place: Place = ALONE
    initial_weights: dict[str, str] | None = None
    licenses: tuple[str, ...] | None = None
    inherited: Seen = NOTHING
    balanced: bool = False
    negatives: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    negative_share: float = 0.0

    def start(self, device: torch.device) -> tuple[Network, torch.optim.Optimizer]:
        """The network on a device, as it is trained there, and its optimizer."""
        network = self.network.to(device).to(memory_format=torch.channels_last)
        if self.compiled:
            compile_parts(network)
        return network, make_optimizer(self.stage, network.parameters(), fused=device.type == "cuda")

    def rows_of_epoch(self, epoch: int) -> list[np.ndarray]:
        """The rows of each of this process's batches."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rows = balanced_rows(self.rows, self.store.anatomy[self.rows], self.seed, epoch) if self.balanced else self.rows
        batches = epoch_batches(rows, self.stage.batch, self.seed, epoch, rank, world)
        if not len(self.negatives):
            return batches
        whole = epoch_batches(rows, self.stage.batch, self.seed, epoch)
        whole = with_negatives(whole, self.negatives, self.negative_share, self.seed, epoch)
        return [batch[rank::world] for batch in whole]

    def batches(self, epoch: int) -> Iterator[Batch]:
        view = epoch % self.source.views
        return prefetch_batches(((rows, view) for rows in self.rows_of_epoch(epoch)), self.source, self.accelerator.device)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.rows_of_epoch(0))

    def validate(self, network: Network) -> dict[str, float]:
        """What an epoch records of the validation split, see `validation_figures`."""
        heads = {anatomy: (network, head) for head, anatomy in enumerate(self.anatomies)}
        return validation_figures(split_curves(heads, self.store, "validation", self.accelerator, self.validation))

    def check_batch(self) -> None:
        """Raises MtkdError where a process's batches are too small for the network's batch norms."""
        samples = min(map(len, self.rows_of_epoch(0)))
        if samples == 1 and not self.network.trains_on_one(self.store.size):
            raise MtkdError(
                f"{self.label}: {self.network.arch} cannot be trained on a batch of {samples}: a batch norm finds one value a "
                "channel. Take a larger batch, two training samples or more per process, or larger pictures."
            )


def fit(task: Task, folder: Path, settings: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Train; keep the weights of the best epoch by the validation Dice that `Stage.select` names in folder/weights.safetensors.

    settings: what must be equal for an interrupted training to be resumed. Each epoch's figures go to the
    accelerator's trackers.
    Returns history, schedule_epochs (see `Training`), best_epoch, val_dice, seconds_per_epoch, warm_up_seconds (of the first
    step, with its compilation).
    Raises MtkdError for a loss that is not finite, for a batch that is too small, and where the folder holds the state of a
    training with other settings or in another precision.
    """
    task.check_batch()
    network, optimizer = task.start(accelerator.device)
    state, precision, epochs = folder / STATE, accelerator.mixed_precision, task.stage.epochs
    metadata = {"identity": digest(settings), "settings": settings, "precision": precision}
    metadata |= {"history": [], "schedule_epochs": epochs}
    if state.exists():
        resumed = load_state(state, network, optimizer, settings, precision)
        metadata |= {key: resumed[key] for key in ("history", "schedule_epochs") if key in resumed}
    history, schedule_epochs = metadata["history"], metadata["schedule_epochs"]
    forward, optimizer = accelerator.prepare(network, optimizer)
    _start_trackers(accelerator, task, folder)
    rates, score = learning_rates(task.stage, schedule_epochs), SCORES[task.stage.select]
    progress = Progress(task.label, task.place, epochs, task.steps, history, score, accelerator.is_main_process)
    for epoch in range(len(history), epochs):
        row = _train_epoch(task, epoch, rates[epoch], forward, optimizer, progress)
        network.eval()
        row |= task.validate(network)
        best = all(row[score] > past[score] for past in history)
        history.append(row)
        progress.epoch(row)
        accelerator.log(row, step=epoch)
        if accelerator.is_main_process:
            if best:
                save_network(folder / WEIGHTS, network, task.anatomies)
            write_metrics(folder, history)
            save_state(state, network, optimizer.optimizer, metadata)
        accelerator.wait_for_everyone()
    progress.close()
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.free_memory()
    return _summary(history, score) | ({"schedule_epochs": schedule_epochs} if schedule_epochs < epochs else {})


def _start_trackers(accelerator: Accelerator, task: Task, folder: Path) -> None:
    """Let the accelerator's trackers, if it has any, follow a training; those that write files write them into its folder."""
    accelerator.trackers = []  # of the training before
    accelerator.project_configuration.logging_dir = str(folder)
    accelerator.init_trackers("mtkd-cache", {"label": task.label, "seed": task.seed, **asdict(task.stage)})


def _summary(history: list[dict[str, Any]], score: str) -> dict[str, Any]:
    best = max(history, key=lambda row: row[score])
    seconds = sorted(row["seconds"] for row in history)
    return {
        "history": history,
        "best_epoch": best["epoch"],
        "val_dice": best["val_dice"],
        "seconds_per_epoch": seconds[len(seconds) // 2],
        "warm_up_seconds": history[0].get("first_step"),
    }


def _train_epoch(
    task: Task, epoch: int, rate: float, forward: torch.nn.Module, optimizer: AcceleratedOptimizer, progress: Progress
) -> dict[str, Any]:
    """The steps of one epoch. Returns its row of the history, see `EpochLog.row`."""
    accelerator = task.accelerator
    torch.manual_seed(int(digest([task.seed, epoch, accelerator.process_index])[:15], 16))
    for group in optimizer.param_groups:
        group["lr"] = rate
    forward.train()
    log = EpochLog(task, epoch)
    for stored in log.timed(task.batches(epoch)):
        batch = stored.to(accelerator.device)
        with accelerator.autocast():
            parts = task.losses(forward, batch, epoch)
        log.add(batch.rows, parts)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(parts["loss"])
        optimizer.step()
        progress.step()
    return log.row(rate)


class EpochLog:
    """Adds up what the steps of an epoch tell, and stops at a loss that is not finite."""

    def __init__(self, task: Task, epoch: int):
        self.task, self.epoch = task, epoch
        self.sums: dict[str, Tensor] = {}
        self.steps, self.waited, self.first_step = 0, 0.0, 0.0
        self.unchecked: deque[tuple[int, np.ndarray, Tensor]] = deque()
        self.start = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time that is spent waiting for them."""
        while True:
            before = time.perf_counter()
            if self.steps == 1:
                self.first_step = before - self.start
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def add(self, rows: np.ndarray, parts: dict[str, Tensor]) -> None:
        """Take the loss of a step. It is checked at once on the CPU, else a step late, so that the host waits for no device."""
        loss = parts["loss"].detach()
        self.unchecked.append((self.steps, rows, loss))
        self._check(keep=0 if loss.device.type == "cpu" else 1)
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.steps += 1

    def row(self, rate: float) -> dict[str, Any]:
        """Means of the loss's parts, learning rate, seconds in all and of the first step, share of them waiting for data."""
        self._check(keep=0)
        seconds = time.perf_counter() - self.start
        sums = self.task.accelerator.reduce(torch.stack(list(self.sums.values())), "mean").tolist()
        return {
            "epoch": self.epoch,
            **{name: value / self.steps for name, value in zip(self.sums, sums, strict=True)},
            "lr": rate,
            "seconds": seconds,
            "first_step": self.first_step,
            "waiting": self.waited / seconds,
        }

    def _check(self, keep: int) -> None:
        """Raises MtkdError for a loss that is not finite, of all steps that were not checked but the last `keep`."""
        while len(self.unchecked) > keep:
            step, rows, loss = self.unchecked.popleft()
            if not torch.isfinite(loss):
                raise MtkdError(
                    f"{self.task.label}: the loss is {float(loss)} at step {step + 1} of epoch {self.epoch + 1}, "
                    f"samples {', '.join(map(self.task.store.describe, rows))}. "
                    "Lower the learning rate or train in full precision; the last completed epoch is kept."
                )
