"""A logit cache as an xarray object, whose samples and anatomies are chosen by name."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd_cache.cache.quantize import FILL
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.folder import FRESH

if TYPE_CHECKING:
    import xarray

    from mtkd_cache.cache.reader import LogitCache


def labeled(cache: "LogitCache", store: SampleStore | None) -> "xarray.DataArray | xarray.Dataset":
    """See `LogitCache.to_xarray`."""
    try:
        import xarray
    except ImportError as error:
        raise MtkdError("to_xarray needs xarray. Install it by pip install 'mtkd-cache[xarray]'.") from error
    remote = FRESH if "://" in cache.url else None
    stored = xarray.open_zarr(cache.url, chunks=None, mask_and_scale=False, zarr_format=3, storage_options=remote)
    hashes = np.array(list(cache.row_of))
    coordinates: dict[str, Any] = {"sample": hashes, "view": np.arange(cache.views)}
    if store is not None:
        rows = {sha256: row for row, sha256 in enumerate(store.hashes)}
        names = [store.describe(rows[sha256]) if sha256 in rows else "" for sha256 in hashes]
        coordinates["name"] = ("sample", np.array(names))
    arrays = {}
    for array in cache.spec.arrays:
        values = stored[array.name]
        values.attrs = {
            "scale_factor": np.float32(cache.step),
            "_FillValue": np.int16(FILL),
            "units": "logit",
            "long_name": "teachers' logits",
        }
        values = xarray.decode_cf(values.to_dataset())[array.name]
        arrays[array.name] = values.assign_coords(coordinates | {f"anatomy{array.suffix}": list(cache.spec.names_of(array))})
    return xarray.Dataset(arrays) if len(arrays) > 1 else next(iter(arrays.values()))
