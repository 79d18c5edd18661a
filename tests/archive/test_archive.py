"""What earlier versions wrote is read, verified, resumed and reported today as on the day it was written.

format-1/   a cache with two views, in the first format
format-2/   logits of another program, of two strides, with two views of a Sobol sequence
v0.1/       written by version 0.1.0: a sample store, teachers, a cache, a finished run, one interrupted after its first of two
            epochs, and in values.json what that version computed from them. Weights have few different values, so that they
            pack well; all but the interrupted run's were "trained" at a learning rate of 1e-30.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from mtkd_cache.cache.quantize import FILL
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cli.main import main
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.training import run_folder

HERE = Path(__file__).parent
CACHE = HERE / "format-1" / "logits.zarr"
VALUES = json.loads((HERE / "format-1" / "values.json").read_text())


def run(*arguments) -> dict:
    """A command's JSON."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr or result.exception
    return json.loads(result.stdout.splitlines()[-1])


def check(sha256: str, logits: np.ndarray) -> None:
    """logits (view, anatomy, y, x) of a sample against what was written down of them."""
    recorded = VALUES["logits"][sha256]
    assert np.array_equal(logits.sum((2, 3), dtype=np.float64), recorded["sum"])
    assert np.array_equal(logits[:, :, 0], recorded["first_row"])


def test_this_package_reads_it():
    cache = LogitCache.open(str(CACHE))
    assert (cache.fingerprint, list(cache.anatomies), cache.step) == tuple(
        VALUES[key] for key in ("fingerprint", "anatomies", "step")
    )
    assert cache.row_of.keys() == VALUES["logits"].keys()
    for sha256 in cache.row_of:
        check(sha256, np.stack([cache.read([sha256], view)[0] for view in range(cache.views)]) * np.float32(cache.step))
    np.testing.assert_allclose(cache.draw_views(list(cache.row_of), 1).affine.numpy(), VALUES["affine_of_view_1"], atol=1e-7)


def test_it_is_whole(tmp_path):
    copy = shutil.copytree(CACHE, tmp_path / "logits.zarr")
    assert run("verify", "--cache", copy)["ok"]
    assert run("inspect", "--cache", copy)["fingerprint"] == VALUES["fingerprint"]


def test_plain_zarr_reads_it():
    group = zarr.open_group(CACHE, mode="r")
    step = group["logits"].attrs["scale_factor"]
    assert group["logits"].metadata.dimension_names == ("sample", "view", "anatomy", "y", "x")
    assert group["logits"].fill_value == FILL and group.attrs["complete"]
    for sha256, logits in zip(group["sha256"][:], group["logits"][:], strict=True):
        check(sha256.tobytes().hex(), logits * np.float32(step))


def test_xarray_reads_it():
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(CACHE, chunks=None)
        logits = data.logits.isel(sample=0, view=0).values
    assert dict(data.sizes) == {"sample": 4, "view": 2, "anatomy": 2, "y": 16, "x": 16, "byte": 32}
    assert data.attrs["fingerprint"] == VALUES["fingerprint"]
    recorded = VALUES["logits"][data.sha256.values[0].tobytes().hex()]
    assert np.array_equal(logits[:, 0], recorded["first_row"][0])


def test_format_2_is_read_and_whole(tmp_path):
    """As integers, and with the views that it was written in."""
    written = json.loads((HERE / "format-2" / "values.json").read_text())
    copy = shutil.copytree(HERE / "format-2" / "logits.zarr", tmp_path / "logits.zarr")
    cache = LogitCache.open(str(copy))
    assert {anatomy: cache.spec.stride_of(anatomy) for anatomy in cache.anatomies} == written["strides"]
    assert cache.row_of.keys() == written["maps"].keys()
    for sha256, views in written["maps"].items():
        for view, maps in enumerate(views):
            for [[own]], expected in zip(cache.read_arrays([sha256], view), maps, strict=True):
                assert own.sum(dtype=int) == expected["sum"] and own[0].tolist() == expected["first_row"]
    np.testing.assert_allclose(cache.draw_views(list(cache.row_of), 1).affine.numpy(), written["affine_of_view_1"], atol=1e-7)
    assert run("verify", "--cache", copy)["ok"]
    assert run("inspect", "--cache", copy)["fingerprint"] == cache.fingerprint == written["fingerprint"]


STAGES = (
    *("teacher.arch=mininetv2", "teacher.weights=none", "teacher.epochs=1", "teacher.batch=8", "teacher.lr=1e-30"),
    *("teacher.final_lr=1e-31", "student.weights=none", "student.batch=8"),
)
V01 = json.loads((HERE / "v0.1" / "values.json").read_text())


@pytest.fixture
def v01(tmp_path) -> Path:
    return Path(shutil.copytree(HERE / "v0.1", tmp_path / "v0.1"))


def recipe(*overrides: str) -> list[str]:
    return ["--device", "cpu", *(word for override in (*STAGES, *overrides) for word in ("--set", override))]


def test_version_0_1_store_and_cache_are_read(v01):
    store, cache = SampleStore.open(str(v01 / "samples.zarr")), LogitCache.open(str(v01 / "logits.zarr"))
    assert (store.fingerprint, cache.fingerprint) == (V01["store_fingerprint"], V01["cache_fingerprint"])
    store.read(np.arange(len(store)))
    assert {sha256: float(cache.read([sha256]).sum() * cache.step) for sha256 in cache.row_of} == V01["maps_sum"]
    assert run("inspect", "--cache", cache.url)["fingerprint"] == V01["cache_fingerprint"]


def test_version_0_1_cache_is_whole_and_current(v01):
    source = ("--store", v01 / "samples.zarr", "--teachers", v01 / "teachers", "--cache", v01 / "logits.zarr", "--device", "cpu")
    assert run("verify", *source, "--live", "6")["ok"]
    built = run("build", *source, *recipe())
    assert (built["maps_computed"], built["fingerprint"]) == (0, V01["cache_fingerprint"])


def test_version_0_1_networks_are_evaluated_and_reported(v01):
    for path in v01.rglob("evaluation-test.json"):
        path.unlink()
    store = ("--store", v01 / "samples.zarr")
    student, teachers = v01 / "runs" / "distilled", v01 / "teachers"
    for option, folder, dice in (("--run", student, "student_dice"), ("--teachers", teachers, "teachers_dice")):
        assert run("evaluate", option, folder, *store, "--device", "cpu")["dice"] == pytest.approx(V01[dice], abs=0.002)
    rows = run("report", student, teachers, *store, "--out", v01 / "report")["rows"]
    assert {row["kd"]: row["dice"] for row in rows} == {
        True: pytest.approx(V01["student_dice"], abs=0.002),
        False: pytest.approx(V01["teachers_dice"], abs=0.002),
    }
    recorded = run("report", HERE / "v0.1" / "runs" / "distilled", HERE / "v0.1" / "teachers", "--out", v01 / "recorded")
    assert {row["kd"]: row["dice"] for row in recorded["rows"]} == {True: V01["student_dice"], False: V01["teachers_dice"]}


def test_version_0_1_interrupted_run_is_resumed(v01):
    source = ("--store", v01 / "samples.zarr", "--cache", v01 / "logits.zarr", "--run", v01 / "runs" / "interrupted")
    run("train-student", *source, *recipe("student.epochs=2"))
    history = json.loads((v01 / "runs" / "interrupted" / "run.json").read_text())["history"]
    for epoch, expected in zip(history, V01["resumed"]["history"], strict=True):
        assert {key: epoch[key] for key in expected} == pytest.approx(expected, rel=1e-3)


def test_version_0_1_finished_runs_are_not_trained_again(v01, monkeypatch):
    monkeypatch.setattr(run_folder, "fit", None)
    source = ("--store", v01 / "samples.zarr", "--cache", v01 / "logits.zarr", "--run", v01 / "runs" / "distilled")
    finished = run("train-student", *source, *recipe("student.epochs=1", "student.lr=1e-30", "student.final_lr=1e-31"))
    assert finished["cache_fingerprint"] == V01["cache_fingerprint"]
    teachers = run("train-teachers", "--store", v01 / "samples.zarr", "--teachers", v01 / "teachers", *recipe())
    assert {anatomy: teacher["epochs"] for anatomy, teacher in teachers.items()} == {"kidney": 1, "tongue": 1}
