"""A cache's card, and the cache as an xarray object."""

import json
import re
import warnings

import numpy as np
import pytest
import yaml
from support import build

from mtkd_cache.cache.card import CARD, MARK
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.storage.checked_json import MANIFEST
from mtkd_cache.storage.folder import Folder


def test_a_cache_carries_a_card_that_a_hub_can_read(organ_cache, organ_store, organ_teachers):
    text = (folder := Folder(organ_cache.url)).read(CARD).decode()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "unknown" and "zarr" in yaml.safe_load(front)["tags"]
    for said in ("# Teachers' logits of organs", "Samples: 12 of", "kidney, tongue", "Images: 64x64", organ_cache.fingerprint):
        assert said in body
    assert "| tongue | mininetv2, weights (SHA-256) " in body and "author = {{The mtkd-cache authors}}" in body
    assert re.search(r"\n- Size: [1-9]\d*\.\d kB\n", body)
    assert MARK in text and "{%" not in text
    assert CARD not in json.loads(folder.read(MANIFEST))["content"]["files"]
    assert verify_cache(organ_cache.url, store=organ_store, teachers=organ_teachers)["ok"]


def test_the_code_on_the_card_runs(organ_cache, monkeypatch):
    code = (Folder(organ_cache.url).read(CARD).decode()).split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(Folder(organ_cache.url).path.rsplit("/", 1)[0])
    names: dict = {}
    exec(code.replace("; float32, by name: ", "\nmap_ = ").replace("# needs xarray", ""), names)
    assert names["map_"].shape == organ_cache.spec.grid


def test_an_edited_card_without_the_mark_stays(organ_cache, organ_store, organ_teachers, recipe, accelerator, copy_of):
    copy = copy_of(organ_cache.url)
    written = (copy / CARD).read_text()
    (copy / CARD).write_text(written.replace("license: unknown", "license: cc-by-4.0"))
    build(organ_store, organ_teachers, str(copy), recipe(), accelerator)
    assert (copy / CARD).read_text() == written
    (copy / CARD).write_text("# mine\n")
    (copy / ".gitattributes").write_text("*.zarr lfs\n")
    build(organ_store, organ_teachers, str(copy), recipe(), accelerator)
    assert (copy / CARD).read_text() == "# mine\n"
    assert verify_cache(str(copy))["problems"] == []


def test_xarray_chooses_by_name(organ_cache, organ_store, copy_of):
    pytest.importorskip("xarray")
    sha256 = sorted(organ_cache.row_of)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = organ_cache.to_xarray(organ_store)
        tongue = logits.sel(anatomy="tongue", sample=sha256, view=0)
    assert logits.dtype == np.float32 and logits.dims == ("sample", "view", "anatomy", "y", "x")
    assert np.array_equal(tongue.values, organ_cache.read([sha256])[0, 1] * np.float32(organ_cache.step))
    [row] = np.flatnonzero(organ_store.hashes == sha256)
    assert str(tongue.coords["name"].values) == organ_store.describe(row)
    assert logits.swap_dims(sample="name").sel(name="kidney/30/image00").shape == (1, 2, *organ_cache.spec.grid)
    assert "name" not in organ_cache.to_xarray().coords
    copy = copy_of(organ_cache.url)
    next((copy / "logits" / "c").rglob("0")).is_dir()
    for shard in [path for path in (copy / "logits" / "c").rglob("*") if path.is_file()]:
        shard.unlink()
    assert np.isnan(LogitCache.open(str(copy)).to_xarray().isel(sample=0).values).all()
