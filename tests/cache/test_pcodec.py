"""A cache compressed by pcodec: the same integers, read by this package and by Zarr, damaged and repaired as any."""

import sys

import numpy as np
import pytest
import xarray
import zarr
from support import build

from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage import pcodec
from mtkd_cache.storage.checked_json import MANIFEST, read_checked_json
from mtkd_cache.storage.folder import Folder

SETTINGS = ("cache.codec=pcodec", "cache.views=2")


@pytest.fixture(scope="module")
def url(store, organ_teachers, recipe, accelerator, tmp_path_factory) -> str:
    url = str(tmp_path_factory.mktemp("pcodec") / "logits.zarr")
    build(store, organ_teachers, url, recipe(*SETTINGS), accelerator)
    return url


def test_it_holds_the_integers_of_a_cache_compressed_by_blosc(url, store, organ_teachers, recipe, accelerator, tmp_path):
    build(store, organ_teachers, str(tmp_path / "c.zarr"), recipe("cache.views=2"), accelerator)
    ours, other = LogitCache.open(url), LogitCache.open(str(tmp_path / "c.zarr"))
    hashes = sorted(ours.row_of)
    for view in (0, 1):
        assert np.array_equal(ours.read(hashes, view), other.read(hashes, view))
    assert ours.manifest.format == 2
    assert read_checked_json(Folder(url), MANIFEST)["settings"]["codec"] == "int16, pcodec 8 of differences along x, crc32c"
    group = zarr.open_group(url, mode="r")["logits"]
    assert [codec["name"] for codec in group.metadata.to_dict()["codecs"][0]["configuration"]["codecs"]] == [
        pcodec.NAME,
        "crc32c",
    ]
    logits = xarray.open_zarr(url, chunks=None).logits.isel(view=1).values
    rows = [ours.row_of[sha256] for sha256 in hashes]
    assert np.array_equal(logits[rows], ours.read(hashes, 1) * ours.step)


def test_damage_is_found_and_repaired(url, store, organ_teachers, copy_of):
    cache, shard = copy_of(url), "logits/c/0/1/0/0/0"
    data = bytearray((cache / shard).read_bytes())
    data[50] ^= 16
    (cache / shard).write_bytes(data)
    sha256 = sorted(LogitCache.open(str(cache)).row_of)
    with pytest.raises(MtkdError, match="damaged or missing"):
        LogitCache.open(str(cache)).read(sha256, 1)
    assert verify_cache(str(cache), store=store, teachers=organ_teachers, repair=True)["ok"]
    assert np.array_equal(LogitCache.open(str(cache)).read(sha256, 1), LogitCache.open(url).read(sha256, 1))


def test_bytes_of_another_size_are_refused():
    values = np.arange(60, dtype=np.int16).reshape(3, 20)
    data, out = pcodec.encode(values), np.empty((3, 20), np.int16)
    pcodec.decode_into(data, out)
    assert np.array_equal(out, values)
    for size in (59, 61):
        with pytest.raises((ValueError, RuntimeError)):
            pcodec.decode_into(data, np.empty(size, np.int16))
    with pytest.raises((ValueError, RuntimeError)):
        pcodec.decode_into(data[:-4], out)


def test_without_the_package_it_is_refused(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "numcodecs.pcodec", None)
    pcodec._codec.cache_clear()
    with pytest.raises(MtkdError, match=r"needs the package pcodec\. Run pip install 'mtkd-cache\[pcodec\]'"):
        LogitCache.open(url)
    monkeypatch.undo()
    pcodec._codec.cache_clear()
