"""A cache grows in views as it does in samples: only new views are computed, whatever happens on the way."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import build, same_cache

from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.layout import CacheSpec
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.data.augment import draw_views
from mtkd_cache.errors import MtkdError

BLOCK, SAMPLES, VIEWS = 4, 12, "cache.views=3"
pytestmark = pytest.mark.usefixtures("small_shards")
KILLED = """
import os, signal, sys
from pathlib import Path
from mtkd_cache.cache import builder, layout
from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runtime.accelerator import make_accelerator

layout.BLOCK = 4
store, recipe, write = SampleStore.open(sys.argv[1]), load_recipe("paper", ["cache.views=3"]), builder.Builder._write
teachers = Teachers.load(Path(sys.argv[2]), store)
left = int(sys.argv[4])

def write_some(*arguments):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(*arguments)

builder.Builder._write = write_some
spec = layout.CacheSpec.of(store, teachers.stride, recipe)
build_cache(store, teachers, spec, sys.argv[3], make_accelerator("cpu"), temperature=4.0)
"""


@pytest.fixture(scope="module")
def plain(store, organ_teachers, recipe, accelerator, tmp_path_factory) -> Path:
    """A cache of the plain samples. Read only."""
    path = tmp_path_factory.mktemp("plain") / "logits.zarr"
    build(store, organ_teachers, str(path), recipe(), accelerator)
    return path


@pytest.fixture(scope="module")
def whole(store, organ_teachers, recipe, accelerator, tmp_path_factory) -> Path:
    """A cache that was begun with three views. Read only."""
    path = tmp_path_factory.mktemp("whole") / "logits.zarr"
    build(store, organ_teachers, str(path), recipe(VIEWS), accelerator)
    return path


def test_only_new_views_are_computed_and_the_result_is_that_of_a_new_cache(
    plain, whole, store, organ_teachers, recipe, accelerator, copy_of
):
    cache = copy_of(plain)
    for views, computed in ((2, SAMPLES * 2), (3, SAMPLES * 2), (3, 0)):
        assert build(store, organ_teachers, str(cache), recipe(f"cache.views={views}"), accelerator)["maps_computed"] == computed
        assert verify_cache(str(cache), store=store, teachers=organ_teachers, live=2)["ok"]
    assert same_cache(cache, whole)
    with pytest.raises(MtkdError, match=r"views\.count 3 \(now 2\)"):
        build(store, organ_teachers, str(cache), recipe("cache.views=2"), accelerator)
    with pytest.raises(MtkdError, match=r"views\.augmentation\.shift 0\.1 \(now 0\.05\)"):
        build(store, organ_teachers, str(cache), recipe("cache.views=4", "augmentation.shift=0.05"), accelerator)


@pytest.mark.parametrize("written", [2])
def test_a_killed_growth_is_finished_by_the_same_command(
    written, plain, whole, store, organ_teachers, recipe, accelerator, copy_of
):
    cache = copy_of(plain)
    arguments = [sys.executable, "-c", KILLED, store.url, str(organ_teachers), str(cache), str(written)]
    ended = subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with pytest.raises(MtkdError, match="not finished"):
        LogitCache.open(str(cache))
    report = verify_cache(str(cache), store=store, teachers=organ_teachers)
    assert [problem["kind"] for problem in report["problems"]] == ["unfinished"]
    built = build(store, organ_teachers, str(cache), recipe(VIEWS), accelerator)
    assert built["maps_computed"] == 2 * (2 * SAMPLES - written * BLOCK)
    assert same_cache(cache, whole)


def test_a_teacher_trained_again_costs_its_maps_of_all_views(
    whole, store, organ_teachers, untrained_teacher, recipe, accelerator, copy_of
):
    cache, teachers = copy_of(whole), copy_of(organ_teachers)
    untrained_teacher(teachers, "tongue", seed=9)
    assert build(store, teachers, str(cache), recipe(VIEWS), accelerator)["maps_computed"] == 3 * SAMPLES
    one, other = LogitCache.open(str(cache)), LogitCache.open(str(whole))
    for view in range(3):
        before, after = (each.read(sorted(other.row_of), view) for each in (other, one))
        assert np.array_equal(before[:, 0], after[:, 0]) and not np.array_equal(before[:, 1], after[:, 1])


def test_damage_in_a_grown_cache_is_repaired(plain, whole, store, organ_teachers, recipe, accelerator, copy_of):
    cache = copy_of(plain)
    build(store, organ_teachers, str(cache), recipe(VIEWS), accelerator)
    for view in (0, 2):
        shard = cache / f"logits/c/1/{view}/0/0/0"
        data = bytearray(shard.read_bytes())
        data[40] ^= 8
        shard.write_bytes(data)
    shutil.copy(cache / "records/00000-001.json", cache / "records/00000-002.json")  # another view's record
    found = verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)
    assert found["ok"] and found["maps_computed"] == 3 * 2 * BLOCK
    assert same_cache(cache, whole)


def test_views_of_independent_draws_grow_as_they_were_drawn(store, organ_teachers, recipe, accelerator, tmp_path):
    """A cache as earlier versions wrote it, with a seed and without a sequence."""
    teachers, settings = Teachers.load(organ_teachers, store), recipe("cache.views=2")
    spec = CacheSpec.of(store, teachers.stride, settings)
    old = replace(spec, views=replace(spec.views, sequence=None, seed=11))
    url = str(tmp_path / "logits.zarr")
    build_cache(store, teachers, old, url, accelerator, temperature=4.0)
    assert build(store, organ_teachers, url, settings, accelerator)["maps_computed"] == 0
    assert build(store, organ_teachers, url, recipe(VIEWS), accelerator)["maps_computed"] == 2 * SAMPLES
    cache, hashes = LogitCache.open(url), store.hashes[:3]
    drawn = draw_views(settings.augmentation, 11, hashes, 2, store.size)
    assert (cache.spec.views.seed, cache.views) == (11, 3)
    assert np.array_equal(cache.draw_views(hashes, 2).affine, drawn.affine)
    unknown = replace(cache.spec, views=replace(cache.spec.views, sequence="Halton", seed=None))
    with pytest.raises(MtkdError, match="by a newer version"):
        unknown.recorded_views(hashes, 1)
