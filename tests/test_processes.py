"""A build shared by several processes gives what one process gives; where one of them fails, all end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_s3 import served_bucket

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
accelerator = make_accelerator(None)
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
    """Run a build in several processes, as torchrun would start them; the lines that they printed, sorted."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(block=BLOCK, store=store.url, teachers=str(teachers)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *targets],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(processes)
    ]
    try:
        printed = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes
    return sorted(line for text in printed for line in text.splitlines() if line.startswith("rank"))


def test_three_processes_build_what_one_builds(store, organ_teachers, recipe, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr("mtkd_cache.cache.BLOCK", BLOCK)
    monkeypatch.setattr("mtkd_cache.units.BLOCK", BLOCK)
    alone, shared, broken = (str(tmp_path / f"{name}.zarr") for name in ("alone", "shared", "broken"))
    build(store, organ_teachers, alone, recipe(), accelerator)
    lines = launch(3, store, organ_teachers, tmp_path, shared, broken)
    error = "the second process cannot go on"
    others = [f"rank {rank} error another process failed: {error}" for rank in (0, 2)]
    assert lines == sorted([f"rank 1 error {error}", *others, *(f"rank {rank} maps 8" for rank in range(3))])
    one, several = LogitCache.open(alone), LogitCache.open(shared)
    hashes = sorted(one.place)
    assert one.fingerprint == several.fingerprint and one.manifest["files"] == several.manifest["files"]
    assert np.array_equal(one.read(hashes), several.read(hashes))
    assert [problem["kind"] for problem in verify(broken)["problems"]] == ["unfinished"]
    again = build(store, organ_teachers, broken, recipe(), accelerator)
    assert again["fingerprint"] == one.fingerprint and again["maps_computed"] == 8


def test_two_processes_build_behind_a_url(store, organ_teachers, recipe, accelerator, tmp_path, monkeypatch):
    """What one process wrote to the object store is seen by the others, whatever these had listed before."""
    monkeypatch.setattr("mtkd_cache.cache.BLOCK", BLOCK)
    monkeypatch.setattr("mtkd_cache.units.BLOCK", BLOCK)
    alone = str(tmp_path / "alone.zarr")
    build(store, organ_teachers, alone, recipe(), accelerator)
    with served_bucket() as bucket:
        lines = launch(2, store, organ_teachers, tmp_path, f"{bucket}/shared.zarr")
        one, shared = LogitCache.open(alone), LogitCache.open(f"{bucket}/shared.zarr")
        hashes = sorted(one.place)
        assert lines == ["rank 0 maps 12", "rank 1 maps 12"]
        assert one.fingerprint == shared.fingerprint and np.array_equal(one.read(hashes), shared.read(hashes))
