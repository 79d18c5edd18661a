"""Ingest: the same store whatever the way, restarts that keep what is finished, damage that is reported."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cli.main import main
from mtkd_cache.data import store_writer as module
from mtkd_cache.data.dresden import Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import COORDINATES, SampleStore, content_hash
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, dump_checked_json, read_checked_json
from mtkd_cache.storage.folder import Folder

OTHER_SPLIT = Split(validation=(50,), test=(40,), surgeries=None)

# Ingests with OTHER_SPLIT into each of the given stores, and is killed when 0, 1, 2 ... files of it are written.
KILLED = """
import os, signal, sys
from pathlib import Path
from mtkd_cache.data.dresden import Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.storage.folder import Folder

write_file = Folder.write

def write(folder, key, data):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write_file(folder, key, data)

Folder.write = write
for left, store in enumerate(sys.argv[2:]):
    if not os.fork():
        ingest(Path(sys.argv[1]), store, size=(64, 64), split=Split((50,), (40,), None), resplit=True)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
"""


@pytest.fixture
def shards_of_8(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 8)
    monkeypatch.setattr("mtkd_cache.data.sample_store.SHARD", 8)


def small_files(store: Path | str) -> list[str]:
    """What a store's manifest lists beside the shards."""
    files = read_checked_json(Folder(store), MANIFEST)["files"]
    return [key for key in files if not key.startswith(("image/c/", "mask/c/"))]


def test_the_store_holds_the_images(organ_folder, organ_store):
    row = int(organ_store.rows("test", "tongue")[0])
    assert organ_store.describe(row) == "tongue/50/image00"
    assert organ_store.patients[row] == "50" and organ_store.patients.dtype.kind == "U"
    images, masks = organ_store.read(np.array([row, 0]))
    folder = organ_folder / "tongue" / "50"
    assert np.array_equal(images[0], np.asarray(Image.open(folder / "image00.png")))
    assert np.array_equal(masks[0], np.asarray(Image.open(folder / "mask00.png")) > 0)
    assert organ_store.hashes[row] == content_hash(images[0], masks[0], "tongue", 50, 0)
    assert [len(organ_store.rows(split)) for split in ("train", "validation", "test")] == [12, 6, 6]


def test_any_way_gives_the_same_fingerprint(organ_folder, organ_store, organ_split, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 64)
    elsewhere = shutil.copytree(organ_folder, tmp_path / "elsewhere")
    result = ingest(elsewhere, str(tmp_path / "s.zarr"), size=(64, 64), split=organ_split, workers=2)
    assert result["fingerprint"] == organ_store.fingerprint
    assert result["by_split"] == {"train": 12, "validation": 6, "test": 6}
    other = ingest(elsewhere, str(tmp_path / "t.zarr"), size=(32, 32), split=organ_split)
    assert other["fingerprint"] != organ_store.fingerprint


def test_a_restart_keeps_finished_shards_and_a_changed_file_is_read_again(phantom_folder, tmp_path, monkeypatch, shards_of_8):
    root, url = shutil.copytree(phantom_folder, tmp_path / "data"), str(tmp_path / "s.zarr")
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
    result = ingest(root, url, size=(64, 64))
    assert sorted(written) == sorted(set(written)) and written[: len(kept)] == kept
    assert result["samples"] == len(SampleStore.open(url))
    written.clear()
    assert ingest(root, url, size=(64, 64)) == result and not written
    changed = next((root / "liver" / "01").glob("mask*.png"))
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(changed)
    assert ingest(root, url, size=(64, 64))["fingerprint"] != result["fingerprint"]
    assert len(written) == 1


def test_other_settings_and_strange_folders_are_refused(organ_folder, organ_split, organ_store, organ_cache, tmp_path):
    with pytest.raises(MtkdError, match="other settings"):
        ingest(organ_folder, organ_store.url, size=(32, 32), split=organ_split)
    with pytest.raises(MtkdError, match="is not empty and is not a sample store"):
        ingest(organ_folder, organ_cache.url, size=(64, 64), split=organ_split)
    (tmp_path / "full").mkdir()
    for name in ("a.txt", "b.tmp"):
        (tmp_path / "full" / name).write_text("mine")
    with pytest.raises(MtkdError, match="is not empty"):
        ingest(organ_folder, str(tmp_path / "full"), size=(64, 64), split=organ_split)
    assert {path.name for path in (tmp_path / "full").iterdir()} >= {"a.txt", "b.tmp"}


def test_a_store_keeps_its_split_unless_told(organ_folder, organ_store, copy_of):
    store = copy_of(organ_store.url)
    told = "move 6 samples from validation to test (patients 40); 6 samples from test to validation (patients 50); its networks"
    with pytest.raises(MtkdError, match=re.escape(told)):
        ingest(organ_folder, str(store), size=(64, 64), split=OTHER_SPLIT)
    assert SampleStore.open(str(store)).fingerprint == organ_store.fingerprint
    ingest(organ_folder, str(store), size=(64, 64), split=OTHER_SPLIT, resplit=True)
    assert SampleStore.open(str(store)).fingerprint != organ_store.fingerprint


def test_a_store_that_gets_another_split_is_unfinished_until_it_has_it(organ_folder, organ_store, copy_of, tmp_path):
    other = tmp_path / "other.zarr"
    ingest(organ_folder, str(other), size=(64, 64), split=OTHER_SPLIT)
    keys = small_files(organ_store.url)
    writes = sum(Path(organ_store.url, key).read_bytes() != (other / key).read_bytes() for key in keys) + 1
    assert writes == 3  # the column, the group's metadata and the manifest
    stores = [copy_of(organ_store.url) for _ in range(writes)]
    subprocess.run([sys.executable, "-c", KILLED, organ_folder, *stores], check=True)
    assert not (stores[0] / "zarr.json").exists()
    for store in stores:
        with pytest.raises(MtkdError, match="is not finished"):
            SampleStore.open(str(store))
        result = ingest(organ_folder, str(store), size=(64, 64), split=OTHER_SPLIT)
        opened = SampleStore.open(str(store))
        assert all((store / key).read_bytes() == (other / key).read_bytes() for key in (*keys, MANIFEST))
        assert opened.fingerprint == result["fingerprint"] != organ_store.fingerprint
        assert opened.describe(opened.rows("test", "kidney")[0]) == "kidney/40/image00"


def test_a_store_whose_shards_are_written_again_is_unfinished(organ_folder, organ_store, organ_split, copy_of, monkeypatch):
    root, store = copy_of(organ_folder), copy_of(organ_store.url)
    monkeypatch.setattr(module, "_write_shard", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest(root, str(store), size=(64, 64), split=organ_split)
    with pytest.raises(MtkdError, match="is not finished"):
        SampleStore.open(str(store))
    assert not (store / "zarr.json").exists()


def test_a_store_is_unfinished_before_shards_that_the_dataset_lost_are_deleted(
    organ_folder, organ_store, organ_split, copy_of, monkeypatch
):
    store, finished, delete = copy_of(organ_store.url), {}, Folder.delete

    def watch(folder: Folder, key: str) -> None:
        finished[key] = (store / MANIFEST).exists()
        delete(folder, key)

    monkeypatch.setattr(Folder, "delete", watch)
    monkeypatch.setattr(module, "_outdated", lambda *arguments: ["image/c/1/0/0/0"])
    ingest(organ_folder, str(store), size=(64, 64), split=organ_split)
    assert finished["image/c/1/0/0/0"] is False


@pytest.mark.parametrize("differs", ["time", "path", "size"])
def test_an_image_is_read_again_where_its_time_path_or_size_differs(differs, organ_folder, organ_split, copy_of, tmp_path):
    root, url = copy_of(organ_folder), str(tmp_path / "s.zarr")
    mask = root / "kidney/30/mask00.png"
    values = np.zeros((64, 64), np.uint8)
    Image.fromarray(values).save(mask, compress_level=0)
    ingest(root, url, size=(64, 64), split=organ_split)
    before = mask.stat()
    if differs == "path":
        mask = copy_of(root) / "kidney/30/mask00.png"
    values[3, 5] = 255
    Image.fromarray(values).save(mask, compress_level=9 * (differs == "size"))
    later = 10**9 * (differs == "time")
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + later))
    assert (mask.stat().st_size == before.st_size) == (differs != "size")
    ingest(mask.parents[2], url, size=(64, 64), split=organ_split)
    assert SampleStore.open(url).read([0])[1][0].sum() == 1


def test_shards_of_a_larger_dataset_go_and_files_of_others_stay(organ_folder, organ_split, copy_of, tmp_path, shards_of_8):
    root, store = copy_of(organ_folder), tmp_path / "s.zarr"
    ingest(root, str(store), size=(64, 64), split=organ_split)
    own = {"settings.json", MANIFEST, "records/00000.json", "records/00001.json"}
    assert (store / "records/00002.json").exists() and (store / "mask/c/2/0/0").exists()
    foreign = {
        "a.txt",
        "image/2.txt",
        "records/2.json",
        "records/00002.json.bak",
        "image/c/2/0/0/1",
        "mask/c/02/0/0",
        "anatomy/c/1",
    }
    for key in foreign:
        (store / key).parent.mkdir(parents=True, exist_ok=True)
        (store / key).write_text("mine")
    for path in root.glob("*/*/*02.png"):
        path.unlink()
    assert ingest(root, str(store), size=(64, 64), split=organ_split)["samples"] == 16
    listed = read_checked_json(Folder(store), MANIFEST)["files"]
    assert set(Folder(store).keys()) == own | foreign | set(listed)
    assert len(SampleStore.open(str(store))) == 16


@pytest.mark.parametrize("differs", ["names", "pictures"])
@pytest.mark.parametrize("resplit", [False, True])
def test_the_samples_of_another_dataset_are_refused(differs, resplit, write_organs, organ_store, organ_split, copy_of, tmp_path):
    store = copy_of(organ_store.url)
    kept = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file() and path.name != ".lock"}
    other = write_organs(tmp_path / "other", surgeries=(50, 40, 31, 30))  # other pictures under the same names
    if differs == "names":
        for organ in ("kidney", "tongue"):
            (other / organ).rename(other / f"{organ}s")
    told = rf"{store} holds other samples \(24 of the dataset organs, first kidney/30/image00\)\. Name another --store, or delete"
    with pytest.raises(MtkdError, match=told):
        ingest(other, str(store), size=(64, 64), split=organ_split, resplit=resplit)
    assert kept == {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file() and path.name != ".lock"}


def test_samples_that_the_dataset_lost_are_counted(organ_folder, organ_store, copy_of):
    root, store = copy_of(organ_folder), copy_of(organ_store.url)
    for path in root.glob("tongue/3?/*02.png"):
        path.unlink()
    image = root / "kidney/30/image00.png"
    image.write_bytes((root / "kidney/30/image01.png").read_bytes())  # a changed one stays, and is not what tells other samples
    command = ["ingest", str(root), "--store", str(store), "--size", "64x64", "--validation", "40", "--test", "50"]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, "removed: 2 samples that the dataset no longer has" in done.stderr) == (0, True)
    assert len(SampleStore.open(str(store))) == 22
    assert "removed" not in CliRunner().invoke(main, command).stderr


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "..", "", "a\\b", "liver\0", "liver\n", " liver"])
def test_names_that_lead_out_of_a_folder_are_refused(name, organ_store, organ_cache, copy_of):
    for kind, url in ((SampleStore, organ_store.url), (LogitCache, organ_cache.url)):
        folder = Folder(copy_of(url))
        manifest = read_checked_json(folder, MANIFEST)
        manifest.get("settings", manifest)["anatomies"][1] = name
        folder.write(MANIFEST, dump_checked_json(manifest))
        with pytest.raises(MtkdError, match="an anatomy cannot be named"):
            kind.open(str(folder))


def test_every_small_file_is_compared_with_the_manifest(organ_store, copy_of):
    store = copy_of(organ_store.url)
    keys = small_files(store)
    assert {"zarr.json", "image/zarr.json", "sha256/c/0/0", *(f"{name}/c/0" for name in COORDINATES)} <= set(keys)
    for key in keys:
        whole = (store / key).read_bytes()
        for damaged in (None, b"", whole[:-1], whole[:9] + bytes([whole[9] ^ 1]) + whole[10:]):
            (store / key).unlink()
            if damaged is not None:
                (store / key).write_bytes(damaged)
            with pytest.raises(MtkdError, match=rf"{key} is damaged or missing\. Run mtkd-cache ingest again\."):
                SampleStore.open(str(store))
            (store / key).write_bytes(whole)
    assert SampleStore.open(str(store)).fingerprint == organ_store.fingerprint


@pytest.mark.parametrize("what", ["swapped columns", "another store's split", "no hashes", "a folder in a column's place"])
def test_columns_of_others_are_refused(what, organ_folder, organ_store, copy_of, tmp_path):
    store = copy_of(organ_store.url)
    if what == "swapped columns":
        (store / "frame").rename(tmp_path / "frame")
        (store / "surgery").rename(store / "frame")
        (tmp_path / "frame").rename(store / "surgery")
    elif what == "another store's split":
        ingest(organ_folder, str(tmp_path / "other.zarr"), size=(64, 64), split=OTHER_SPLIT)
        shutil.copy(tmp_path / "other.zarr/split/c/0", store / "split/c/0")
    elif what == "no hashes":
        shutil.rmtree(store / "sha256")
    else:
        (store / "crc32c/c/0").unlink()
        (store / "crc32c/c/0").mkdir()
    with pytest.raises(MtkdError, match="is damaged or missing"):
        SampleStore.open(str(store))


@pytest.mark.parametrize(
    ("key", "source"), [("settings.json", MANIFEST), ("records/00000.json", MANIFEST), (MANIFEST, "settings.json")]
)
def test_a_checked_file_in_anothers_place_is_written_again(key, source, organ_folder, organ_store, organ_split, copy_of):
    """Each is whole, but holds other content."""
    store = copy_of(organ_store.url)
    shutil.copy(store / source, store / key)
    result = ingest(organ_folder, str(store), size=(64, 64), split=organ_split)
    assert result["fingerprint"] == organ_store.fingerprint
    assert (store / key).read_bytes() == Path(organ_store.url, key).read_bytes()


@pytest.mark.parametrize("key", ["settings.json", "records/00000.json", MANIFEST, "zarr.json", "split/c/0", "mask/c/0/0/0"])
def test_a_folder_in_a_files_place_is_reported(key, organ_folder, organ_store, organ_split, copy_of):
    store = copy_of(organ_store.url)
    (store / key).unlink()
    (store / key / "inside").mkdir(parents=True)
    with pytest.raises(MtkdError, match=rf"{key}.* (is a folder|cannot be written)"):
        ingest(organ_folder, str(store), size=(64, 64), split=organ_split)
    if key not in ("settings.json", "records/00000.json"):
        with pytest.raises(MtkdError):
            SampleStore.open(str(store)).read(np.arange(len(organ_store)))


@pytest.mark.parametrize("array", ["image", "mask"])
def test_swapped_shards_are_reported_when_read(array, organ_folder, organ_split, tmp_path, shards_of_8):
    """Each chunk is whole, but not that of its sample."""
    ingest(organ_folder, str(tmp_path / "s.zarr"), size=(64, 64), split=organ_split)
    folder = tmp_path / "s.zarr" / array / "c"
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        (folder / old).rename(folder / new)
    store = SampleStore.open(str(tmp_path / "s.zarr"))
    store.read([16])
    with pytest.raises(MtkdError, match=r"kidney/30/image00 is damaged or missing\. Run mtkd-cache ingest again"):
        store.read([0])


@pytest.mark.parametrize("array", ["image", "mask"])
def test_damage_is_reported_when_read(array, organ_store, copy_of):
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
    "damaged",
    [
        "image/c/0/0/0/0",
        "mask/c/0/0/0",
        "anatomy/c/0",
        "image/zarr.json",
        "zarr.json",
        "settings.json",
        MANIFEST,
        "records/00000.json",
    ],
)
@pytest.mark.parametrize("how", ["a flipped bit", "cut short", "gone"])
def test_ingest_again_repairs_what_is_damaged(damaged, how, organ_folder, organ_split, tmp_path):
    url = str(tmp_path / "s.zarr")
    result = ingest(organ_folder, url, size=(64, 64), split=organ_split)
    path = tmp_path / "s.zarr" / damaged
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] if how == "cut short" else whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
        )
    assert ingest(organ_folder, url, size=(64, 64), split=organ_split) == result
    assert path.read_bytes() == whole
    store = SampleStore.open(url)
    store.read(np.arange(len(store)))
