"""Optimizers and schedules against the formulas they are named after; the defaults train as version 0.1 did, to the bit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtkd_cache.models.checkpoints import WEIGHTS
from mtkd_cache.recipe import Stage, load_recipe, shipped
from mtkd_cache.training import loop
from mtkd_cache.training.optimizer import learning_rates, make_optimizer
from mtkd_cache.training.teachers import train_teachers

STAGE = Stage("mininetv2", "none", epochs=7, batch=8, lr=1e-2, final_lr=1e-4)


def version_0_1(stage: Stage) -> list[float]:
    return [stage.lr * math.pow(stage.final_lr / stage.lr, epoch / stage.epochs) for epoch in range(stage.epochs)]


def test_cosine_rates_fall_along_half_a_cosine():
    rates = [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * epoch / 7)) / 2 for epoch in range(7)]
    assert learning_rates(replace(STAGE, schedule="cosine"), 7) == pytest.approx(rates, rel=1e-12)


def test_epochs_beyond_the_schedule_keep_the_final_rate():
    assert learning_rates(replace(STAGE, epochs=9), 7) == [*learning_rates(STAGE, 7), 1e-4, 1e-4]


@pytest.mark.parametrize("name", shipped())
def test_step_sizes_are_those_of_version_0_1(name):
    """Adam divides the rate by 1 - 0.9^step and multiplies in float32; after some 400 steps the divisor is 1."""
    divisors = 1 - 0.9 ** np.arange(1, 400)
    for stage in (load_recipe(name).teacher, load_recipe(name).student):
        for rate, before in zip(learning_rates(stage, stage.epochs), version_0_1(stage), strict=True):
            assert np.array_equal((rate / divisors).astype(np.float32), (before / divisors).astype(np.float32))


def test_weights_are_those_of_version_0_1(store, recipe, accelerator, tmp_path, monkeypatch):
    def train(name: str) -> bytes:
        train_teachers(store, tmp_path / name, recipe("teacher.epochs=3"), accelerator, ["kidney"])
        return (tmp_path / name / "kidney" / WEIGHTS).read_bytes()

    today = train("today")
    monkeypatch.setattr(loop, "learning_rates", lambda stage, _: version_0_1(stage))
    monkeypatch.setattr(loop, "make_optimizer", lambda stage, parameters, fused: torch.optim.Adam(parameters, lr=stage.lr))
    assert train("then") == today


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_weight_decay_joins_the_gradient_or_shrinks_the_weights(kind):
    """One step by the published formulas: Kingma and Ba 2015; Loshchilov and Hutter 2019."""
    weight, gradient, decay, rate = 2.0, 0.5, 0.1, STAGE.lr
    total = gradient + decay * weight * (kind == "adam")
    shrunk = weight - rate * decay * weight * (kind == "adamw")
    mean, square = 0.1 * total / (1 - 0.9), 0.001 * total**2 / (1 - 0.999)
    parameter = torch.nn.Parameter(torch.tensor([weight], dtype=torch.float64))
    parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    make_optimizer(replace(STAGE, optimizer=kind, weight_decay=decay), [parameter], fused=False).step()
    assert parameter.item() == pytest.approx(shrunk - rate * mean / (math.sqrt(square) + 1e-8), rel=1e-12)
