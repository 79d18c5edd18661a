"""The command line by real commands: the whole way on a tiny phantom, the --json contract, and how failures end."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cli.common import ARCHITECTURES, explain, reports
from mtkd_cache.cli.main import COMMANDS, main
from mtkd_cache.models.decoders import DECODERS
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
    assert set(said["evaluate"]["thresholds"]) == set(said["teachers"]["thresholds"]) == {"kidney", "tongue"}
    assert said["evaluate"]["images"] == said["teachers"]["images"] == said["ingest"]["by_split"]["test"]


def test_a_run_keeps_its_recipe_environment_and_seed(way):
    root, said = way
    record = json.loads((root / "distilled" / "run.json").read_text())
    assert record["recipe"]["distillation"] == {"temperature": 4.0, "weight": 0.3, "combine": "sum", "term": "sigmoid+kl"}
    assert record["seed"] == 0
    assert {"torch", "device", "python"} <= set(record["environment"])
    assert record["store_fingerprint"] == said["ingest"]["fingerprint"]
    assert (root / "distilled" / "state.safetensors").exists()  # from which it can be trained for more epochs


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


def test_results_are_printed_for_people(way):
    root, said = way
    store, teachers, cache = (("--store", root / "s.zarr"), ("--teachers", root / "teachers"), ("--cache", root / "c.zarr"))
    figures = ("dice", "dice_at_operating_point", "average_precision")
    printed = call("evaluate", *store, "--run", root / "distilled").stderr.splitlines()
    assert printed[0].startswith("Dice on test (%)")
    assert re.split(" {2,}", printed[1].strip()) == ["at 0.5, as in the paper", "at operating point", "average precision"]
    for line, name in zip(printed[2:4], ("kidney", "tongue"), strict=True):
        assert line.split() == [name, *(f"{100 * said['evaluate'][figure][name]:.1f}" for figure in figures)]
    assert printed[4].split() == ["mean", *(f"{100 * said['evaluate'][f'mean_{figure}']:.1f}" for figure in figures)]
    where, files = printed[-1].split(": ")
    assert where == f"written to {root / 'distilled'}" and "worst-test.html" in files
    assert all((root / "distilled" / name).is_file() for name in files.split(", ")) and files.count(",") == 3
    printed = call("train-teachers", *store, *teachers, *SHORT).stderr.splitlines()
    assert [line.split()[0] for line in printed] == ["validation", "kidney", "tongue"]
    printed = call("build", *store, *teachers, *cache, *SHORT).stderr
    assert f"{root}/c.zarr: 12 samples x 1 view x 2 anatomies" in printed and "of 0.125 allowed" in printed
    printed = call("train-student", *store, *cache, "--run", root / "distilled", *SHORT).stderr
    assert printed == f"{root}/distilled: validation Dice {100 * said['distilled']['val_dice']:.1f} % in epoch 1 of 1\n"


def test_the_dataset_and_its_store_are_counted(tmp_path):
    folder = tmp_path / "phantom"
    printed = call("phantom", folder, "--size", "32x32", "--surgeries", "2,3,4", "--images-per-surgery", "1").stderr
    images = sum("multilabel" not in path.parts for path in folder.rglob("image*.png"))
    assert printed == f"{images} images in {folder}\n"
    (folder / "liver" / "04" / "mask99.png").write_bytes(b"")
    store = tmp_path / "s.zarr"
    printed = call("ingest", folder, "--store", store, "--size", "32x32", "--validation", "3", "--test", "2").stderr
    first, second, third = printed.splitlines()
    parts = ", ".join(rf"\d+ {part} \(1 patient\)" for part in ("train", "validation", "test"))
    assert re.fullmatch(rf"{images} samples in {store}: {parts}", first)
    assert second.startswith("skipped: 1 masks without an image, 1 multilabel, ")
    assert third == f"weak_labels.csv: 33 files, {images} rows matched"


def test_inspect_prints_a_table(organ_cache):
    printed = call("inspect", "--cache", organ_cache.url).stderr
    figures = as_json("inspect", "--cache", organ_cache.url)
    assert f"{organ_cache.url}, complete, 1 of 1 shards" in printed
    assert "12 of 64x64 pixels, 1 view each" in printed
    assert "2 maps of 32x32, stride 2, step 0.25" in printed
    assert f"{figures['bytes'] / 1e3:.1f} kB in {figures['files']} files" in printed
    largest = max(error["max_abs_error"] for error in figures["errors"].values())
    assert f"largest error {largest:.4g} of 0.125 allowed" in printed
    header, kidney, tongue = printed.splitlines()[-3:]
    columns = ["anatomy", "maps", "largest error", "mean KL (nats)", "bits per logit", "weights (SHA-256)"]
    assert re.split("  +", header) == columns
    sha256 = figures["teachers"]["kidney"]["weights_sha256"]
    assert (kidney.split()[0], kidney.split()[1], kidney.split()[-1]) == ("kidney", "12", sha256[:12])
    assert len(kidney) == len(tongue) and not set("{}") & set(printed) and "True" not in printed


def test_inspect_prints_how_far_an_interrupted_build_is(organ_cache, copy_of):
    cache = copy_of(organ_cache.url)
    (cache / "manifest.json").unlink()
    printed = call("inspect", "--cache", cache).stderr
    assert "incomplete (the same mtkd-cache build resumes), 1 of 1 shards" in printed
    assert "fingerprint" not in printed and printed.splitlines()[-2].split()[:3] == ["kidney", "12", "-"]


def test_verify_prints_its_verdict_first(organ_cache, organ_store, organ_teachers, untrained_teacher, copy_of):
    both = ("--store", organ_store.url, "--teachers", organ_teachers)
    cache = copy_of(organ_cache.url)
    assert call("verify", "--cache", cache).stderr.startswith(f"{cache}: whole (name --store and --teachers to check")
    first, second, third, last = call("verify", "--cache", cache, *both, "--live", 2).stderr.splitlines()
    assert third == "held-out samples that were seen in training: unknown"
    assert first == f"{cache}: whole and current"
    assert second.startswith("re-ran the teachers on 2 samples: largest difference 0.")
    assert last.startswith("checked ") and " kB, in " in last
    other = copy_of(organ_teachers)
    untrained_teacher(other, "kidney", seed=7)
    (cache / "zarr.json").write_text("{}")
    first, *problems, _, _ = call("verify", "--cache", cache, *both[:2], "--teachers", other, status=1).stderr.splitlines()
    assert first == f"{cache}: damaged and not current: 2 problems"
    assert [problem.split(":")[0] for problem in problems] == ["  truncated", "  teacher"]
    first, second, *_ = call("verify", "--cache", cache, *both, "--repair").stderr.splitlines()
    assert (first, second) == (f"{cache}: whole and current", "repaired 1 problem, recomputed 0 maps")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("download", "{root}/dsad", "--archive", "{root}/nowhere.zip"), "there is no such file"),
        (("ingest", "{root}/nowhere"), "there is no such folder"),
        (("ingest", "{root}/distilled/run.json"), "is a file"),
        (("train-student", "--store", "{root}/none.zarr"), "is not a logit cache"),
        (("train-student", "--no-kd", "--store", "{root}/none.zarr"), "is not a sample store"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--recipe", "nothing"), "there is no such recipe"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--set", "student.epochs=0"), "is out of range"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--set", "student.speed=1"), "unknown key 'speed'"),
        (("train-teachers", "--store", "{root}/s.zarr", "--anatomy", "heart"), "'heart' is not in"),
        (("build", "--store", "{root}/s.zarr", "--teachers", "{root}/none"), "is missing"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--device", "cuda"), "no CUDA device is available"),
        (("build", "--store", "{root}/s.zarr", "--teachers", "{root}/teachers", "--step", "0.3"), "power of two"),
        (
            ("build", "--store", "{root}/s.zarr", "--teachers", "{root}/teachers", "--views", "0"),
            "cache.views = 0 is out of range",
        ),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--seed", "-1"), "seed = -1 is out of range"),
        (("train-student", "--no-kd", "--store", "{root}/s.zarr", "--arch", 'a"b'), 'a"b'),
        (("evaluate", "--store", "{root}/s.zarr", "--run", "{root}/teachers/kidney"), "knows the anatomies kidney"),
        (("train-student", "--store", "{root}/c.zarr", "--no-kd"), "a logit cache of format 1"),
        (("train-student", "--store", "{root}/s.zarr", "--no-kd", "--run", "{root}/distilled/run.json"), "Not a directory"),
        (("train-student", "--cache", "{root}/distilled/run.json"), "is a file"),
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
    for wrong in ("large", "100000x64", "64x100000"):
        assert "is not a size" in call("ingest", "x", "--size", wrong, status=2).stderr
    for wrong in ("\u00b2x\u00b2", "64x", "0x64", "\u0663x64", "9" * 5000 + "x64"):
        assert "is not a size" in call("phantom", "x", "--size", wrong, status=2).stderr
    for wrong in ("\u00b2", "1,,2", "\u0663", "9" * 5000):
        assert "is not a list" in call("phantom", "x", "--surgeries", wrong, status=2).stderr
    assert "go together" in call("ingest", "x", "--test", "3", status=2).stderr
    assert "either --run or --teachers" in call("evaluate", status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--video", "clip", "--multilabel", "dataset"), "Give either --video or --multilabel"),
        (("--smooth", "2"), "--smooth goes with --video"),
        (("--smooth", "2", "--multilabel", "dataset"), "--smooth goes with --video"),
        (("--surface", "0", "--video", "clip"), "--surface does not go with"),
        (("--surface", "2", "--multilabel", "dataset"), "--surface does not go with"),
    ],
)
def test_evaluate_refuses_options_that_would_be_ignored(arguments, says):
    assert says in call("evaluate", "--run", "run", *arguments, status=2).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "run", "images", "--out", "out", "--smooth"),
        ("evaluate", "--run", "run", "--video", "clip", "--smooth"),
        ("evaluate", "--run", "run", "--surface"),
        ("build", "--kl"),
    ],
)
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_options_take_finite_numbers(arguments, number):
    assert f"{number} is not a finite number" in call(*arguments, number, status=2).stderr
    assert "-1.0 is not in the range" in call(*arguments, "-1", status=2).stderr


def test_a_sheet_of_another_format_is_refused_before_the_cache_is_read():
    assert "ends in .png" in call("inspect", "--cache", "nowhere", "--sheet", "sheet.xyz", status=2).stderr


def test_a_result_that_does_not_fit_is_explained_and_a_closed_pipe_is_silent():
    script = "import click; from mtkd_cache.cli.common import reports; click.command()(reports(lambda: {'one': 1}))(['--json'])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("mtkd-cache: standard output: the disk is full.")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_every_command_has_help():
    for name in COMMANDS:
        assert "Options" in call(name, "--help").stdout


def test_help_of_arch_names_every_decoder_and_imports_no_torch():
    assert f"({', '.join(DECODERS)})" in ARCHITECTURES
    script = "import sys; from mtkd_cache.cli.main import main; main(sys.argv[1:], standalone_mode=False)\n"
    script += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, "train-student", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "mininetv2" in done.stdout


def test_the_command_line_keeps_freed_memory(monkeypatch):
    calls = []
    monkeypatch.setattr("mtkd_cache.cli.main.keep_freed_memory", lambda: calls.append("kept"))
    call("models", "--help")
    assert calls == ["kept"]


def test_ctrl_c_is_status_130_and_the_command_resumes(tmp_path):
    command = [sys.executable, "-m", "mtkd_cache.cli", "phantom", "--size", "64x64", "--workers", "1", str(tmp_path / "out")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not any(tmp_path.rglob("*.png")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    *_, last = process.communicate()[1].splitlines()
    assert process.returncode == 130
    assert last == "mtkd-cache: interrupted. Finished work is kept; the same command resumes from there."


def test_study_lists_its_jobs_as_commands(organ_store, tmp_path):
    arguments = ("study", "--store", organ_store.url, "--out", tmp_path / "study", "--row", "mininetv2/kd", "--dry-run")
    jobs = as_json(*arguments, "--set", "teacher.arch=mininetv2")["units"]
    assert [job["name"].split()[0] for job in jobs] == ["teacher", "teacher", "evaluation", "cache", "student", "evaluation"]
    assert not any(job["done"] for job in jobs) and not (tmp_path / "study").exists()
    for job in jobs:
        program, name, *rest = job["command"]
        assert program == "mtkd-cache"
        main.get_command(None, name).make_context(name, rest)  # raises what click says of a wrong option
    printed = call(*arguments, "--set", "teacher.arch=mininetv2")
    assert printed.stdout.count("to do  ") == len(jobs)
    assert f"{jobs[0]['name']}\n" in printed.stdout and " ".join(jobs[0]["command"][:2]) in printed.stdout


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
