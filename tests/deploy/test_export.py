"""mtkd-cache export: the file says what the Predictor says, in two runtimes and without torch, and a failure leaves nothing."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support import settled, untrained_student

from mtkd_cache.bench.build import spread_out
from mtkd_cache.cli.main import main
from mtkd_cache.deploy import onnx_file
from mtkd_cache.deploy.export import export_onnx
from mtkd_cache.deploy.onnx_graph import FrameToMasks, Resampling
from mtkd_cache.deploy.parity import check
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import RUN, OperatingPoint, OperatingPoints, read_json, write_json

ANATOMIES = ("kidney", "tongue")
THRESHOLDS = {"kidney": 1.25, "tongue": -0.5}
ARCH = "tiny_exported_student:make"
SOURCE = """
from torch import nn

def make(heads):
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, heads, 3, padding=1))
"""
WITHOUT_TORCH = """
import json, sys
import numpy as np
from mtkd_cache.deploy.onnx_file import RUNTIMES, describe
path, frame = sys.argv[1], np.load(sys.argv[2])
for name, load in RUNTIMES.items():
    np.savez(f"{sys.argv[2]}-{name}.npz", **load(path)(frame))
assert "torch" not in sys.modules
print(json.dumps(describe(path).about["notice"]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small student of the user's own code, with operating points."""
    code, folder = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("run")
    (code / "tiny_exported_student.py").write_text(SOURCE)
    untrained_student(folder, size=(50, 36), anatomies=ANATOMIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(code)
        save_network(folder / WEIGHTS, spread_out(create_network(ARCH, 2)), ANATOMIES)
        write_json(
            folder / RUN, {**read_json(folder / RUN), "arch": ARCH, "layout": "joint", "recipe": {"student": {"epochs": 3}}}
        )
        points = {anatomy: OperatingPoint(threshold=value, images=1, patients=1) for anatomy, value in THRESHOLDS.items()}
        points[ANATOMIES[1]] = replace(points[ANATOMIES[1]], presence=-20.0)
        content = OperatingPoints(store_fingerprint="abc", weights_sha256=file_sha256(folder / WEIGHTS), points=points)
        write_json(folder / OperatingPoints.FILE, content.to_json())
        yield folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, (height, width) in {"image00.png": (75, 91), "image01.png": (40, 60), "mask00.png": (75, 91)}.items():
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    return folder


def call(*arguments, status: int = 0):
    result = CliRunner().invoke(main, ["export", *map(str, arguments), "--json"])
    assert result.exit_code == status, result.stderr or result.exception
    return result.stderr if status else json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def exported(run, pictures, tmp_path_factory):
    """The file, and what the command said."""
    path = tmp_path_factory.mktemp("exported") / "below" / "student.onnx"
    options = ("--arch", ARCH, "--check", pictures, "--runtime", "onnxruntime", "--runtime", "openvino")
    return path, call(run, "--frame", "91x75", "--out", path, *options)


def test_the_file_describes_itself(run, exported):
    path, said = exported
    assert (said["file"], said["opset"], said["frame"], said["size"]) == (str(path), 18, [91, 75], [50, 36])
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 18
    assert not {"BatchNormalization", "Dropout"} & {node.op_type for node in model.graph.node}
    found = onnx_file.describe(path)
    assert (found.frame, found.size, found.anatomies, found.thresholds) == ((75, 91), (36, 50), ANATOMIES, THRESHOLDS)
    assert found.about["notice"] == "research software, no medical device"
    assert found.about["recipe"] == {"student": {"epochs": 3}}
    assert found.about["fingerprints"]["weights_sha256"] == file_sha256(run / WEIGHTS)
    assert found.about["licenses"]["mtkd-cache"] == "MIT"
    for place in (str(run.parent), torch.__file__.partition("/torch/")[0], __file__.partition("/tests/")[0]):
        assert place.encode() not in path.read_bytes()


def test_it_says_what_the_predictor_says(exported, run, pictures):
    path, said = exported
    parity = said["parity"]
    assert said["ok"] and parity["unexplained"] == 0
    assert (parity["frames"], parity["pixels"]) == (2, 2 * 2 * 75 * 91)
    assert 0 < parity["claimed"] < parity["pixels"] and parity["probability_difference"] < 1e-5
    assert parity["by_runtime"].keys() == {"onnxruntime", "openvino"}
    other = replace(Predictor.load(run, arch=ARCH), operating_points=())  # other thresholds: other masks
    found = check(other, path, (75, 91), [pictures], 1, ["onnxruntime"])
    assert not found["ok"] and found["frames"] == 1 and 0 < found["unexplained"] <= found["differing"]


def test_it_runs_without_torch(exported, run, tmp_path):
    path, _ = exported
    frame = np.random.default_rng(1).integers(0, 256, (75, 91, 3), dtype=np.uint8)
    np.save(tmp_path / "frame.npy", frame)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), str(tmp_path / "frame.npy")]
    assert "no medical device" in subprocess.check_output(command, text=True)
    expected = Predictor.load(run, arch=ARCH)(frame)
    for name, load in onnx_file.RUNTIMES.items():
        with np.load(tmp_path / f"frame.npy-{name}.npz") as outputs:
            assert {output: outputs[output].dtype.name for output in outputs} == {"masks": "uint8", "probabilities": "float32"}
            assert np.array_equal(outputs["masks"], expected.masks.astype(np.uint8))
            assert np.allclose(outputs["probabilities"], expected.probabilities, atol=1e-5)
            masks = load(path, ["masks"], 1)(frame)
            assert list(masks) == ["masks"] and np.array_equal(masks["masks"], outputs["masks"])


@pytest.mark.parametrize(
    ("layout", "frame"), [("shared", (75, 91)), ("shared-refine", (36, 50)), ("joint", (20, 33)), ("separate", (75, 20))]
)
def test_every_layout_and_size(layout, frame, tmp_path):
    """What is exported, computed by torch, against the network, resizing and thresholds one after the other."""
    folder = untrained_student(tmp_path, size=(50, 36))
    heads, shape = (1, None) if layout == "separate" else (2, layout)
    networks = [spread_out(settled("mininetv2", heads, shape or "shared")) for _ in range(3 - heads)]
    predictor = replace(
        Predictor.load(folder), layout=layout, heads={"kidney": (networks[0], 0), "tongue": (networks[-1], 2 - len(networks))}
    )
    picture = np.random.default_rng(2).integers(0, 256, (*frame, 3), dtype=np.uint8)
    expected = predictor(picture)
    with torch.no_grad():
        module = FrameToMasks(networks, [0.0, 0.0], [-torch.inf] * 2, frame, (36, 50)).eval()
        masks, probabilities = module(torch.from_numpy(picture))
        silent = FrameToMasks(networks, [0.0, 0.0], [100.0, -torch.inf], frame, (36, 50)).eval()(torch.from_numpy(picture))[0]
    assert 0 < expected.masks.mean() < 1
    assert not silent[0].any() and torch.equal(silent[1], masks[1])
    assert np.allclose(probabilities, expected.probabilities, atol=1e-5)
    clear = expected.margins.abs().numpy() > 1e-3
    assert np.array_equal(masks.numpy()[clear], expected.masks[clear])


@pytest.mark.parametrize(("outputs", "inputs", "band"), [(48, 30, 3), (7, 50, 12), (61, 61, 1), (1, 5, 5)])
def test_a_resampling_is_the_product_with_its_matrix(outputs, inputs, band):
    torch.manual_seed(0)
    matrix = torch.zeros(outputs, inputs)
    for row in range(outputs):
        first = row * (inputs - band) // max(1, outputs - 1)
        matrix[row, first : first + band] = torch.rand(band)
    x = torch.rand(3, inputs, 4)
    assert torch.allclose(Resampling(matrix)(x), matrix @ x, atol=1e-5)


def test_what_cannot_be_exported_is_said_and_nothing_is_left(run, tmp_path, monkeypatch):
    out = tmp_path / "student.onnx"
    options = ("--frame", "91x75", "--out", out, "--arch", ARCH)
    (tmp_path / "empty").mkdir()
    assert "Train first, or name another folder" in call(tmp_path / "empty", *options, status=1)
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in call(run, *options[:2], "--out", tmp_path / "file" / "x.onnx", "--arch", ARCH, status=1)
    assert "exists already" in call(run, *options[:2], "--out", tmp_path / "file", "--arch", ARCH, status=1)
    assert (tmp_path / "file").read_text() == "mine"
    assert "there is no such file" in call(run, *options, "--check", tmp_path / "missing", status=1)
    assert "holds no image" in call(run, *options, "--check", tmp_path / "empty", status=1)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_file, "find_spec", lambda name: None)
        assert "package onnx. Install it with: pip install 'mtkd-cache[onnx]'" in call(run, *options, status=1)

    def refuses(*_, **__):
        raise RuntimeError("no operator for this\nand a long story")

    monkeypatch.setattr(torch.onnx, "export", refuses)
    said = call(run, *options, status=1)
    assert "cannot be exported by torch" in said and "(no operator for this)" in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_file_of_another_program_is_refused(tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"no model")
    for read in (onnx_file.describe, *onnx_file.RUNTIMES.values()):
        with pytest.raises(MtkdError, match=r"other\.onnx"):
            read(tmp_path / "other.onnx")
    with pytest.raises(MtkdError, match="no such file"):
        onnx_file.describe(tmp_path / "missing.onnx")


def test_a_run_without_the_size_of_its_images_is_refused(run, copy_of, tmp_path):
    folder = copy_of(run)
    (folder / RUN).unlink()
    with pytest.raises(MtkdError, match="does not record the size"):
        export_onnx(Predictor.load(folder, arch=ARCH), tmp_path / "x.onnx", (75, 91))
    assert not (tmp_path / "x.onnx").exists()
