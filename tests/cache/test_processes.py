"""A build shared by several processes gives what one process gives; where one of them fails, all end."""

from pathlib import Path

import numpy as np
from support import build, launch, same_cache, served_bucket

from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.data.sample_store import SampleStore

BLOCK = 2
SCRIPT = """
import os, signal, sys
from pathlib import Path
from mtkd_cache.cache import builder, layout
from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.data.sample_store import SampleStore

layout.BLOCK = {block}
accelerator = make_accelerator(None)
store, recipe = SampleStore.open({store!r}), load_recipe("paper", {overrides!r})
teachers = Teachers.load(Path({teachers!r}), store)
spec = layout.CacheSpec.of(store, teachers.stride, recipe)

def fail(*arguments):
    raise MtkdError("the second process cannot go on")

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

for target in sys.argv[1:]:
    write = builder.Builder._write
    if accelerator.process_index == 1:
        builder.Builder._write = fail if "broken" in target else die if "killed" in target else write
    try:
        result = build_cache(store, teachers, spec, target, accelerator, temperature=recipe.distillation.temperature)
        print("rank", accelerator.process_index, "maps", result["maps_computed"], flush=True)
    except MtkdError as error:
        print("rank", accelerator.process_index, "error", error, flush=True)
    builder.Builder._write = write
"""


def builds(
    count: int, store: SampleStore, teachers: Path, folder: Path, *targets: str, killed: int = 0, overrides: tuple[str, ...] = ()
) -> list[str]:
    """What the processes of some builds printed, sorted. killed: how many of them do not survive."""
    code = SCRIPT.format(block=BLOCK, store=store.url, teachers=str(teachers), overrides=overrides)
    printed = launch(count, folder, code, *targets, killed=killed)
    return sorted(line for lines in printed for line in lines if line.startswith("rank"))


def test_three_processes_build_what_one_builds(store, organ_teachers, recipe, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr("mtkd_cache.cache.layout.BLOCK", BLOCK)
    alone, shared, broken = (str(tmp_path / f"{name}.zarr") for name in ("alone", "shared", "broken"))
    build(store, organ_teachers, alone, recipe(), accelerator)
    lines = builds(3, store, organ_teachers, tmp_path, shared, broken)
    error = "the second process cannot go on"
    others = [f"rank {rank} error another process failed: {error}" for rank in (0, 2)]
    assert lines == sorted([f"rank 1 error {error}", *others, *(f"rank {rank} maps 24" for rank in range(3))])
    single, several = LogitCache.open(alone), LogitCache.open(shared)
    hashes = sorted(single.row_of)
    assert single.fingerprint == several.fingerprint and single.manifest.files == several.manifest.files
    assert np.array_equal(single.read(hashes), several.read(hashes))
    assert [problem["kind"] for problem in verify_cache(broken)["problems"]] == ["unfinished"]
    again = build(store, organ_teachers, broken, recipe(), accelerator)
    assert again["fingerprint"] == single.fingerprint and again["maps_computed"] == 8


def test_one_of_three_processes_is_killed(store, organ_teachers, recipe, accelerator, tmp_path, monkeypatch):
    """With recorded views: a block of samples in a view is one process's work."""
    monkeypatch.setattr("mtkd_cache.cache.layout.BLOCK", BLOCK)
    views = "cache.views=3"
    alone, killed = str(tmp_path / "alone.zarr"), str(tmp_path / "killed.zarr")
    build(store, organ_teachers, alone, recipe(views), accelerator)
    lines = builds(3, store, organ_teachers, tmp_path, killed, killed=1, overrides=(views,))
    error = "another process has ended. Run the same command again to resume."
    assert lines == [f"rank {rank} error {error}" for rank in (0, 2)]
    assert [problem["kind"] for problem in verify_cache(killed)["problems"]] == ["unfinished"]
    again = build(store, organ_teachers, killed, recipe(views), accelerator)
    assert again["maps_computed"] == 8 * 3
    assert same_cache(alone, killed)


def test_two_processes_build_behind_a_url(store, untrained_teacher, recipe, accelerator, tmp_path, monkeypatch):
    """What one process wrote to the object store is seen by the others, whatever these had listed before; of two strides."""
    monkeypatch.setattr("mtkd_cache.cache.layout.BLOCK", BLOCK)
    teachers, alone = tmp_path / "teachers", str(tmp_path / "alone.zarr")
    untrained_teacher(teachers, "kidney")
    untrained_teacher(teachers, "tongue", "segformer-mit_b0")
    build(store, teachers, alone, recipe(), accelerator)
    with served_bucket() as bucket:
        lines = builds(2, store, teachers, tmp_path, f"{bucket}/shared.zarr")
        shared = LogitCache.open(f"{bucket}/shared.zarr")
        assert lines == ["rank 0 maps 24", "rank 1 maps 24"]
        assert [array.stride for array in shared.spec.arrays] == [2, 4] and same_cache(alone, shared.url)
