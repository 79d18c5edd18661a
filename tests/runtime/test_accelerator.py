"""Which device a command computes on, decided without one."""

import os

import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime import accelerator


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine whose torch sees two GPUs; returns what Accelerate and torch are told, call by call."""
    told = []
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "unset")
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    monkeypatch.setattr(
        accelerator, "Accelerator", lambda cpu, **_: told.append((cpu, os.environ.get("ACCELERATE_TORCH_DEVICE")))
    )
    return told


@pytest.mark.parametrize(
    ("device", "told"),
    [(None, [(False, None)]), ("cpu", [(True, None)]), ("cuda", [(False, None)]), ("cuda:1", [1, (False, "cuda:1")])],
)
def test_a_device_is_what_accelerate_gets(two_gpus, device, told):
    accelerator.make_accelerator(device)
    assert two_gpus == told


def test_a_gpu_that_is_not_there_and_one_for_several_processes(two_gpus, monkeypatch):
    with pytest.raises(MtkdError, match=r"there is no cuda:2: torch sees 2 GPUs. Give cuda:0 to cuda:1"):
        accelerator.make_accelerator("cuda:2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MtkdError, match=r"each process of a launch takes its own. Choose them by CUDA_VISIBLE_DEVICES"):
        accelerator.make_accelerator("cuda:1")
    assert two_gpus == []


@pytest.mark.parametrize("options", [("--device", "gpu"), ("--device", "cuda:"), ("--device", "cuda:x"), ("--precision", "fp8")])
def test_a_device_or_precision_that_is_none_is_wrong_usage(options):
    assert CliRunner().invoke(main, ["evaluate", *options]).exit_code == 2


@pytest.mark.parametrize(("word", "name"), [("fp32", "no"), ("no", "no"), ("bf16", "bf16")])
def test_fp32_is_the_precision_that_accelerate_calls_no(word, name):
    context = main.get_command(None, "evaluate").make_context("evaluate", ["--precision", word])
    assert context.params["precision"] == name
    assert main.get_command(None, "evaluate").make_context("evaluate", []).params["precision"] == "no"
