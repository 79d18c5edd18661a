"""Ingest: the same store whatever the way, restarts that keep what is there, damage that is told."""

import shutil

import numpy as np
import pytest
from PIL import Image

from mtkd_cache import ingest as module
from mtkd_cache.errors import MtkdError
from mtkd_cache.ingest import ingest
from mtkd_cache.manifest import MANIFEST
from mtkd_cache.samples import SampleStore, content_hash


def test_the_store_holds_the_pictures(organ_folder, organ_store):
    row = int(organ_store.rows("test", "tongue")[0])
    assert organ_store.describe(row) == "tongue/50/image00"
    images, masks = organ_store.read(np.array([row, 0]))
    folder = organ_folder / "tongue" / "50"
    assert np.array_equal(images[0], np.asarray(Image.open(folder / "image00.png")))
    assert np.array_equal(masks[0], np.asarray(Image.open(folder / "mask00.png")) > 0)
    assert organ_store.hashes[row] == content_hash(images[0], masks[0], "tongue", 50, 0)
    assert [len(organ_store.rows(split)) for split in ("train", "validation", "test")] == [12, 6, 6]


def test_any_way_gives_the_same_fingerprint(organ_folder, organ_store, organ_split, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 64)
    elsewhere = shutil.copytree(organ_folder, tmp_path / "elsewhere")
    said = ingest(elsewhere, str(tmp_path / "s.zarr"), size=(64, 64), split=organ_split, workers=2)
    assert said["fingerprint"] == organ_store.fingerprint
    assert said["by_split"] == {"train": 12, "validation": 6, "test": 6}
    other = ingest(elsewhere, str(tmp_path / "t.zarr"), size=(32, 32), split=organ_split)
    assert other["fingerprint"] != organ_store.fingerprint


def test_a_restart_keeps_finished_shards_and_a_changed_file_is_read_again(phantom_folder, tmp_path, monkeypatch, accelerator):
    root, url = shutil.copytree(phantom_folder, tmp_path / "data"), str(tmp_path / "s.zarr")
    monkeypatch.setattr(module, "SHARD", 8)
    monkeypatch.setattr("mtkd_cache.samples.SHARD", 8)
    whole, written = module._write_shard, []

    def count(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[-1][0])
        return whole(*arguments)

    monkeypatch.setattr(module, "_write_shard", count)
    with pytest.raises(KeyboardInterrupt):
        ingest(root, url, size=(64, 64))
    with pytest.raises(MtkdError, match="is not finished"):
        SampleStore.open(url)
    kept = list(written)
    monkeypatch.setattr(module, "_write_shard", lambda *arguments: (written.append(arguments[-1][0]), whole(*arguments))[1])
    said = ingest(root, url, size=(64, 64))
    assert sorted(written) == sorted(set(written)) and written[: len(kept)] == kept
    assert said["samples"] == len(SampleStore.open(url))
    written.clear()
    assert ingest(root, url, size=(64, 64)) == said and not written
    changed = next((root / "liver" / "01").glob("mask*.png"))
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(changed)
    assert ingest(root, url, size=(64, 64))["fingerprint"] != said["fingerprint"]
    assert len(written) == 1


def test_other_settings_and_strange_folders_are_refused(organ_folder, organ_split, organ_store, tmp_path):
    with pytest.raises(MtkdError, match="other settings"):
        ingest(organ_folder, organ_store.url, size=(32, 32), split=organ_split)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(MtkdError, match="is not empty"):
        ingest(organ_folder, str(tmp_path / "full"), size=(64, 64), split=organ_split)


@pytest.mark.parametrize("array", ["image", "mask"])
def test_damage_is_told_when_read(array, organ_store, copy_of):
    store = copy_of(organ_store.url)
    shard = next(path for path in (store / array / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 16
    shard.write_bytes(data)
    rows = np.arange(len(organ_store))
    with pytest.raises(MtkdError, match="damaged"):
        SampleStore.open(str(store)).read(rows)
    shard.unlink()
    with pytest.raises(MtkdError, match="missing"):
        SampleStore.open(str(store)).read(rows)
    manifest = store / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b"64", b"65", 1))
    with pytest.raises(MtkdError, match="damaged"):
        SampleStore.open(str(store))


@pytest.mark.parametrize(
    "damaged", ["image/c/0/0/0/0", "mask/c/0/0/0", "anatomy/c/0", "image/zarr.json", MANIFEST, "records/00000.json"]
)
@pytest.mark.parametrize("how", ["a flipped bit", "cut short", "gone"])
def test_ingest_again_mends_what_is_damaged(damaged, how, organ_folder, organ_split, tmp_path):
    url = str(tmp_path / "s.zarr")
    said = ingest(organ_folder, url, size=(64, 64), split=organ_split)
    path = tmp_path / "s.zarr" / damaged
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] if how == "cut short" else whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
        )
    assert ingest(organ_folder, url, size=(64, 64), split=organ_split) == said
    assert path.read_bytes() == whole
    store = SampleStore.open(url)
    store.read(np.arange(len(store)))
