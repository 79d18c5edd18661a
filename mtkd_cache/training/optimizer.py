"""Torch's optimizers and learning rate schedules, as a recipe names them."""

from collections.abc import Iterable

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from mtkd_cache.recipe import Stage


def make_optimizer(stage: Stage, parameters: Iterable[torch.nn.Parameter], fused: bool) -> Optimizer:
    """The stage's optimizer. fused: one kernel a step, on a GPU."""
    kind: type[Adam | AdamW] = {"adam": Adam, "adamw": AdamW}[stage.optimizer]
    return kind(parameters, lr=stage.lr, weight_decay=stage.weight_decay, fused=fused)


def learning_rates(stage: Stage, schedule_epochs: int) -> list[float]:
    """The learning rate of each epoch: of torch's scheduler, stepped after each epoch, which reaches final_lr after the last one.

    With "exponential" an epoch's rate is the one before times (final_lr / lr)^(1 / epochs); with "cosine" the rates fall along
    half a cosine. They are computed beforehand, so that a resumed training has those of an uninterrupted one.
    schedule_epochs: those of the schedule, the stage's unless a finished training is continued; later epochs keep final_lr.
    """
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=stage.lr)
    scheduler = (
        ExponentialLR(optimizer, gamma=(stage.final_lr / stage.lr) ** (1 / schedule_epochs))
        if stage.schedule == "exponential"
        else CosineAnnealingLR(optimizer, T_max=schedule_epochs, eta_min=stage.final_lr)
    )
    rates = []
    for _ in range(schedule_epochs):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates + [stage.final_lr] * (stage.epochs - schedule_epochs)
