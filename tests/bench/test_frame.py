"""Whole frames: every form gives the plain one's masks, and the result holds what --json promises."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from mtkd_cache.bench.frame import CONVOLUTION, FORMS, PARTS, _mean_steps, check_forms, make_form, untrained_run
from mtkd_cache.bench.table import lines
from mtkd_cache.cli.bench import command
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models import fast
from mtkd_cache.models.checkpoints import load_network
from mtkd_cache.models.network import upsample

CPU = torch.device("cpu")
TINY = """
import torch
class Net(torch.nn.Sequential):
    multiple = 4
def net(anatomies):
    convolution = torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False)
    return Net(convolution, torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, anatomies, 3, padding=1))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A network of two layers, whose export takes seconds; nothing is compiled."""
    (tmp_path / "tiny_frame_net.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fast, "FORMS", {"folded": fast.folded})
    yield "tiny_frame_net:net"
    sys.modules.pop("tiny_frame_net", None)


def test_every_form_gives_the_masks_of_the_plain_way(tiny, tmp_path):
    """The plain way: resized, through the network, upsampled to what it saw, then to the frame, and thresholded."""
    run = untrained_run(tmp_path / "run", tiny, "joint", (46, 34), 3)
    predictor = Predictor.load(run, arch=tiny)
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    padded = F.pad(F.interpolate(image, (34, 46), mode="bilinear", antialias=True), (0, 2, 0, 2), mode="replicate")
    with torch.inference_mode():
        small = upsample(load_network(run, arch=tiny).native(padded), (36, 48))[..., :34, :46]
    logits = F.interpolate(small, (60, 80), mode="bilinear")[0].numpy()
    clear = np.abs(logits) > 1e-3 * np.abs(logits).max()
    assert clear.mean() > 0.9 and 0.05 < (logits > 0).mean() < 0.95
    for name in FORMS:
        masks = make_form(name, predictor, (80, 60), tmp_path / "frame.onnx").segment(frame)
        assert masks.shape == logits.shape and (masks == (logits > 0))[clear].all(), name


def test_the_result_holds_percentiles_and_shares(tiny, tmp_path):
    arguments = ["frame", "--arch", tiny, "--frame", "32x24", "--heads", "2", "--frames", "3", "--device", "cpu", "--json"]
    outcome = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout.splitlines()[-1])
    [row] = result["rows"]
    assert (row["layout"], row["frame"], row["size"], row["frames"]) == ("joint", [32, 24], [32, 24], 3)
    assert tuple(row["forms"]) == FORMS and set(row["over_fastest"]) == {"onnxruntime", "openvino"}
    for form in row["forms"].values():
        assert 0 < form["p50_ms"] <= form["p95_ms"] <= form["p99_ms"] <= form["max_ms"]
        assert tuple(form["shares"]) == PARTS and sum(form["shares"].values()) == pytest.approx(1)
        assert form["shares"]["network"] > 0 and min(form["shares"].values()) >= 0
    (tmp_path / "result.json").write_text(json.dumps(result))
    [line] = list(lines(tmp_path))[2:]
    assert "a frame of 32x24, tiny_frame_net:net joint at 32x24, 2 anatomies" in line and "onnxruntime" in line


def test_layouts_are_compared_frame_by_frame():
    arguments = ["frame", "--layout", "separate", "--layout", "shared", "--layout", "joint", "--form", "plain", "--size", "32x32"]
    arguments += ["--frame", "48x40", "--heads", "2", "--frames", "1", "--device", "cpu", "--json"]
    outcome = CliRunner().invoke(command, arguments, catch_exceptions=False)
    rows = json.loads(outcome.stdout.splitlines()[-1])["rows"]
    assert [(row["layout"], row["size"], "shared_over" in row) for row in rows] == [
        ("separate", [32, 32], True),
        ("shared", [32, 32], False),
        ("joint", [32, 32], True),
    ]


def test_the_runtimes_are_not_measured_on_a_gpu():
    with pytest.raises(MtkdError, match=r"openvino are measured on the CPU only\. On a GPU give --form plain --form fastest"):
        check_forms(["plain", "openvino"], torch.device("cuda"))
    check_forms(["plain", "fastest"], torch.device("cuda"))


def test_steps_are_the_mean_of_the_runs_after_the_first():
    steps = [("Cast", 9.0), ("Conv", 9.0), ("Cast", 1.0), ("Conv", 2.0), ("Cast", 3.0), ("Conv", 4.0)]
    assert _mean_steps(steps, 3) == [("Cast", 2.0), ("Conv", 3.0)]
    names = ("Conv", "FusedConv", "ConvTranspose", "GroupConvolution", "Deconvolution")
    assert all(CONVOLUTION.search(name) for name in names) and not CONVOLUTION.search("Convert")
