"""Teachers of one's own, students' runs as teachers, and several teachers an anatomy."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import untrained_student
from tiny_teachers import Tiny, tiny_teachers

import mtkd_cache as mc
from mtkd_cache.cache.builder import Builder
from mtkd_cache.cache.inspect import inspect_cache
from mtkd_cache.cache.layout import CachePlan
from mtkd_cache.cli.inspect import describe
from mtkd_cache.cli.main import main
from mtkd_cache.data.augment import to_float
from mtkd_cache.models.checkpoints import load_network
from mtkd_cache.models.network import upsample
from mtkd_cache.models.records import read_run, write_json
from mtkd_cache.models.seen import Seen
from mtkd_cache.storage.checked_json import dump_checked_json, read_checked_json
from mtkd_cache.storage.folder import Folder

ROOT = Path(__file__).parents[2]
CODE = """
import torch

class Foundation:
    anatomies, stride, fingerprint, license = ("tongue", "kidney"), 8, "weights of May", "CC BY 4.0"

    def logits(self, images):
        coarse = torch.nn.functional.avg_pool2d(images, 8)
        return torch.cat([20 * coarse[:, :1] - 7, 30 * coarse[:, 1:2] - 9], 1)

class Sixteen(Foundation):
    stride = 16

class Three(Foundation):
    def logits(self, images):
        return images[:, :, ::8, ::8]

class NotANumber(Foundation):
    def logits(self, images):
        return super().logits(images) / 0

class Later(Foundation):  # a NaN that no gray image shows
    def logits(self, images):
        return super().logits(images) / (images.std() == 0)

class Broken(Foundation):
    def logits(self, images):
        return images.no_such_method()

class Spleen(Foundation):
    anatomies = ("kidney", "spleen")

class Nameless:
    stride, anatomies = 8, ("kidney", "tongue")

class Unmarked(Foundation):
    fingerprint = None

def failing():
    raise ValueError("no weights here")
"""


def run(*arguments) -> dict | str:
    """A command's JSON, or where it fails what it says."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    return json.loads(result.stdout.splitlines()[-1]) if result.exit_code == 0 else result.stderr.strip()


def fails(*arguments) -> str:
    """The JSON line of a command that ends with status 1."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 1
    return result.stdout.splitlines()[-1]


@pytest.fixture
def code(tmp_path, monkeypatch) -> Callable[..., str]:
    """code(text) writes a module of the user's own, to be imported anew, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str = CODE) -> str:
        Path("own_teacher.py").write_text(text)
        monkeypatch.delitem(sys.modules, "own_teacher", raising=False)
        importlib.invalidate_caches()
        return "own_teacher"

    return write


@pytest.fixture
def at(store, tmp_path) -> tuple[str, ...]:
    return ("--store", store.url, "--cache", str(tmp_path / "c.zarr"), "--device", "cpu")


def pictures(store: mc.SampleStore, rows: np.ndarray) -> torch.Tensor:
    return to_float(torch.from_numpy(store.read(rows)[0]))


def test_a_teacher_of_ones_own(code, at, store, tmp_path):
    module = code()
    built = run("build", *at, "--teacher", f"{module}:Foundation")
    assert built["maps_computed"] == 24 and built["overlap"]["complete"] is False
    cache, rows = mc.LogitCache.open(str(tmp_path / "c.zarr")), store.rows("train")
    coarse = torch.nn.functional.avg_pool2d(pictures(store, rows), 8)
    expected = torch.stack([30 * coarse[:, 1] - 9, 20 * coarse[:, 0] - 7], 1)  # kidney is the second channel
    assert np.abs(cache.read(store.hashes[rows]) * cache.step - expected.numpy()).max() <= cache.step / 2 + 1e-4
    info = cache.manifest.teachers["kidney"]
    assert info == cache.manifest.teachers["tongue"] and info["arch"] == f"{module}:Foundation"
    assert (info["weights_sha256"], info["license"], len(info["source_sha256"])) == ("weights of May", "CC BY 4.0", 64)
    own = ("--teacher", f"{module}:Foundation")
    assert run("verify", *at, *own, "--live", 3)["ok"] and run("build", *at, *own)["maps_computed"] == 0


def test_it_runs_once_an_image_and_only_where_maps_are_missing(store, recipe, accelerator, tmp_path):
    both = Tiny(4, 0, heads=2)
    info = {name: {"arch": "tiny", "weights_sha256": "1"} for name in store.anatomies}
    teachers = mc.Teachers([both], info, channels=[{"kidney": 1, "tongue": 0}])
    spec, url = mc.CacheSpec.of(store, teachers.stride, recipe()), str(tmp_path / "c.zarr")
    mc.build_cache(store, teachers, spec, url, accelerator, temperature=4.0)
    assert both.calls == [8, 4]
    path = tmp_path / "c.zarr" / "records" / "00000-000.json"
    record = read_checked_json(Folder(tmp_path / "c.zarr"), "records/00000-000.json")
    record["rows"][3]["crc32c"][0] ^= 1  # one damaged map of one anatomy
    path.write_bytes(dump_checked_json(record))
    both.calls.clear()
    other = mc.Teachers([both], info | {"tongue": {"arch": "tiny", "weights_sha256": "2"}}, channels=teachers.channels)
    assert mc.build_cache(store, other, spec, url, accelerator, temperature=4.0)["maps_computed"] == 12 + 1
    assert both.calls == [8, 4]
    rows = store.rows("train")
    expected = both.native(pictures(store, rows))[:, [1, 0]].detach().numpy()
    cache = mc.LogitCache.open(url)
    assert np.abs(cache.read(store.hashes[rows]) * cache.step - expected).max() <= cache.step / 2 + 1e-4


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("Absent", "has no function 'Absent'"),
        ("failing", "failed: ValueError: no weights here. It is called without arguments"),
        ("Nameless", "has no fingerprint, logits. A teacher has anatomies, stride, fingerprint and logits(images)"),
        ("Unmarked", "fingerprint = None is no text"),
        ("Spleen", "answers for spleen; "),
        ("Sixteen", "to torch.float32 (1, 2, 4, 4). Of 2 anatomies at stride 16 it must be float logits"),
        ("Three", "to torch.float32 (1, 3, 4, 4). Of 2 anatomies at stride 8 it must be float logits (1, 2, 4, 4)"),
        ("NotANumber", "gives NaN or infinity on a gray image of 32x32 pixels"),
        ("Later", "logits are not finite"),
        ("Broken", "fails on images (1, 3, 32, 32): AttributeError"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_in_words(factory, says, code, at, tmp_path):
    said = run("build", *at, "--teacher", f"{code()}:{factory}")
    assert says in said and len(said.splitlines()) <= 2
    assert factory == "Later" or not (tmp_path / "c.zarr").exists()


def test_the_example(code, at, store):
    text = (ROOT / "docs" / "examples" / "own_teacher.py").read_text().replace('("liver", "stomach")', "('kidney', 'tongue')")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 4, stride=4), torch.nn.ReLU(), torch.nn.Conv2d(16, 2, 1))
    torch.save(network.state_dict(), "two_organs.pt")
    own = ("--teacher", f"{code(text)}:two_organs")
    assert run("build", *at, *own)["maps_computed"] == 24 and run("verify", *at, *own, "--live", 2)["ok"]
    torch.save({name: 2 * tensor for name, tensor in network.state_dict().items()}, "two_organs.pt")
    assert [problem["kind"] for problem in json.loads(fails("verify", *at, *own))["problems"]] == ["teacher", "teacher"]
    assert run("build", *at, *own)["maps_computed"] == 24


def test_a_teacher_that_does_not_exist(at, tmp_path):
    assert "there is no module no_such_module" in run("build", *at, "--teacher", "no_such_module:teacher")
    assert "holds no weights.safetensors, nor does a folder in it" in run("build", *at, "--teacher", tmp_path)


def test_code_that_changed_since_needs_another_fingerprint(code, at, tmp_path):
    module = code()
    own = ("--teacher", f"{module}:Foundation")
    run("build", *at, *own)
    before = (tmp_path / "c.zarr" / "manifest.json").read_bytes()
    code(CODE + "\n# a remark\n")
    assert "is not the one that computed maps" in run("build", *at, *own)
    assert (tmp_path / "c.zarr" / "manifest.json").read_bytes() == before
    verified = CliRunner().invoke(main, ["verify", *at, *own])
    assert verified.exit_code == 1 and "Its code was changed since" in verified.stderr
    code(CODE.replace("weights of May", "weights of June"))
    assert run("build", *at, *own)["maps_computed"] == 24


@pytest.fixture
def student(store, tmp_path) -> Path:
    """A run of both anatomies in one network, which has seen a test sample."""
    folder = untrained_student(tmp_path / "run", size=(32, 32))
    record = read_run(folder).to_json()
    seen = Seen.of([*store.hashes[store.rows("train")], store.hashes[store.rows("test")[0]]], [])
    write_json(folder / "run.json", {**record, "seen": seen.to_json()})
    return folder


def test_a_run_as_the_teacher_of_all(student, at, store, tmp_path):
    assert "saw 1 of 6 test samples" in run("build", *at, "--teacher", student)
    built = run("build", *at, "--teacher", student, "--allow-overlap")
    assert built["maps_computed"] == 24 and built["overlap"]["seen"] == {"validation": 0, "test": 1}
    cache, rows = mc.LogitCache.open(str(tmp_path / "c.zarr")), store.rows("train")
    with torch.inference_mode():
        live = load_network(student).native(pictures(store, rows))
    assert np.abs(cache.read(store.hashes[rows]) * cache.step - live.numpy()).max() <= cache.step / 2 + 1e-3
    assert run("verify", *at, "--teacher", student, "--allow-overlap", "--live", 4)["ok"]


def test_the_rest_comes_from_the_folder_and_code_is_not_named_twice(code, at, organ_teachers, store):
    text = CODE.replace('("tongue", "kidney")', '("tongue",)').replace(", 30 * coarse[:, 1:2] - 9]", "]")
    own = ("--teacher", f"{code(text)}:Foundation")
    built = run("build", *at, *own, "--teachers", organ_teachers)
    assert built["maps_computed"] == 24
    inspected = run("inspect", "--cache", at[3])
    assert [(one["stride"], one["anatomies"]) for one in inspected["arrays"]] == [(2, ["kidney"]), (8, ["tongue"])]
    assert "is named twice" in run("build", *at, *own, *own, "--teachers", organ_teachers)
    with pytest.raises(mc.MtkdError, match="no teacher answers for kidney"):
        mc.Teachers.gather([own[1]], store)


def test_several_teachers_are_averaged_and_their_spread_is_told(store, recipe, accelerator, tmp_path):
    """Of two strides: the coarser is upsampled to the finer."""
    fine, coarse, other = Tiny(2, 0), Tiny(8, 1, heads=2), Tiny(2, 5)

    def teachers(weights: str = "3") -> mc.Teachers:
        members = [{"arch": "tiny", "weights_sha256": weights}, {"arch": "tiny", "weights_sha256": "4"}]
        info = {"kidney": {"arch": "mean", "weights_sha256": weights + "4", "members": members}}
        info |= {"tongue": {"arch": "tiny", "weights_sha256": "4"}}
        networks = [fine if weights == "3" else other, coarse]
        return mc.Teachers(networks, info, channels=[{"kidney": 0}, {"kidney": 1, "tongue": 0}])

    def build(own: mc.Teachers) -> tuple[dict, mc.LogitCache]:
        spec = mc.CacheSpec.of(store, own.stride, recipe())
        built = mc.build_cache(store, own, spec, str(tmp_path / "c.zarr"), accelerator, temperature=4.0)
        return built, mc.LogitCache.open(str(tmp_path / "c.zarr"))

    rows = store.rows("train")
    images, size = pictures(store, rows), (16, 16)
    for own, first, computed in ((teachers(), fine, 24), (teachers("9"), other, 12)):
        built, cache = build(own)
        with torch.no_grad():
            pair = torch.stack([first.native(images)[:, 0], upsample(coarse.native(images)[:, 1:], size)[:, 0]])
            tongue = coarse.native(images)[:, 0]
        maps = cache.read_arrays(store.hashes[rows])
        assert np.abs(maps[0][:, 0] * cache.step - pair.mean(0).numpy()).max() <= cache.step / 2 + 1e-3
        assert np.abs(maps[1][:, 0] * cache.step - tongue.numpy()).max() <= cache.step / 2 + 1e-3
        naive = np.mean([abs(float(a - b)) / 2 for a, b in zip(pair[0].flatten(), pair[1].flatten(), strict=True)])
        assert built["spread"] == cache.manifest.spread == {"kidney": pytest.approx(naive, rel=1e-4)}
        assert built["maps_computed"] == computed  # of a member that was trained again, its anatomy's alone
    assert coarse.calls[:2] == [8, 4]
    assert f"kidney {naive:.2f} (mean standard deviation" in describe(inspect_cache(cache.url))
    assert mc.verify_cache(cache.url, store=store, teachers=teachers("9"), live=3)["ok"]
    problems = mc.verify_cache(cache.url, store=store, teachers=tmp_path)["problems"]
    assert "Name them with --teacher" in problems[0]["what_to_do"] and problems[0]["where"] == "kidney"


def test_two_folders_by_name(organ_teachers, untrained_teacher, at, store, tmp_path):
    untrained_teacher(tmp_path / "more", "tongue", seed=8)
    named = ("--teacher", organ_teachers, "--teacher", tmp_path / "more" / "tongue")
    built = run("build", *at, *named)
    assert built["maps_computed"] == 24 and built["spread"].keys() == {"tongue"} and built["spread"]["tongue"] > 0.1
    assert run("verify", *at, *named, "--live", 2)["ok"]
    info = mc.LogitCache.open(at[3]).manifest.teachers["tongue"]
    assert info["arch"] == "mean of mininetv2 and mininetv2" and len(info["members"]) == 2


def test_what_is_live_is_what_is_stored(store, recipe, accelerator):
    teachers = tiny_teachers(store)
    plan = CachePlan(settings=mc.CacheSpec.of(store, teachers.stride, recipe()), temperature=4.0, samples=())
    images = pictures(store, store.rows("train")[:3])
    live = Builder(Folder("memory://nowhere"), store, teachers, plan, accelerator).live(images)
    for network, logits in zip(teachers.networks, live, strict=True):
        torch.testing.assert_close(logits, network.native(images)[:, 0].detach())
