"""A build shared by several processes gives what one process gives; where one of them fails, all end."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtkd_cache.build import build
from mtkd_cache.cache import LogitCache
from mtkd_cache.ingest import ingest
from mtkd_cache.samples import SampleStore
from mtkd_cache.verify import verify

BLOCK = 2
SCRIPT = """
import sys
from pathlib import Path
from mtkd_cache import cache, units
from mtkd_cache.build import build
from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runs import make_accelerator
from mtkd_cache.samples import SampleStore

cache.BLOCK = units.BLOCK = {block}
accelerator = make_accelerator("cpu")
store, teachers = SampleStore.open({store!r}), Path({teachers!r})

def fail(*arguments):
    raise MtkdError("the second process cannot go on")

for target in sys.argv[1:]:
    write = units.Builder._write
    if "broken" in target and accelerator.process_index == 1:
        units.Builder._write = fail
    try:
        result = build(store, teachers, target, load_recipe("paper"), accelerator)
        print("rank", accelerator.process_index, "maps", result["maps_computed"], flush=True)
    except MtkdError as error:
        print("rank", accelerator.process_index, "error", error, flush=True)
    units.Builder._write = write
"""


@pytest.fixture(scope="module")
def store(write_organs, organ_split, tmp_path_factory) -> SampleStore:
    root = tmp_path_factory.mktemp("processes")
    ingest(write_organs(root / "organs", size=(32, 32)), str(root / "samples.zarr"), size=(32, 32), split=organ_split)
    return SampleStore.open(str(root / "samples.zarr"))


def launch(processes: int, store: SampleStore, teachers: Path, tmp_path: Path, *targets: str) -> list[str]:
    """Run a build under `accelerate launch`; the lines that its processes printed, sorted."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(block=BLOCK, store=store.url, teachers=str(teachers)))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--num_processes", str(processes), "--main_process_port", "0", str(script), *targets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))


def test_three_processes_build_what_one_builds(store, organ_teachers, recipe, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr("mtkd_cache.cache.BLOCK", BLOCK)
    monkeypatch.setattr("mtkd_cache.units.BLOCK", BLOCK)
    alone, shared, broken = (str(tmp_path / f"{name}.zarr") for name in ("alone", "shared", "broken"))
    build(store, organ_teachers, alone, recipe(), accelerator)
    lines = launch(3, store, organ_teachers, tmp_path, shared, broken, broken)
    error = "the second process cannot go on"
    failed = [f"rank 0 error another process failed: {error}", f"rank 1 error {error}"]
    assert lines == sorted(
        [*(f"rank {rank} maps 8" for rank in range(3)), *failed * 2, *[f"rank 2 error another process failed: {error}"] * 2]
    )
    one, several = LogitCache.open(alone), LogitCache.open(shared)
    hashes = sorted(one.place)
    assert one.fingerprint == several.fingerprint and one.manifest["files"] == several.manifest["files"]
    assert np.array_equal(one.read(hashes), several.read(hashes))
    assert [problem["kind"] for problem in verify(broken)["problems"]] == ["unfinished"]
    again = build(store, organ_teachers, broken, recipe(), accelerator)
    assert again["fingerprint"] == one.fingerprint and again["maps_computed"] == 8
