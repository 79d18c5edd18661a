"""The logit cache: what is read is what the teachers compute, and a build computes only what is missing."""

import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from support import build

from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.layout import logits_spec
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.cli.main import main
from mtkd_cache.data.augment import apply_views
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import load_network
from mtkd_cache.models.network import upsample
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.storage.checked_json import dump_checked_json, read_checked_json
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked


def to_images(store: SampleStore, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(store.read(rows)[0]).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("arch", "stride"), [("mininetv2", 2), ("segformer-mit_b0", 4), ("deeplabv3-resnet18", 8)])
def test_cached_logits_are_the_live_teachers(arch, stride, organ_store, untrained_teacher, recipe, accelerator, tmp_path):
    for seed, organ in enumerate(organ_store.anatomies):
        untrained_teacher(tmp_path / "teachers", organ, arch, seed)
    built = build(organ_store, tmp_path / "teachers", str(tmp_path / "c.zarr"), recipe(), accelerator)
    cache = LogitCache.open(str(tmp_path / "c.zarr"))
    rows = organ_store.rows("train")
    kept = dequantize(torch.from_numpy(cache.read(organ_store.hashes[rows])), cache.step)
    assert kept.shape == (len(rows), 2, 64 // stride, 64 // stride)
    for index, organ in enumerate(organ_store.anatomies):
        teacher = load_network(tmp_path / "teachers" / organ)
        with torch.inference_mode():
            live = torch.cat([teacher(to_images(organ_store, rows[start : start + 8])) for start in range(0, len(rows), 8)])
        difference = (upsample(kept[:, index : index + 1], (64, 64)) - live).abs().max()
        assert 0 < difference <= cache.step / 2 + 1e-4
        assert built["by_anatomy"][organ]["max_abs_error"] <= cache.step / 2
        assert 0 < built["by_anatomy"][organ]["mean_kl_nats"] < 1e-3
        assert 0 < built["by_anatomy"][organ]["bits_per_logit"] < 16


def test_the_figures_of_each_map(organ_store, organ_teachers, organ_cache, recipe):
    rows, temperature = organ_store.rows("train"), recipe().distillation.temperature
    kept = torch.from_numpy(organ_cache.read(organ_store.hashes[rows])).double() * organ_cache.step
    record = read_checked_json(Folder(organ_cache.url), "records/00000-000.json")
    assert [row["sha256"] for row in record["rows"]] == list(organ_store.hashes[rows])
    for index, organ in enumerate(organ_store.anatomies):
        with torch.inference_mode():
            exact = load_network(organ_teachers / organ).native(to_images(organ_store, rows))[:, 0].double()
        p, q = ((maps.flatten(1) / temperature).softmax(1) for maps in (exact, kept[:, index]))
        errors, kls = (kept[:, index] - exact).abs().amax((1, 2)), (p * (p / q).log()).sum(1)
        np.testing.assert_allclose([row["max_error"][index] for row in record["rows"]], errors, atol=1e-5)
        np.testing.assert_allclose([row["kl"][index] for row in record["rows"]], kls, rtol=1e-2)


def test_a_caches_figures_are_those_of_its_maps(organ_store, organ_teachers, organ_cache, recipe, accelerator, copy_of):
    """With figures that are distinguished more easily than those of real maps."""
    path = copy_of(organ_cache.url)
    record = read_checked_json(Folder(path), "records/00000-000.json")
    for index, row in enumerate(record["rows"]):
        row |= {"max_error": [index / 128, (12 - index) / 256], "kl": [index, 3 * index], "bits": [32 * 32 * index, 0]}
    (path / "records" / "00000-000.json").write_bytes(dump_checked_json(record))
    (path / "manifest.json").unlink()
    built = build(organ_store, organ_teachers, str(path), recipe(), accelerator)
    assert built["by_anatomy"] == {
        "kidney": {"max_abs_error": 11 / 128, "mean_kl_nats": 5.5, "bits_per_logit": 5.5},
        "tongue": {"max_abs_error": 12 / 256, "mean_kl_nats": 16.5, "bits_per_logit": 0},
    }
    assert (built["maps_computed"], built["max_abs_error"], built["mean_kl_nats"]) == (0, 11 / 128, 11)


def test_a_map_that_is_kept_is_checked(organ_store, organ_teachers, organ_cache, untrained_teacher, recipe, accelerator, copy_of):
    """Another map in a shard file whose own checksums fit."""
    teachers, path = copy_of(organ_teachers), copy_of(organ_cache.url)
    untrained_teacher(teachers, "tongue", seed=7)
    spec = logits_spec(1, 2, organ_cache.spec.grid, organ_cache.step)
    shard = path / spec.shard_key(0)
    maps = spec.decode_shard(shard.read_bytes())[:12]
    maps[3, 0, 0] += 1
    shard.write_bytes(spec.encode_shard(maps))
    assert build(organ_store, teachers, str(path), recipe(), accelerator)["maps_computed"] == 12 + 1
    hashes = sorted(organ_cache.row_of)
    assert np.array_equal(LogitCache.open(str(path)).read(hashes)[:, 0], organ_cache.read(hashes)[:, 0])


def test_samples_that_are_gone(organ_folder, organ_split, organ_cache, organ_teachers, recipe, accelerator, copy_of, tmp_path):
    """Neither a build, nor verify, nor a student takes a cache of more samples than the store has."""
    dataset, url = copy_of(organ_folder), str(copy_of(organ_cache.url))
    for kind in ("image", "mask"):
        (dataset / "tongue" / "31" / f"{kind}02.png").unlink()
    ingest(dataset, str(tmp_path / "fewer.zarr"), size=(64, 64), split=organ_split)
    fewer = SampleStore.open(str(tmp_path / "fewer.zarr"))
    with pytest.raises(MtkdError, match="holds 1 samples that are no longer selected"):
        build(fewer, organ_teachers, url, recipe(), accelerator)
    problems = verify_cache(url, store=fewer)["problems"]
    assert [(problem["kind"], problem["where"]) for problem in problems] == [("other store", fewer.url)]
    assert "1 cached samples are changed there, or gone" in problems[0]["what_to_do"]
    with pytest.raises(MtkdError, match="holds 1 samples that"):
        organ_cache.check_belongs(fewer, fewer.rows("train"))


def test_a_split_named_twice_is_stored_once(organ_store, organ_teachers, organ_cache, recipe, accelerator, copy_of):
    url, splits = str(copy_of(organ_cache.url)), ("train", "test", "test")
    build(organ_store, organ_teachers, url, recipe(), accelerator, splits)
    assert len(LogitCache.open(url).crc32c) == 18
    assert verify_cache(url, store=organ_store, splits=splits)["ok"]


def test_a_second_build_computes_nothing(organ_store, organ_teachers, organ_cache, recipe, accelerator):
    again = build(organ_store, organ_teachers, organ_cache.url, recipe(), accelerator)
    assert again["maps_computed"] == 0
    assert again["fingerprint"] == organ_cache.fingerprint


def test_one_teacher_trained_again_costs_its_maps_alone(
    organ_store, organ_teachers, organ_cache, untrained_teacher, recipe, accelerator, copy_of
):
    teachers, url = copy_of(organ_teachers), str(copy_of(organ_cache.url))
    untrained_teacher(teachers, "tongue", seed=7)
    built = build(organ_store, teachers, url, recipe(), accelerator)
    hashes = organ_store.hashes[organ_store.rows("train")]
    before, after = organ_cache.read(hashes), LogitCache.open(url).read(hashes)
    assert built["maps_computed"] == len(hashes)
    assert built["fingerprint"] != organ_cache.fingerprint
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


def test_recorded_views_are_the_teachers_logits_of_the_warped_image(organ_store, organ_teachers, recipe, accelerator, tmp_path):
    build(
        organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe("cache.views=2", "augmentation.affine_p=1.0"), accelerator
    )
    cache = LogitCache.open(str(tmp_path / "c.zarr"))
    rows = organ_store.rows("train")[:4]
    hashes = organ_store.hashes[rows]
    images, masks = (torch.from_numpy(values) for values in organ_store.read(rows))
    seen = apply_views(images, masks, cache.draw_views(hashes, 1))[0]
    with torch.inference_mode():
        live = load_network(organ_teachers / "kidney").native(seen)[:, 0]
    kept = dequantize(torch.from_numpy(cache.read(hashes, 1)[:, 0]), cache.step)
    assert (kept - live).abs().max() <= cache.step / 2 + 1e-3
    assert not np.array_equal(cache.read(hashes, 0), cache.read(hashes, 1))


@pytest.fixture
def bf16(accelerator):
    """An accelerator in bfloat16; accelerate keeps one precision a process, which is given back."""
    AcceleratorState._reset_state(True)
    yield make_accelerator("cpu", "bf16")
    AcceleratorState._reset_state(True)
    make_accelerator("cpu")


def test_the_bound_is_against_the_logits_of_a_bfloat16_teacher(organ_store, organ_teachers, recipe, bf16, tmp_path):
    url = str(tmp_path / "c.zarr")
    built = build(organ_store, organ_teachers, url, recipe(), bf16)
    assert built["max_abs_error"] <= 0.125
    assert verify_cache(url, store=organ_store, teachers=organ_teachers, live=4)["ok"]
    rows = organ_store.rows("train")
    cache = LogitCache.open(url)
    assert cache.spec.precision == "bf16"
    kept = dequantize(torch.from_numpy(cache.read(organ_store.hashes[rows])), cache.step)
    for index, organ in enumerate(organ_store.anatomies):
        native = load_network(organ_teachers / organ).native
        with torch.inference_mode():
            with bf16.autocast():
                own = torch.cat([native(to_images(organ_store, part))[:, 0] for part in (rows[:8], rows[8:])])
            exact = native(to_images(organ_store, rows))[:, 0]
        assert own.dtype == torch.bfloat16
        assert (kept[:, index] - own.float()).abs().max() <= cache.step / 2
        assert (kept[:, index] - exact).abs().max() > cache.step / 2


def test_a_logit_that_is_stored_wrongly_stops_the_build(organ_store, organ_teachers, recipe, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr("mtkd_cache.cache.shards.quantize", lambda logits, step: quantize(logits, step) + 1)
    with pytest.raises(MtkdError, match=r"teacher of kidney: a logit is stored 0\.\d+ off, more than half of the step 0\.25"):
        build(organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe(), accelerator)
    with pytest.raises(MtkdError, match="is not finished"):
        LogitCache.open(str(tmp_path / "c.zarr"))


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("build", "--step", "0"), 1, "must be a power of two"),
        (("build", "--views", "0"), 1, "cache.views = 0 is out of range"),
        (("verify", "--seed", "-1"), 2, "-1 is not in the range"),
    ],
)
def test_impossible_numbers_are_refused(organ_store, organ_teachers, tmp_path, arguments, status, says):
    at = ("--store", organ_store.url, "--teachers", str(organ_teachers), "--cache", str(tmp_path / "c.zarr"))
    result = CliRunner().invoke(main, [*arguments, *at])
    assert result.exit_code == status and says in result.stderr
    assert not (tmp_path / "c.zarr").exists()


def test_other_settings_are_refused_and_named(organ_store, organ_teachers, organ_cache, recipe, accelerator):
    with pytest.raises(MtkdError, match=r"step 0.25 \(now 0.5\)"):
        build(organ_store, organ_teachers, organ_cache.url, recipe("cache.step=0.5"), accelerator)


def test_the_second_builder_is_refused(organ_store, organ_teachers, recipe, accelerator, tmp_path):
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
    with pytest.raises(MtkdError, match="image size"):
        organ_cache.check_belongs(small, small.rows("train"))


def test_teachers_need_no_folder(organ_store, organ_teachers, organ_cache, recipe, accelerator, tmp_path):
    """Networks and what is recorded of them are enough to build, to verify and to repair."""
    loaded = Teachers.load(organ_teachers, organ_store)
    teachers = Teachers(loaded.networks, {anatomy: {"arch": "own", "weights_sha256": anatomy} for anatomy in loaded.info})
    spec, url = CacheSpec.of(organ_store, teachers.stride, recipe()), str(tmp_path / "c.zarr")
    build_cache(organ_store, teachers, spec, url, accelerator, temperature=4.0)
    cache, hashes = LogitCache.open(url), sorted(organ_cache.row_of)
    assert (cache.spec, cache.manifest.teachers) == (organ_cache.spec, teachers.info)
    assert np.array_equal(cache.read(hashes), organ_cache.read(hashes))
    assert verify_cache(url, store=organ_store, teachers=teachers, live=3)["ok"]
    retrained = Teachers(teachers.networks, teachers.info | {"tongue": {"arch": "own", "weights_sha256": "new"}})
    problems = verify_cache(url, store=organ_store, teachers=retrained)["problems"]
    assert [(problem["kind"], problem["where"]) for problem in problems] == [("teacher", "tongue")]
    result = verify_cache(url, store=organ_store, teachers=retrained, repair=True)
    assert result["ok"] and result["maps_computed"] == len(hashes)


@pytest.mark.parametrize("other", ["stride", "anatomies"])
def test_teachers_that_do_not_fit_the_settings_are_refused(other, organ_store, organ_teachers, recipe, accelerator, tmp_path):
    teachers = Teachers.load(organ_teachers, organ_store)
    spec = CacheSpec.of(organ_store, 2 * teachers.stride if other == "stride" else teachers.stride, recipe())
    if other == "anatomies":
        teachers = Teachers(teachers.networks[:1], {"kidney": teachers.info["kidney"]})
    with pytest.raises(MtkdError, match="these teachers have maps of"):
        build_cache(organ_store, teachers, spec, str(tmp_path / "c.zarr"), accelerator, temperature=4.0)
    assert not (tmp_path / "c.zarr" / "plan.json").exists()


def test_a_sample_store_is_no_cache(organ_store):
    with pytest.raises(MtkdError, match="is of a sample store of format 1; a logit cache of format 2 is needed"):
        LogitCache.open(organ_store.url)


def test_settings_of_a_later_version_are_kept(organ_store, organ_teachers, organ_cache, recipe, accelerator, copy_of):
    """Keys that this version does not know are not lost when it writes the plan again."""
    path = copy_of(organ_cache.url)
    plan = read_checked_json(Folder(path), "plan.json") | {"licence": "CC BY"}
    (path / "plan.json").write_bytes(dump_checked_json(plan))
    build(organ_store, organ_teachers, str(path), recipe(), accelerator, ("train", "test"))
    assert read_checked_json(Folder(path), "plan.json")["licence"] == "CC BY"
