"""A cache written in format 1 reads today as on the day it was written, with this package and with others."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from mtkd_cache.cache.inspect import inspect_cache
from mtkd_cache.cache.quantize import FILL
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify

HERE = Path(__file__).parent
CACHE = HERE / "format-1" / "logits.zarr"
VALUES = json.loads((HERE / "format-1" / "values.json").read_text())


def check(sha256: str, logits: np.ndarray) -> None:
    """logits (view, anatomy, y, x) of a sample against what was written down of them."""
    recorded = VALUES["logits"][sha256]
    assert np.array_equal(logits.sum((2, 3), dtype=np.float64), recorded["sum"])
    assert np.array_equal(logits[:, :, 0], recorded["first_row"])


def test_this_package_reads_it():
    cache = LogitCache.open(str(CACHE))
    assert (cache.fingerprint, list(cache.anatomies), cache.step) == tuple(
        VALUES[key] for key in ("fingerprint", "anatomies", "step")
    )
    assert cache.row_of.keys() == VALUES["logits"].keys()
    for sha256 in cache.row_of:
        check(sha256, np.stack([cache.read([sha256], view)[0] for view in range(cache.views)]) * np.float32(cache.step))
    np.testing.assert_allclose(cache.draw_views(list(cache.row_of), 1).affine.numpy(), VALUES["affine_of_view_1"], atol=1e-7)


def test_it_is_whole(tmp_path):
    copy = shutil.copytree(CACHE, tmp_path / "logits.zarr")
    assert verify(str(copy))["ok"]
    assert inspect_cache(str(copy))["fingerprint"] == VALUES["fingerprint"]


def test_plain_zarr_reads_it():
    group = zarr.open_group(CACHE, mode="r")
    step = group["logits"].attrs["scale_factor"]
    assert group["logits"].metadata.dimension_names == ("sample", "view", "anatomy", "y", "x")
    assert group["logits"].fill_value == FILL and group.attrs["complete"]
    for sha256, logits in zip(group["sha256"][:], group["logits"][:], strict=True):
        check(sha256.tobytes().hex(), logits * np.float32(step))


def test_xarray_reads_it():
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(CACHE, chunks=None)
        logits = data.logits.isel(sample=0, view=0).values
    assert dict(data.sizes) == {"sample": 4, "view": 2, "anatomy": 2, "y": 16, "x": 16, "byte": 32}
    assert data.attrs["fingerprint"] == VALUES["fingerprint"]
    recorded = VALUES["logits"][data.sha256.values[0].tobytes().hex()]
    assert np.array_equal(logits[:, 0], recorded["first_row"][0])
