"""The command line by real commands: the whole way on a tiny phantom, the --json contract, and how failures end."""

import errno
import json
import os
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cli.common import explain, reports
from mtkd_cache.cli.main import COMMANDS, main
from mtkd_cache.storage.folder import write_durably

SHORT = [
    *("--recipe", "demo", "--set", "teacher.epochs=1", "--set", "student.epochs=1"),
    *("--set", "teacher.batch=2", "--set", "student.batch=4", "--device", "cpu"),
]


def call(*arguments, status: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.stderr or result.exception
    return result


def as_json(*arguments) -> dict | list:
    return json.loads(call(*arguments, "--json").stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def way(organ_folder, tmp_path_factory):
    """Every command's JSON, run in turn."""
    root = tmp_path_factory.mktemp("way")
    names = ("s.zarr", "teachers", "c.zarr", "baseline", "distilled")
    store, teachers, cache, baseline, distilled = (root / name for name in names)
    at = ("--store", store)
    said = {"ingest": as_json("ingest", organ_folder, *at, "--size", "64x64", "--validation", "40", "--test", "50")}
    said["train-teachers"] = as_json("train-teachers", *at, "--teachers", teachers, *SHORT)
    said["build"] = as_json("build", *at, "--teachers", teachers, "--cache", cache, *SHORT)
    said["distilled"] = as_json("train-student", *at, "--cache", cache, "--run", distilled, *SHORT)
    said["baseline"] = as_json("train-student", *at, "--run", baseline, "--no-kd", *SHORT)
    said["evaluate"] = as_json("evaluate", *at, "--run", distilled)
    as_json("evaluate", *at, "--run", baseline)
    said["teachers"] = as_json("evaluate", *at, "--teachers", teachers)
    said["report"] = as_json("report", teachers, baseline, distilled, *at, "--out", root / "report")
    return root, said


def test_every_command_says_what_the_contract_names(way):
    _, said = way
    for command, keys in {
        "ingest": "samples by_split by_anatomy skipped bytes fingerprint",
        "build": "samples views anatomies bytes bytes_per_sample step max_abs_error mean_kl_nats fingerprint seconds "
        "teacher_seconds",
        "distilled": "run best_epoch val_dice seconds_per_epoch",
        "evaluate": "dice mean_dice images split",
    }.items():
        assert set(keys.split()) <= set(said[command]), command
    assert list(said["train-teachers"]) == ["kidney", "tongue"]
    assert all(set(one) == {"val_dice", "epochs", "path"} for one in said["train-teachers"].values())
    assert said["ingest"]["samples"] == sum(said["ingest"]["by_split"].values())
    assert said["build"]["samples"] == said["ingest"]["by_split"]["train"]
    assert said["build"]["max_abs_error"] <= said["build"]["step"] / 2
    assert said["distilled"]["cache_fingerprint"] == said["build"]["fingerprint"]
    assert said["baseline"]["cache_fingerprint"] is None
    assert said["evaluate"]["images"] == said["teachers"]["images"] == said["ingest"]["by_split"]["test"]


def test_a_run_keeps_its_recipe_environment_and_seed(way):
    root, said = way
    record = json.loads((root / "distilled" / "run.json").read_text())
    assert record["recipe"]["distillation"] == {"temperature": 4.0, "weight": 3.0, "combine": "sum"}
    assert record["seed"] == 0
    assert {"torch", "device", "python"} <= set(record["environment"])
    assert record["store_fingerprint"] == said["ingest"]["fingerprint"]
    assert not (root / "distilled" / "state.safetensors").exists()


def test_the_report_is_whole(way):
    root, _ = way
    for name in ("report.md", "report.html", "figure1.png", "figure3.png"):
        assert (root / "report" / name).stat().st_size > 0


def test_finished_work_is_not_done_again(way):
    root, said = way
    at = ("--store", root / "s.zarr", "--teachers", root / "teachers")
    assert as_json("train-teachers", *at, *SHORT) == said["train-teachers"]
    again = as_json("build", *at, "--cache", root / "c.zarr", *SHORT)
    assert again["maps_computed"] == 0
    assert again["fingerprint"] == said["build"]["fingerprint"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ingest", "{root}/nowhere"), "there is no such folder"),
        (("ingest", "{root}/distilled/run.json"), "is a file"),
        (("train-student", "--store", "{root}/none.zarr"), "is no logit cache"),
        (("train-student", "--no-kd", "--store", "{root}/none.zarr"), "is no sample store"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--recipe", "nothing"), "there is no such recipe"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--set", "student.epochs=0"), "is impossible"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--set", "student.speed=1"), "unknown key 'speed'"),
        (("train-teachers", "--store", "{root}/s.zarr", "--anatomy", "heart"), "'heart' is not in"),
        (("build", "--store", "{root}/s.zarr", "--teachers", "{root}/none"), "is missing"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--device", "cuda"), "no CUDA device is there"),
        (("build", "--store", "{root}/s.zarr", "--teachers", "{root}/teachers", "--step", "0.3"), "power of two"),
        (("evaluate", "--store", "{root}/s.zarr", "--run", "{root}/teachers/kidney"), "knows the anatomies kidney"),
        (("train-student", "--store", "{root}/c.zarr", "--no-kd"), "is a logit cache"),
        (("train-student", "--store", "{root}/s.zarr", "--no-kd", "--run", "{root}/distilled/run.json"), "Not a directory"),
        (("train-student", "--cache", "{root}/distilled/run.json"), "Not a directory"),
    ],
)
def test_a_failure_is_one_or_two_lines_and_status_1(way, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = call(*(argument.format(root=way[0]) for argument in arguments), status=1)
    assert says in result.stderr
    assert 1 <= len(result.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in result.stderr


def torch_out_of_memory() -> RuntimeError:
    """What torch raises on this machine where the CPU's memory is not enough."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyboardInterrupt(), "interrupted. Finished work is kept; the same command resumes from there."),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            "a/b: the disk is full. Finished work is kept; free some space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied. Name another path"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory."),
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), "out of memory. Use a smaller batch"),
        (MemoryError(), "out of memory."),
        (torch_out_of_memory(), "out of memory."),
        (KeyError("colour"), "unexpected KeyError: 'colour' (" + __file__),
    ],
)
def test_no_failure_ends_in_a_traceback_unless_asked(error, says):
    def fail() -> dict:
        raise error

    command = click.command()(reports(fail))
    result = CliRunner().invoke(command, [])
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert result.stderr.startswith(f"mtkd-cache: {says}")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" in CliRunner().invoke(command, ["--debug"]).stderr


def test_a_disk_that_fills_names_the_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "state").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_durably(tmp_path / "state", b"new")
    assert explain(caught.value).startswith(f"{tmp_path}/state: the disk is full.")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_wrong_usage_is_status_2():
    assert "not a size" in call("ingest", "x", "--size", "large", status=2).stderr
    for wrong in ("\u00b2x\u00b2", "64x", "0x64", "\u0663x64", "9" * 5000 + "x64"):
        assert "is not a size" in call("phantom", "x", "--size", wrong, status=2).stderr
    for wrong in ("\u00b2", "1,,2", "\u0663", "9" * 5000):
        assert "is not a list of numbers" in call("phantom", "x", "--surgeries", wrong, status=2).stderr
    assert "go together" in call("ingest", "x", "--test", "3", status=2).stderr
    assert "either --run or --teachers" in call("evaluate", status=2).stderr


def test_every_command_has_help():
    for name in COMMANDS:
        assert "Options" in call(name, "--help").stdout


def test_the_installed_command_runs_and_needs_no_torch_for_help():
    script = "import sys; sys.argv = ['mtkd-cache', '--help']\nfrom mtkd_cache.cli.main import main\n"
    script += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train-student" in done.stdout


def test_models_lists_both_layouts():
    rows = as_json("models")
    assert {row["layout"] for row in rows} == {"separate", "shared"}
    assert {"arch", "encoder", "layout", "params_m", "paper_params_m"} <= set(rows[0])


def test_the_first_process_of_a_launch_reports(organ_cache, monkeypatch):
    arguments = ["verify", "--cache", organ_cache.url, "--json"]
    monkeypatch.setenv("RANK", "1")
    other = CliRunner().invoke(main, arguments)
    assert other.exit_code == 0 and "whole" not in other.output and "ok" not in other.output
    monkeypatch.setenv("RANK", "0")
    assert json.loads(CliRunner().invoke(main, arguments).stdout.splitlines()[-1])["ok"]


def test_names_that_the_locale_cannot_write_are_no_failure(tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "mtkd_cache.cli", "phantom", "--size", "32x32", "--surgeries", "1"]
    out = os.fsencode(tmp_path) + b"/\xc3\xa4\xff"
    for status in (0, 1):
        done = subprocess.run([*command, "--seed", str(status), out], capture_output=True, env=environment, check=False)
        assert done.returncode == status and b"Traceback" not in done.stderr and b"unexpected" not in done.stderr, done.stderr
