"""A student of each layout goes the whole way: train, resume, evaluate, card, report, predict, bench; real-time ones train."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mtkd_cache.cli.main import main
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, load_network
from mtkd_cache.models.records import RUN, read_run

TINY = ("--set", "student.weights=none", "--set", "student.batch=4", "--device", "cpu")


def run(*arguments: object, status: int = 0) -> dict:
    """A command's JSON result."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == status, result.output
    return {} if status else json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(("layout", "decoders"), [("joint", 1), ("shared-refine", 2)])
def test_a_layout_goes_the_whole_way(layout, decoders, organ_store, organ_cache, tmp_path, monkeypatch):
    def train(name: str, status: int = 0) -> dict:
        data = ("--store", organ_store.url, "--cache", organ_cache.url, "--run", tmp_path / name)
        arguments = ("--arch", "mininetv2", "--layout", layout, "--set", "student.epochs=1", *TINY)
        return run("train-student", *data, *arguments, status=status)

    with monkeypatch.context() as patch:  # after the epochs, before the record
        patch.setattr("mtkd_cache.training.run_folder.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train("run", status=130)
    assert not (tmp_path / "run" / RUN).exists()
    train("run")
    record, network = read_run(tmp_path / "run"), load_network(tmp_path / "run")
    assert (record.layout, network.layout, len(network.decoders), record.params_m) == (layout, layout, decoders, network.params_m)
    train("whole")
    assert file_sha256(tmp_path / "whole" / WEIGHTS) == file_sha256(tmp_path / "run" / WEIGHTS)

    evaluated = run("evaluate", "--store", organ_store.url, "--run", tmp_path / "run", "--device", "cpu")
    assert evaluated["mean_dice"] is not None
    card = (tmp_path / "run/README.md").read_text()
    told = {"joint": "with one decoder for 2 anatomies, with", "shared-refine": "with 2 decoders and one look at the image, with"}
    assert told[layout] in card
    [reported] = run("report", tmp_path / "run", "--store", organ_store.url, "--out", tmp_path / "report")["rows"]
    assert (reported["arch"], reported["layout"]) == ("mininetv2", layout)

    frame = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
    Image.fromarray(frame).save(tmp_path / "frame.png")
    run("predict", tmp_path / "run", tmp_path / "frame.png", "--out", tmp_path / "masks", "--device", "cpu")
    with Image.open(next((tmp_path / "masks").rglob("*.png"))) as picture:
        assert picture.size == (50, 40)
    timed = ("--arch", "mininetv2", "--layout", layout, "--size", "32x32", "--heads", "2", "--rounds", "1", "--device", "cpu")
    [row] = run("bench", "inference", *timed, "--form", "folded")["rows"]
    assert (row["layout"], row["params_m"]) == (layout, pytest.approx(network.params_m))


@pytest.mark.parametrize(("arch", "layout"), [("pidnet-s", "shared"), ("lraspp-mobilenet_v3_large", "joint")])
def test_a_real_time_network_is_a_student(arch, layout, organ_store, organ_cache, tmp_path):
    data = ("--store", organ_store.url, "--cache", organ_cache.url, "--run", tmp_path)
    run("train-student", *data, "--arch", arch, "--layout", layout, "--set", "student.epochs=1", *TINY)
    record, network = read_run(tmp_path), load_network(tmp_path, arch=arch)
    assert (record.arch, record.layout, network.heads) == (arch, layout, 2)
    assert network(torch.rand(1, 3, 45, 66)).isfinite().all()
