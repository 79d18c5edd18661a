"""A student of the user's own: imported because it is named, checked before it is trained, and told apart by its source."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS, load_network, save_network
from mtkd_cache.models.fast import folded
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import RUN
from mtkd_cache.training.student import train_student

EXAMPLE = Path(__file__).parents[2] / "docs/examples/own_student.py"
BROKEN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, value=0.0):
        super().__init__()
        self.channels, self.value = channels, nn.Parameter(torch.tensor(value))
    def forward(self, images):
        return self.value.expand(len(images), self.channels, *images.shape[2:])

def flat(n): return nn.Flatten()
def half(n): return Net(n // 2)
def nan(n): return Net(n, float("nan"))
def table(n): return {}
def fails(n): return Net(channels=n)(1)
def wants_two(n, m): return Net(n)
def odd(n):
    net = Net(n)
    net.normalization = 0.5
    return net
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(text) writes a module into the working directory and returns its name, never imported before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])  # as in a console script

    def write(text: str, name: str = f"students_{tmp_path.name}") -> str:
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def small(module) -> str:
    return f"{module(EXAMPLE.read_text())}:small"


@torch.no_grad()
def test_the_example_is_a_network_normalized_padded_and_upsampled(small):
    network, images = create_network(small, 3).eval(), torch.rand(2, 3, 45, 66)
    assert (network.layout, network.heads, network.stride, network.multiple) == ("joint", 3, 4, 4)
    own = network.decoders[0]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in own.normalization)
    padded = torch.nn.functional.pad(images, (0, 2, 0, 3), mode="replicate")
    torch.testing.assert_close(network.native(padded), own((padded - mean) / std))
    logits = network(images)
    assert logits.shape == (2, 3, 45, 66)
    torch.testing.assert_close(network(images, [2]), logits[:, 2:])
    torch.testing.assert_close(folded(network, torch.device("cpu"))(images), logits, atol=1e-5, rtol=1e-5)


def test_images_stay_as_they_are_where_no_normalization_is_stated(module):
    network = create_network(f"{module(BROKEN)}:Net", 2)
    assert torch.equal(network.mean, torch.zeros(1, 3, 1, 1)) and torch.equal(network.std, torch.ones(1, 3, 1, 1))
    assert (network.stride, network.multiple) == (1, 1)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("none", r"has no function 'none'. It has flat, half, .*wants_two, odd"),
        ("number", "has no function 'number'"),
        ("flat", r"maps images \(1, 3, 64, 128\) to torch.float32 \(1, 24576\). It must return float logits \(1, 4, h, w\)"),
        ("half", r"to torch.float32 \(1, 2, 64, 128\). It must return float logits \(1, 4, h, w\)"),
        ("nan", "gives NaN or infinity"),
        ("table", "returns a dict, not a torch.nn.Module"),
        ("fails", "failed for 4 anatomies: TypeError"),
        ("wants_two", "failed for 4 anatomies: TypeError: .*missing 1 required"),
        ("odd", r"normalization = 0.5 is not \(\(R, G, B\) mean"),
    ],
)
def test_what_is_no_such_network_is_refused_in_a_line(module, factory, message):
    name = module(BROKEN)
    with pytest.raises(MtkdError, match=message) as refused:
        create_network(f"{name}:{factory}", 4)
    assert str(refused.value).startswith(f"{name}:{factory}") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "nowhere_to_be_found:make", "there is no module nowhere_to_be_found"),
        ("import nothing_of_the_kind", None, "needs nothing_of_the_kind, which is not installed"),
        ("def make(:", None, "cannot be imported: SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_in_a_line(module, text, name, message):
    with pytest.raises(MtkdError, match=message) as refused:
        create_network(name or f"{module(text)}:make", 1)
    assert "\n" not in str(refused.value)


def test_a_layout_is_the_factorys_own(small):
    with pytest.raises(MtkdError, match=r"has no layout 'shared'\. Give joint"):
        create_network(small, 2, "shared")


def test_no_file_says_what_is_imported(small, tmp_path):
    save_network(tmp_path / "run" / WEIGHTS, create_network(small, 2), ["kidney", "tongue"])
    name = small.partition(":")[0]
    del sys.modules[name]
    for load in (load_network, Predictor.load):
        with pytest.raises(MtkdError, match=f"network of your own, {small}, .*Add --arch {small}"):
            load(tmp_path / "run")
        assert name not in sys.modules
    assert load_network(tmp_path / "run", arch=small).arch == small
    with pytest.raises(MtkdError, match=f"is a {small}, not a other:net"):
        load_network(tmp_path / "run", arch="other:net")


def test_it_trains_resumes_and_evaluates_and_another_source_is_told(
    module, small, organ_store, organ_cache, recipe, accelerator, tmp_path, caplog, monkeypatch
):
    run = tmp_path / "run"
    settings = recipe(f"student.arch={small}", "student.weights=none", "student.epochs=2")
    write_json = "mtkd_cache.training.run_folder.write_json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # after the epochs, before the record
        patch.setattr(write_json, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train_student(organ_store, run, settings, accelerator, organ_cache)
    module(EXAMPLE.read_text() + "# edited\n")
    with pytest.raises(MtkdError, match="interrupted training with other settings: source code "):
        train_student(organ_store, run, settings, accelerator, organ_cache)
    module(EXAMPLE.read_text())
    record = train_student(organ_store, run, settings, accelerator, organ_cache)
    network = create_network(small, 2)
    assert (record.arch, record.layout, record.source_sha256) == (small, "joint", network.source_sha256)
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.load(run, arch=small)
        assert predictor(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64) and predictor.layout == "joint"
        assert not caplog.messages
        module(EXAMPLE.read_text() + "# edited\n")
        Predictor.load(run, arch=small)
    assert "is not the one that was trained" in caplog.messages[0]
    with pytest.raises(MtkdError, match="source code "):
        train_student(organ_store, run, settings, accelerator, organ_cache)
    assert (run / RUN).exists()
