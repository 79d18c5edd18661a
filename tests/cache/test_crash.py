"""A build that is killed, or finds the disk full, is finished by the same command; what was finished is not done again."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import KILL_AT_FLUSH, build, finished_shards, same_cache

from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.errors import MtkdError

CARD_FLUSHES = 2  # of the file and of its folder
KILLS = int(os.environ.get("MTKD_KILLS", "6"))
BLOCK = 2
pytestmark = pytest.mark.usefixtures("small_shards")

# Builds on request, in a child of its own, which kills itself at the given one of its flushes; imports are paid once.
BUILDER = """
import os, signal, sys
from pathlib import Path
import torch
from mtkd_cache.cache import builder, layout
from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.data.sample_store import SampleStore

torch.set_num_threads(1)
layout.BLOCK = {block}
{kill_at_flush}for line in sys.stdin:
    last, target = int(line.split()[0]), line.split()[1]
    child = os.fork()
    if not child:
        store, recipe = SampleStore.open({store!r}), load_recipe("paper")
        teachers = Teachers.load(Path({teachers!r}), store)
        spec = layout.CacheSpec.of(store, teachers.stride, recipe)
        build_cache(store, teachers, spec, target, make_accelerator("cpu"), temperature=recipe.distillation.temperature)
        print("finished", flushes, flush=True)
        os._exit(0)
    print("status", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def whole(store, organ_teachers, recipe, accelerator, tmp_path_factory) -> Path:
    """The cache of a build that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "logits.zarr"
    build(store, organ_teachers, str(path), recipe(), accelerator)
    return path


def test_killed_builds_are_finished_by_the_same_command(store, organ_teachers, whole, recipe, accelerator, tmp_path):
    """Each build is killed at one of its flushes to the disk, drawn at random from all of them."""
    script = BUILDER.format(kill_at_flush=KILL_AT_FLUSH, block=BLOCK, store=store.url, teachers=str(organ_teachers))
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def build_until(last: int, target: Path) -> list[int]:
        process.stdin.write(f"{last} {target}\n")
        process.stdin.flush()
        numbers = {}
        while "status" not in numbers:
            word, number = process.stdout.readline().split()
            numbers[word] = int(number)
        return [numbers["status"], numbers.get("finished", 0)]

    status, flushes = build_until(0, tmp_path / "undisturbed.zarr")
    assert status == 0 and flushes > 20
    assert same_cache(tmp_path / "undisturbed.zarr", whole)
    random = np.random.default_rng(int.from_bytes(os.urandom(4)))
    before = flushes - CARD_FLUSHES  # after them the manifest is there, and the cache is finished but for its card
    for last in random.permutation(np.linspace(1, before - 2, KILLS).astype(int) + random.integers(2, size=KILLS)):
        target = tmp_path / f"{last}.zarr"
        assert build_until(last, target)[0] == signal.SIGKILL
        assert not (target / "manifest.json").exists()
        done = finished_shards(target)
        problems = verify_cache(str(target))["problems"] if (target / "plan.json").exists() else []
        assert {problem["kind"] for problem in problems} <= {"unfinished", "missing"}
        result = build(store, organ_teachers, str(target), recipe(), accelerator)
        assert result["maps_computed"] == 2 * (len(store.rows("train")) - BLOCK * done)
        assert same_cache(target, whole) and verify_cache(str(target))["ok"]
        assert not list(target.rglob("*.tmp"))
    target = tmp_path / "without-card.zarr"
    assert build_until(flushes - 1, target)[0] == signal.SIGKILL
    assert verify_cache(str(target))["ok"] and not (target / "README.md").exists()
    assert build(store, organ_teachers, str(target), recipe(), accelerator)["maps_computed"] == 0
    assert (target / "README.md").read_text() == (whole / "README.md").read_text()
    process.stdin.close()
    assert process.wait() == 0


def test_full_disk(store, organ_teachers, whole, recipe, accelerator, tmp_path, monkeypatch):
    """The disk fills up in the middle; what is written stays whole and counts."""
    left = [7]
    flush = os.fsync

    def fsync(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    target = tmp_path / "logits.zarr"
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        MtkdError, match=r"the disk is full\. Finished work is kept; free some space and run the same command again"
    ):
        build(store, organ_teachers, str(target), recipe(), accelerator)
    monkeypatch.setattr(os, "fsync", flush)
    done = finished_shards(target)
    assert done == 1 and not list(target.rglob("*.tmp"))
    assert build(store, organ_teachers, str(target), recipe(), accelerator)["maps_computed"] == 2 * (12 - BLOCK)
    assert same_cache(target, whole)


def test_full_file_system(store, organ_teachers, whole, recipe, accelerator, tmp_path):
    """A real one: a tmpfs of 64 kB, then of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small tmpfs")
    try:
        with pytest.raises(MtkdError, match="the disk is full"):
            build(store, organ_teachers, str(disk / "logits.zarr"), recipe(), accelerator)
        done = finished_shards(disk / "logits.zarr")
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        result = build(store, organ_teachers, str(disk / "logits.zarr"), recipe(), accelerator)
        assert result["maps_computed"] == 2 * (12 - BLOCK * done)
        assert same_cache(disk / "logits.zarr", whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
