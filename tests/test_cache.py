"""The logit cache: what is read is what the teachers say, and a build computes only what is not there."""

import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from mtkd_cache.build import build
from mtkd_cache.cache import LogitCache
from mtkd_cache.checkpoints import load_network
from mtkd_cache.errors import MtkdError
from mtkd_cache.ingest import ingest
from mtkd_cache.lock import locked
from mtkd_cache.models import upsample
from mtkd_cache.quantise import dequantise, quantise
from mtkd_cache.runs import make_accelerator
from mtkd_cache.samples import SampleStore
from mtkd_cache.storage import Folder
from mtkd_cache.verify import verify
from mtkd_cache.views import see


def pictures(store: SampleStore, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(store.read(rows)[0]).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("arch", "stride"), [("mininetv2", 2), ("segformer-mit_b0", 4), ("deeplabv3-resnet18", 8)])
def test_cached_logits_are_the_live_teachers(arch, stride, organ_store, untrained_teacher, recipe, accelerator, tmp_path):
    for seed, organ in enumerate(organ_store.anatomies):
        untrained_teacher(tmp_path / "teachers", organ, arch, seed)
    said = build(organ_store, tmp_path / "teachers", str(tmp_path / "c.zarr"), recipe(), accelerator)
    cache = LogitCache.open(str(tmp_path / "c.zarr"))
    rows = organ_store.rows("train")
    kept = dequantise(torch.from_numpy(cache.read(organ_store.hashes[rows])), cache.step)
    assert kept.shape == (len(rows), 2, 64 // stride, 64 // stride)
    for index, organ in enumerate(organ_store.anatomies):
        teacher = load_network(tmp_path / "teachers" / organ)
        with torch.inference_mode():
            live = torch.cat([teacher(pictures(organ_store, rows[start : start + 8])) for start in range(0, len(rows), 8)])
        difference = (upsample(kept[:, index : index + 1], (64, 64)) - live).abs().max()
        assert 0 < difference <= cache.step / 2 + 1e-4
        assert said["by_anatomy"][organ]["max_abs_error"] <= cache.step / 2
        assert 0 < said["by_anatomy"][organ]["mean_kl_nats"] < 1e-3
        assert 0 < said["by_anatomy"][organ]["bits_per_logit"] < 16


def test_a_second_build_computes_nothing(organ_store, organ_teachers, organ_cache, recipe, accelerator):
    again = build(organ_store, organ_teachers, organ_cache.url, recipe(), accelerator)
    assert again["maps_computed"] == 0
    assert again["fingerprint"] == organ_cache.fingerprint


def test_one_teacher_trained_again_costs_its_maps_alone(
    organ_store, organ_teachers, organ_cache, untrained_teacher, recipe, accelerator, copy_of
):
    teachers, url = copy_of(organ_teachers), str(copy_of(organ_cache.url))
    untrained_teacher(teachers, "tongue", seed=7)
    said = build(organ_store, teachers, url, recipe(), accelerator)
    hashes = organ_store.hashes[organ_store.rows("train")]
    before, after = organ_cache.read(hashes), LogitCache.open(url).read(hashes)
    assert said["maps_computed"] == len(hashes)
    assert said["fingerprint"] != organ_cache.fingerprint
    assert np.array_equal(before[:, 0], after[:, 0])
    assert not np.array_equal(before[:, 1], after[:, 1])


def test_a_dataset_that_grew_costs_its_new_samples_alone(
    write_organs, organ_split, organ_teachers, recipe, accelerator, tmp_path
):
    def ingested(surgeries: tuple[int, ...], name: str) -> SampleStore:
        write_organs(tmp_path / name, surgeries=surgeries)
        ingest(tmp_path / name, str(tmp_path / f"{name}.zarr"), size=(64, 64), split=organ_split)
        return SampleStore.open(str(tmp_path / f"{name}.zarr"))

    small, url = ingested((30, 40, 50), "small"), str(tmp_path / "c.zarr")
    shutil.copytree(tmp_path / "small", tmp_path / "large")
    for organ in small.anatomies:
        shutil.copytree(tmp_path / "large" / organ / "30", tmp_path / "large" / organ / "29")
    ingest(tmp_path / "large", str(tmp_path / "large.zarr"), size=(64, 64), split=organ_split)
    large = SampleStore.open(str(tmp_path / "large.zarr"))
    first = build(small, organ_teachers, url, recipe(), accelerator)
    grown = build(large, organ_teachers, url, recipe(), accelerator)
    assert grown["maps_computed"] == first["maps_computed"] == 2 * len(small.rows("train"))
    fresh = build(large, organ_teachers, str(tmp_path / "fresh.zarr"), recipe(), accelerator)
    assert grown["fingerprint"] == fresh["fingerprint"]
    hashes = large.hashes[large.rows("train")]
    assert np.array_equal(LogitCache.open(url).read(hashes), LogitCache.open(str(tmp_path / "fresh.zarr")).read(hashes))


def test_recorded_views_are_what_teachers_say_of_the_warped_picture(organ_store, organ_teachers, recipe, accelerator, tmp_path):
    build(
        organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe("cache.views=2", "augmentation.affine_p=1.0"), accelerator
    )
    cache = LogitCache.open(str(tmp_path / "c.zarr"))
    rows = organ_store.rows("train")[:4]
    hashes = organ_store.hashes[rows]
    images, masks = (torch.from_numpy(values) for values in organ_store.read(rows))
    seen = see(images, masks, cache.draw_views(hashes, 1))[0]
    with torch.inference_mode():
        live = load_network(organ_teachers / "kidney").native(seen)[:, 0]
    kept = dequantise(torch.from_numpy(cache.read(hashes, 1)[:, 0]), cache.step)
    assert (kept - live).abs().max() <= cache.step / 2 + 1e-3
    assert not np.array_equal(cache.read(hashes, 0), cache.read(hashes, 1))


@pytest.fixture
def bf16(accelerator):
    """An accelerator in bfloat16; accelerate keeps one precision a process, which is given back."""
    AcceleratorState._reset_state(True)
    yield make_accelerator("cpu", "bf16")
    AcceleratorState._reset_state(True)
    make_accelerator("cpu")


def test_the_bound_is_against_what_a_bfloat16_teacher_says(organ_store, organ_teachers, recipe, bf16, tmp_path):
    url = str(tmp_path / "c.zarr")
    said = build(organ_store, organ_teachers, url, recipe(), bf16)
    assert said["max_abs_error"] <= 0.125
    assert verify(url, store=organ_store, teachers=organ_teachers, live=4)["ok"]
    rows = organ_store.rows("train")
    cache = LogitCache.open(url)
    assert cache.settings["precision"] == "bf16"
    kept = dequantise(torch.from_numpy(cache.read(organ_store.hashes[rows])), cache.step)
    for index, organ in enumerate(organ_store.anatomies):
        native = load_network(organ_teachers / organ).native
        with torch.inference_mode():
            with bf16.autocast():
                own = torch.cat([native(pictures(organ_store, part))[:, 0] for part in (rows[:8], rows[8:])])
            exact = native(pictures(organ_store, rows))[:, 0]
        assert own.dtype == torch.bfloat16
        assert (kept[:, index] - own.float()).abs().max() <= cache.step / 2
        assert (kept[:, index] - exact).abs().max() > cache.step / 2


def test_a_logit_that_is_stored_wrongly_stops_the_build(organ_store, organ_teachers, recipe, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr("mtkd_cache.units.quantise", lambda logits, step: quantise(logits, step) + 1)
    with pytest.raises(MtkdError, match=r"teacher of kidney: a logit is stored 0\.\d+ off, more than half of the step 0\.25"):
        build(organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe(), accelerator)
    with pytest.raises(MtkdError, match="is not finished"):
        LogitCache.open(str(tmp_path / "c.zarr"))


def test_other_settings_are_refused_and_named(organ_store, organ_teachers, organ_cache, recipe, accelerator):
    with pytest.raises(MtkdError, match=r"step 0.25 \(now 0.5\)"):
        build(organ_store, organ_teachers, organ_cache.url, recipe("cache.step=0.5"), accelerator)


def test_the_second_builder_is_told(organ_store, organ_teachers, recipe, accelerator, tmp_path):
    with locked(Folder(tmp_path / "c.zarr")):
        with pytest.raises(MtkdError, match="is being written by another process"):
            build(organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe(), accelerator)


def test_a_cache_of_other_samples_is_refused(organ_cache, phantom_store, write_organs, organ_split, tmp_path):
    with pytest.raises(MtkdError, match="anatomies"):
        organ_cache.check_belongs(phantom_store, phantom_store.rows("train"))
    write_organs(tmp_path / "other", images=1)
    ingest(tmp_path / "other", str(tmp_path / "other.zarr"), size=(64, 64), split=organ_split)
    other = SampleStore.open(str(tmp_path / "other.zarr"))
    with pytest.raises(MtkdError, match=r"samples of .* first kidney/31/image00"):
        organ_cache.check_belongs(other, other.rows("train"))
    ingest(tmp_path / "other", str(tmp_path / "small.zarr"), size=(32, 32), split=organ_split)
    small = SampleStore.open(str(tmp_path / "small.zarr"))
    with pytest.raises(MtkdError, match="picture size"):
        organ_cache.check_belongs(small, small.rows("train"))


def test_teachers_of_two_strides_are_refused(organ_store, untrained_teacher, recipe, accelerator, tmp_path):
    untrained_teacher(tmp_path / "teachers", "kidney")
    untrained_teacher(tmp_path / "teachers", "tongue", "segformer-mit_b0")
    with pytest.raises(MtkdError, match="stride 4"):
        build(organ_store, tmp_path / "teachers", str(tmp_path / "c.zarr"), recipe(), accelerator)
