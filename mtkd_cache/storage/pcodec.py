"""pcodec, an optional codec of integers: https://github.com/pcodec/pcodec, as the Zarr codec `numcodecs.pcodec`.

Differences along the last axis, then entropy coding. Against Blosc it takes two thirds of the bytes for smooth maps, as many for
rough ones, and decodes about as fast (docs/benchmarks.md).
"""

import warnings
from functools import cache
from typing import Any

import numpy as np

from mtkd_cache.errors import MtkdError

NAME = "numcodecs.pcodec"
SETTINGS: dict[str, Any] = {"level": 8, "mode_spec": "classic", "delta_spec": "try_consecutive", "delta_encoding_order": 1}


def codec_with(**settings: Any) -> Any:
    """numcodecs' codec with these settings. Raises MtkdError without the package."""
    try:
        from numcodecs.pcodec import PCodec
    except ImportError as error:
        raise MtkdError("this codec needs the package pcodec. Run pip install 'mtkd-cache[pcodec]'.") from error
    return PCodec(**settings)


@cache
def _codec() -> Any:
    return codec_with(**SETTINGS)


def check_pcodec() -> None:
    """Raises MtkdError without the package; silences zarr's remark that Zarr v3 does not specify this codec."""
    _codec()
    warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr")


def serializer() -> Any:
    """The codec of zarr, from integers to bytes. Raises MtkdError without the package."""
    check_pcodec()
    from zarr.codecs.numcodecs import PCodec

    return PCodec(**SETTINGS)


def encode(values: np.ndarray) -> bytes:
    """The bytes of integers of 16 bits or more."""
    return bytes(_codec().encode(np.ascontiguousarray(values)))


def decode_into(data: bytes | memoryview, out: np.ndarray) -> None:
    """Decode into a C-contiguous array. Raises ValueError or RuntimeError for bytes that are not those of so many integers."""
    from pcodec import standalone

    progress = standalone.simple_decompress_into(bytes(data), out.reshape(-1))
    if progress.n_processed != out.size or not progress.finished:
        raise ValueError("a chunk has another size")
