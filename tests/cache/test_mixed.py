"""Teachers of three strides in one cache: an array for each, built, resumed, verified, repaired and learnt from as one."""

import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from support import KILL_AT_FLUSH, finished_shards, same_cache
from tiny_teachers import STRIDES, tiny_teachers
from torch.utils.data import DataLoader

import mtkd_cache as mc
from mtkd_cache.cache.inspect import inspect_cache
from mtkd_cache.cache.loader import BatchReader, InMemorySource
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cli.inspect import describe
from mtkd_cache.data.augment import to_float
from mtkd_cache.evaluation.contact_sheet import contact_sheet
from mtkd_cache.models.network import upsample
from mtkd_cache.storage.folder import Folder
from mtkd_cache.training.signal import CachedTeachers
from mtkd_cache.training.student import train_student

BLOCK = 4  # eleven samples make three blocks
pytestmark = pytest.mark.usefixtures("small_shards")
EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "examples" / "own_loop.py"

# Builds in children, which kill themselves at the flush asked for; imports are paid once.
BUILDER = """
import os, signal, sys
sys.path.insert(0, {here!r})
import torch
from tiny_teachers import tiny_teachers
from mtkd_cache import CacheSpec, SampleStore, build_cache, load_recipe
from mtkd_cache.cache import layout
from mtkd_cache.runtime.accelerator import make_accelerator

torch.set_num_threads(1)
layout.BLOCK = {block}
{kill_at_flush}for word, target in zip(sys.argv[1::2], sys.argv[2::2]):
    last = int(word)
    child = os.fork()
    if not child:
        store = SampleStore.open({store!r})
        teachers = tiny_teachers(store)
        spec = CacheSpec.of(store, teachers.stride, load_recipe("paper"))
        build_cache(store, teachers, spec, target, make_accelerator("cpu"), temperature=4.0)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def build(phantom_store, recipe, accelerator) -> Callable[..., dict]:
    def run(url: Path | str, retrained: str = "", **options) -> dict:
        teachers = tiny_teachers(phantom_store, retrained)
        spec = mc.CacheSpec.of(phantom_store, teachers.stride, recipe(*options.pop("overrides", ())))
        return mc.build_cache(phantom_store, teachers, spec, str(url), accelerator, temperature=4.0, **options)

    return run


@pytest.fixture(scope="module")
def master(build, tmp_path_factory) -> Path:
    """Read only."""
    path = tmp_path_factory.mktemp("mixed") / "logits.zarr"
    build(path)
    return path


@pytest.fixture(scope="module")
def cache(master) -> mc.LogitCache:
    return mc.LogitCache.open(str(master))


def full_size(store: mc.SampleStore, images: torch.Tensor) -> torch.Tensor:
    """What the teachers say of images, upsampled: the loop that the cache stands in for."""
    with torch.no_grad():
        return torch.cat([upsample(network.native(images), store.size[::-1]) for network in tiny_teachers(store).networks], 1)


def test_it_holds_what_the_teachers_say(cache, phantom_store):
    rows = phantom_store.rows("train")
    maps = cache.read_arrays(phantom_store.hashes[rows])
    assert [own.shape[1:] for own in maps] == [(4, 32, 32), (4, 16, 16), (3, 8, 8)]
    with torch.no_grad():
        images = to_float(torch.from_numpy(phantom_store.read(rows)[0]))
        for index, network in enumerate(tiny_teachers(phantom_store).networks):
            array = cache.spec.array_of(cache.anatomies[index])
            stored = maps[cache.spec.arrays.index(array)][:, array.anatomies.index(index)] * cache.step
            assert array.stride == STRIDES[index % 3]
            assert np.abs(network.native(images)[:, 0].numpy() - stored).max() <= cache.step / 2 + 1e-4
    with pytest.raises(mc.MtkdError, match=r"several strides, in logits_2, logits_4, logits_8\. Read them with read_arrays"):
        cache.read(phantom_store.hashes[rows])


def test_it_names_the_format_it_needs(cache, master):
    content = cache.manifest.to_json()
    assert content["format"] == 2 and "grid" not in content["settings"]
    assert content["settings"]["stride"]["liver"] == cache.spec.stride_of("liver")
    assert sorted(path.name for path in (master / "records").iterdir())[:3] == [
        f"00000-000_{stride}.json" for stride in (2, 4, 8)
    ]


def test_other_programs_read_it(cache, master, phantom_store):
    sha256 = sorted(cache.row_of)[0]
    stored = cache.read_arrays([sha256])
    group = zarr.open_group(master, mode="r")
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(master, chunks=None)
    for array, maps in zip(cache.spec.arrays, stored, strict=True):
        names = [cache.anatomies[index] for index in array.anatomies]
        assert group[array.name].attrs["anatomies"] == names and group[array.name].attrs["stride"] == array.stride
        assert np.array_equal(group[array.name][cache.row_of[sha256], 0], maps[0])
        logits = data[array.name].isel(sample=cache.row_of[sha256], view=0)
        assert logits.dims == tuple(f"{name}_{array.stride}" for name in ("anatomy", "y", "x"))
        assert np.array_equal(logits.values, maps[0] * cache.step)


def test_a_second_build_computes_nothing_and_a_retrained_teacher_its_own_maps(build, cache, copy_of, master):
    path = copy_of(master)
    assert build(path)["maps_computed"] == 0
    before = {key: (path / key).read_bytes() for key in Folder(path).keys()}
    array = cache.spec.array_of("liver")
    again = build(path, retrained="liver")
    assert again["maps_computed"] == len(cache.row_of)
    hashes = sorted(cache.row_of)
    old, new = cache.read_arrays(hashes), mc.LogitCache.open(str(path)).read_arrays(hashes)
    place = array.anatomies.index(cache.anatomies.index("liver"))
    for number, own in enumerate(cache.spec.arrays):
        same = [np.array_equal(old[number][:, k], new[number][:, k]) for k in range(len(own.anatomies))]
        assert same == [(own, k) != (array, place) for k in range(len(own.anatomies))]
    changed = {key for key, data in before.items() if (path / key).read_bytes() != data and "/c/" in key}
    assert {key.split("/")[0] for key in changed} == {array.name, "crc32c"}


def test_recorded_views(build, phantom_store, tmp_path):
    build(tmp_path / "c.zarr", overrides=("cache.views=3", "augmentation.affine_p=1.0"))
    cache, rows = mc.LogitCache.open(str(tmp_path / "c.zarr")), phantom_store.rows("train")[:3]
    hashes, pictures = phantom_store.hashes[rows], map(torch.from_numpy, phantom_store.read(rows))
    seen = mc.apply_views(*pictures, cache.draw_views(hashes, 2))[0]
    maps = [dequantize(torch.from_numpy(own), cache.step) for own in cache.read_arrays(hashes, 2)]
    plain = torch.eye(2, 3).repeat(3, 1, 1)
    difference = cache.warp(maps, plain, (64, 64)) - full_size(phantom_store, seen)
    assert difference.abs().max() <= cache.step / 2 + 1e-2
    assert inspect_cache(cache.url)["progress"]["of"] == 3 * 3 * 3


@pytest.mark.parametrize(
    "key", ["logits_4/c/1/0/0/0/0", "records/00002-000_8.json", "logits_2/zarr.json", "plan.json", "manifest.json"]
)
def test_damage_is_found_and_repaired_alone(key, master, copy_of, phantom_store, cache):
    path = copy_of(master)
    data = bytearray((path / key).read_bytes())
    data[len(data) // 2] ^= 4
    (path / key).write_bytes(data)
    teachers = tiny_teachers(phantom_store)
    assert [problem["where"] for problem in mc.verify_cache(str(path))["problems"]] == [key]
    result = mc.verify_cache(str(path), store=phantom_store, teachers=teachers, repair=True, live=3)
    lost = {"logits_4/c/1/0/0/0/0": 4 * BLOCK, "records/00002-000_8.json": 3 * 3}
    assert result["ok"] and result["maps_computed"] == lost.get(key, 0) and result["live"]["maps"] == 33
    assert all((master / name).read_bytes() == (path / name).read_bytes() for name in Folder(path).keys())


def test_a_damaged_map_is_named_with_its_anatomies(master, copy_of):
    path = copy_of(master)
    opened = mc.LogitCache.open(str(path))
    (path / "logits_8" / "c" / "0" / "0" / "0" / "0" / "0").unlink()
    names = ", ".join(opened.anatomies[index] for index in opened.spec.arrays[2].anatomies)
    with pytest.raises(mc.MtkdError, match=rf"view 0, {names} \(.* is damaged or missing"):
        opened.read_arrays(sorted(opened.row_of))


def test_verify_finds_a_retrained_teacher(master, phantom_store):
    found = mc.verify_cache(str(master), store=phantom_store, teachers=tiny_teachers(phantom_store, "liver"), live=2)["problems"]
    assert {problem["kind"] for problem in found} == {"teacher", "live"}
    assert all("liver" in problem["where"] for problem in found)


def test_verify_does_not_compare_with_teachers_of_another_stride(master, phantom_store):
    other = tiny_teachers(phantom_store, strides=(4, 2, 2))  # the third of each three had 8
    result = mc.verify_cache(str(master), store=phantom_store, teachers=other, live=2)
    [problem] = result["problems"]
    assert problem["kind"] == "live" and problem["where"] == ", ".join(phantom_store.anatomies[2::3])
    assert "another stride" in problem["what_to_do"] and result["live"] is None


def test_killed_builds_are_finished(build, master, phantom_store, tmp_path):
    """At the plan, between two arrays of a block, at the last shard file, and at the metadata."""
    script = BUILDER.format(kill_at_flush=KILL_AT_FLUSH, here=str(Path(__file__).parent), block=BLOCK, store=phantom_store.url)
    moments = (2, 9, 18, 24)
    targets = [tmp_path / f"{moment}.zarr" for moment in moments]
    arguments = [word for moment, target in zip(moments, targets, strict=True) for word in (str(moment), str(target))]
    printed = subprocess.check_output([sys.executable, "-c", script, *arguments], text=True, env=os.environ)
    assert printed.split() == [str(signal.SIGKILL.value)] * len(moments)
    found = []
    for target in targets:
        found.append(finished_shards(target))
        assert {problem["kind"] for problem in mc.verify_cache(str(target))["problems"]} <= {"unfinished", "missing"}
        computed = build(target)["maps_computed"]
        assert same_cache(target, master) and mc.verify_cache(str(target))["ok"]
        assert (computed == 121) == (found[-1] == 0) and (computed == 0) == (found[-1] == 9)
    assert found[0] == 0 and 0 < found[1] < 9


def test_teachers_of_other_strides_are_refused(master, phantom_store, recipe, accelerator):
    for strides, told in (((4,), r"stride abdominal_wall 4, .* \(now 4\)"), ((8, 2, 4), r"stride\.abdominal_wall 4 \(now 8\)")):
        teachers = tiny_teachers(phantom_store, strides=strides)
        spec = mc.CacheSpec.of(phantom_store, teachers.stride, recipe())
        with pytest.raises(mc.MtkdError, match=f"was started with other settings: {told}"):
            mc.build_cache(phantom_store, teachers, spec, str(master), accelerator, temperature=4.0)
    found = mc.CacheSpec.of(phantom_store, tiny_teachers(phantom_store).stride, recipe())
    with pytest.raises(mc.MtkdError, match=r"has maps of abdominal_wall, .* at stride 4 and colon.* at stride 2"):
        mc.build_cache(
            phantom_store, tiny_teachers(phantom_store, strides=(4,)), found, str(master), accelerator, temperature=4.0
        )


def test_the_student_sees_each_map_upsampled_from_its_own_stride(cache, phantom_store, recipe):
    rows = phantom_store.rows("train")
    reader = BatchReader(phantom_store, cache)
    batch = reader.read(rows)
    signals = CachedTeachers(cache, recipe("augmentation.affine_p=1.0"), phantom_store.size)
    views = signals.views(phantom_store.hashes[rows], 3)
    images, _, valid = mc.apply_views(batch.images, batch.masks, views)
    logits = signals.logits(batch, images, views)
    maps = cache.read_arrays(phantom_store.hashes[rows])
    for index, anatomy in enumerate(cache.anatomies):
        array = cache.spec.array_of(anatomy)
        own = maps[cache.spec.arrays.index(array)][:, array.anatomies.index(index)] * np.float32(cache.step)
        expected = mc.warp(torch.from_numpy(own)[:, None], views.affine, (64, 64))
        torch.testing.assert_close(logits[:, index : index + 1], expected)
    student = torch.randn_like(logits)
    by_array = [
        mc.channelwise_kl(student[:, list(a.anatomies)], logits[:, list(a.anatomies)], 4.0, valid) for a in cache.spec.arrays
    ]
    weights = [len(array.anatomies) / 11 for array in cache.spec.arrays]
    whole = mc.channelwise_kl(student, logits, 4.0, valid)
    torch.testing.assert_close(whole, sum(weight * part for weight, part in zip(weights, by_array, strict=True)))


def test_memory_holds_what_the_disk_holds(cache, phantom_store):
    rows = phantom_store.rows("train")
    reader = BatchReader(phantom_store, cache)
    held = InMemorySource(reader, rows, torch.device("cpu"))
    chosen = rows[[7, 0, 7]]
    assert all(map(torch.equal, held.read(chosen).logits, reader.read(chosen).logits))
    assert reader.bytes_per_sample() == 4 * 64 * 64 + 2 * (4 * 32 * 32 + 4 * 16 * 16 + 3 * 8 * 8)


@pytest.mark.parametrize(("arch", "layout"), [("mininetv2", "shared"), ("mininetv2", "joint")])
def test_a_student_learns_from_it(arch, layout, cache, phantom_store, recipe, accelerator, tmp_path):
    settings = recipe(f"student.arch={arch}", "student.epochs=1")
    record = train_student(phantom_store, tmp_path / "run", settings, accelerator, cache, layout=layout)
    assert record.kd and record.cache_fingerprint == cache.fingerprint and record.history[0]["kl"] > 0


def test_a_loop_of_ones_own_reads_it(cache, phantom_store):
    dataset = mc.CachedDistillationDataset(phantom_store, cache)
    batch = next(iter(DataLoader(dataset, 3)))
    assert [tuple(own.shape) for own in batch["logits"]] == [(3, 4, 32, 32), (3, 4, 16, 16), (3, 3, 8, 8)]
    whole = cache.warp(batch["logits"], batch["logits_affine"], (64, 64))
    direct = [dequantize(torch.from_numpy(own), cache.step) for own in cache.read_arrays(phantom_store.hashes[dataset.rows[:3]])]
    assert torch.equal(whole, cache.warp(direct, torch.eye(2, 3).repeat(3, 1, 1), (64, 64)))
    example = runpy.run_path(str(EXAMPLE))
    history = example["train"](phantom_store.url, cache.url, epochs=2, workers=0)
    assert len(history) == 2


def test_it_is_shown(cache, phantom_store, tmp_path):
    text = describe(inspect_cache(cache.url))
    assert "4 maps of 32x32, stride 2; 4 maps of 16x16, stride 4; 3 maps of 8x8, stride 8, step 0.25" in text
    order = contact_sheet(cache, phantom_store, tmp_path / "sheet.png", samples=1)
    assert sorted(order) == list(cache.anatomies) and (tmp_path / "sheet.png").stat().st_size > 10_000
