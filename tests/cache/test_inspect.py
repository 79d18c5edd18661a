"""What a cache holds, as inspect reports it."""

import json

import pytest

from mtkd_cache.cache.card import CARD
from mtkd_cache.cache.inspect import inspect_cache
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST
from mtkd_cache.storage.folder import Folder


def test_a_finished_cache(organ_cache):
    inspected = inspect_cache(organ_cache.url)
    manifest = organ_cache.manifest.to_json()
    del manifest["files"], manifest["seen"]
    assert {key: inspected[key] for key in manifest} == manifest
    folder = Folder(organ_cache.url)
    sizes = [len(folder.read(key)) for key in folder.keys() if key not in (MANIFEST, CARD)]
    assert (inspected["files"], inspected["bytes"], inspected["samples"]) == (len(sizes), sum(sizes), 12)
    assert sum(inspected["bytes_by"].values()) == inspected["bytes"] and inspected["bytes_by"].keys() == {
        "logits",
        "records",
        "metadata",
    }
    weights = {anatomy: info["weights_sha256"] for anatomy, info in organ_cache.manifest.teachers.items()}
    assert inspected["progress"] == {"done": 1, "of": 1, "maps": {anatomy: {sha256: 12} for anatomy, sha256 in weights.items()}}
    assert inspected["finished"] and json.dumps(inspected)


def test_an_unfinished_cache(organ_cache, copy_of):
    path = copy_of(organ_cache.url)
    for key in ("manifest.json", "zarr.json", "records/00000-000.json"):
        (path / key).unlink()
    inspected = inspect_cache(str(path))
    assert not inspected["finished"] and inspected["progress"]["done"] == 0 and inspected["progress"]["of"] == 1
    assert inspected["settings"] == organ_cache.spec.to_json() and inspected["bytes"] == 0


def test_no_cache_and_a_damaged_one(organ_cache, copy_of, tmp_path):
    with pytest.raises(MtkdError, match="is not a logit cache"):
        inspect_cache(str(tmp_path))
    path = copy_of(organ_cache.url)
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes().replace(b"kidney", b"kidnez", 1))
    with pytest.raises(MtkdError, match="is damaged"):
        inspect_cache(str(path))
