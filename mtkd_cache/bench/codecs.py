"""Size and time of trained teachers' logits under standard Zarr codecs, for every combination of step and codec chain.

A chain is timed as the cache's reader runs it: the codecs alone, on all maps of one sample as one chunk, in one thread, with the
CRC-32C check of the chunk. What zarr-python adds to each chunk is the same for all chains.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import google_crc32c
import numpy as np
import torch
from accelerate import Accelerator
from numcodecs import Blosc, Delta, FixedScaleOffset, GZip, Shuffle, Zstd, blosc
from numcodecs.abc import Codec
from torch import Tensor

from mtkd_cache.bench.machine import Result, conditions
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.teacher_runner import TeacherRunner, Teachers
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.losses import map_kl
from mtkd_cache.runtime.timing import CPU, interleaved, medians, seconds
from mtkd_cache.storage.pcodec import codec_with

STEPS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
TEMPERATURE = 4.0
CHECKSUM = 4  # bytes of a CRC-32C
SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


@dataclass(frozen=True)
class Chain:
    """Codecs in the order of encoding, on integers of one type.

    axes: a transposition of (A, h, w) before them. deltas: axes of (A, h, w) along which differences to the value before take the
    values' place, after it and before the codecs, in arithmetic modulo 2^bits: a cumulative sum undoes each, whatever overflows.
    """

    name: str
    codecs: tuple[Codec, ...]
    dtype: str = "int16"
    axes: tuple[int, int, int] = (0, 1, 2)
    deltas: tuple[int, ...] = ()

    def encode(self, maps: np.ndarray) -> bytes:
        """maps: integers (A, h, w) of the chain's type."""
        data = np.ascontiguousarray(maps.transpose(self.axes))
        for axis in self.deltas:
            data = np.diff(data, axis=axis, prepend=data.dtype.type(0))
        for codec in self.codecs:
            data = codec.encode(data)
        body = bytes(data)
        return body + _crc32c(body)

    def decode(self, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The maps (A, h, w), not necessarily contiguous. Raises ValueError for a wrong checksum."""
        body = data[:-CHECKSUM]
        if _crc32c(body) != data[-CHECKSUM:]:
            raise ValueError("the checksum does not fit")
        for codec in reversed(self.codecs):
            body = codec.decode(body)
        values = np.frombuffer(body, self.dtype).reshape([shape[axis] for axis in self.axes])
        for axis in reversed(self.deltas):
            values = undo_delta(values, axis)
        return values.transpose(np.argsort(self.axes))


def undo_delta(values: np.ndarray, axis: int) -> np.ndarray:
    """np.cumsum(values, axis, values.dtype); along an axis before the last by adding whole rows, which is faster."""
    if axis == values.ndim - 1:
        return np.cumsum(values, axis, values.dtype)
    rows = np.moveaxis(values.copy(), axis, 0)
    for index in range(1, len(rows)):
        rows[index] += rows[index - 1]
    return np.moveaxis(rows, 0, axis)


def _crc32c(body: bytes) -> bytes:
    return int(google_crc32c.value(body)).to_bytes(CHECKSUM, "little")


def chains() -> Iterator[Chain]:
    """The cache's own chain first. All are codecs of Zarr v3 itself or `numcodecs.*`, which zarr-python registers."""
    bits, shuffled = partial(Blosc, shuffle=Blosc.BITSHUFFLE), partial(Blosc, shuffle=Blosc.SHUFFLE)
    yield Chain("blosc zstd-5 bitshuffle", (bits("zstd", 5),))
    for cname, levels in (("zstd", (1, 3, 5, 7, 9)), ("lz4", (1, 5, 9))):
        for shuffle, number in SHUFFLES.items():
            for level in levels:
                if (cname, shuffle, level) != ("zstd", "bitshuffle", 5):
                    yield Chain(f"blosc {cname}-{level} {shuffle}", (Blosc(cname, level, number),))
    yield from (Chain(f"zstd-{level}", (Zstd(level),)) for level in (1, 5, 12, 19))
    yield from (Chain(f"gzip-{level}", (GZip(level),)) for level in (1, 6, 9))
    for kib in (16, 64, 512):
        yield Chain(f"blosc zstd-5 bitshuffle, blocks of {kib} KiB", (bits("zstd", 5, blocksize=kib << 10),))
    delta = Delta("<i2")
    offset_128, offset_1024 = (FixedScaleOffset(offset=-offset, scale=1, dtype="<i2", astype="<u2") for offset in (128, 1024))
    yield Chain("shuffle, zstd-5", (Shuffle(2), Zstd(5)))
    yield Chain("delta, zstd-5", (delta, Zstd(5)))
    yield Chain("delta, shuffle, zstd-5", (delta, Shuffle(2), Zstd(5)))
    yield from (Chain(f"delta, blosc zstd-{level} shuffle", (delta, shuffled("zstd", level))) for level in (1, 9))
    for filters in ({"delta": delta}, {"delta": delta, "offset 128": offset_128}, {"offset 1024": offset_1024}):
        for cname, shuffle in (("zstd", "shuffle"), ("zstd", "bitshuffle"), ("lz4", "bitshuffle")):
            codecs = (*filters.values(), Blosc(cname, 5, SHUFFLES[shuffle]))
            yield Chain(f"{', '.join(filters)}, blosc {cname}-5 {shuffle}", codecs)
    yield Chain("delta twice, blosc zstd-5 shuffle", (delta, delta, shuffled("zstd", 5)))
    for order, axes in (("anatomy last", (1, 2, 0)), ("x before y", (0, 2, 1))):
        yield Chain(f"{order}, blosc zstd-5 bitshuffle", (bits("zstd", 5),), axes=axes)
        yield Chain(f"{order}, delta, blosc zstd-5 shuffle", (delta, shuffled("zstd", 5)), axes=axes)
    for cname, level in (("zstd", 1), ("zstd", 5), ("lz4", 5)):
        yield Chain(f"int8, blosc {cname}-{level} bitshuffle", (bits(cname, level),), "int8")
    yield Chain("int8, blosc zstd-5 noshuffle", (Blosc("zstd", 5, Blosc.NOSHUFFLE),), "int8")
    yield from (Chain(f"int8, zstd-{level}", (Zstd(level),), "int8") for level in (1, 5, 19))
    yield Chain("int8, delta, zstd-5", (Delta("|i1"), Zstd(5)), "int8")
    yield from _two_dimensional()


def _two_dimensional() -> Iterator[Chain]:
    """Chains with a difference along y, or along y and x, and pcodec, which has one along x of its own."""
    for dtype in ("int16", "int8"):
        blosc_zstd, prefix = Blosc("zstd", 5, Blosc.BITSHUFFLE), "int8, " if dtype == "int8" else ""
        yield Chain(f"{prefix}delta y, blosc zstd-5 bitshuffle", (blosc_zstd,), dtype, deltas=(1,))
        yield Chain(f"{prefix}delta y x, blosc zstd-5 bitshuffle", (blosc_zstd,), dtype, deltas=(1, 2))
    for level in (4, 8):
        for order in (0, 1, 2):
            codec = (pcodec(level, order),)
            yield Chain(f"pcodec-{level}, delta x {order} times", codec)
            yield Chain(f"delta y, pcodec-{level}, delta x {order} times", codec, deltas=(1,))
    yield Chain("pcodec-8, auto", (pcodec(8, None),))
    yield Chain("delta y x, pcodec-8, no delta of its own", (pcodec(8, 0),), deltas=(1, 2))


def pcodec(level: int, order: int | None) -> Codec:
    """pcodec with differences along x taken `order` times; None lets it choose. Raises MtkdError without the package."""
    if order is None:
        return codec_with(level=level)
    spec: dict[str, Any] = {"delta_spec": "try_consecutive", "delta_encoding_order": order} if order else {"delta_spec": "none"}
    return codec_with(level=level, mode_spec="classic", **spec)


def bench_codecs(store: SampleStore, teachers: Teachers, samples: int, accelerator: Accelerator) -> Result:
    """Apply every step and every chain to the logits of training samples, drawn at random with a fixed seed.

    teachers: of one stride; of several for an anatomy, the last one's logits are taken.

    Returns:
        rows: for each step and chain bits_per_logit, decode_ms and encode_ms (medians a sample), and the step's max_abs_error and
        mean_kl_nats at `temperature`. A chain of int8 has no row at a step at which a logit does not fit.
    """
    train = store.rows("train")
    chosen = np.sort(np.random.default_rng(0).choice(train, min(samples, len(train)), replace=False))
    logits = _logits(store, teachers, chosen, accelerator)
    threads, blosc.use_threads = blosc.use_threads, False
    try:
        rows = [row for step in STEPS for row in _measure_step(logits, step)]
    finally:
        blosc.use_threads = threads
    arch = next(iter(teachers.info.values()))["arch"]
    return {
        "rows": rows,
        "anatomies": logits.shape[1],
        "grid": list(logits.shape[2:]),
        "largest_logit": float(logits.abs().max()),
        **conditions(accelerator, store.size, teacher=arch, samples=len(chosen), temperature=TEMPERATURE),
    }


def _logits(store: SampleStore, teachers: Teachers, rows: np.ndarray, accelerator: Accelerator) -> Tensor:
    """Native logits float32 (n, A, h, w), computed one image at a time."""
    runner, logits = TeacherRunner(teachers.networks, accelerator), []
    for row in rows:
        image = to_float(torch.from_numpy(store.read(np.array([row]))[0]).to(accelerator.device))
        maps: dict[str, Tensor] = {}
        for number, channels in enumerate(teachers.heads):
            maps |= dict(zip(channels, runner.logits(number, image, list(channels.values())).unbind(1), strict=True))
        logits.append(torch.stack([maps[anatomy] for anatomy in store.anatomies], 1).cpu())
    return torch.cat(logits)


def _measure_step(logits: Tensor, step: float) -> list[Result]:
    """A row for each chain; their decoding is interleaved."""
    quantized = quantize(logits, step)
    restored = dequantize(quantized, step)
    errors = {
        "max_abs_error": float((restored - logits).abs().max()),
        "mean_kl_nats": float(map_kl(restored, logits, TEMPERATURE).mean()),
    }
    decode: dict[str, Callable[[], object]] = {}
    rows: list[Result] = []
    for chain in chains():
        maps = quantized.numpy().astype(chain.dtype)
        if np.array_equal(maps, quantized):  # else a logit does not fit
            stored, encode_ms = _encode_all(chain, maps)
            bits = 8 * sum(map(len, stored)) / quantized.numel()
            rows.append({"step": step, **errors, "chain": chain.name, "bits_per_logit": bits, "encode_ms": encode_ms})
            decode[chain.name] = partial(next, map(partial(chain.decode, shape=quantized.shape[1:]), cycle(stored)))
    decode_ms = medians(interleaved(decode, len(quantized)), 1e3)
    return [{**row, "decode_ms": decode_ms[row["chain"]]} for row in rows]


def _encode_all(chain: Chain, samples: np.ndarray) -> tuple[list[bytes], float]:
    """The chunks of samples' maps (n, A, h, w), and the median milliseconds for one."""
    stored: list[bytes] = []
    times = [seconds(lambda maps=maps: stored.append(chain.encode(maps)), CPU) for maps in samples]  # type: ignore[misc]
    if not all(np.array_equal(chain.decode(data, maps.shape), maps) for data, maps in zip(stored, samples, strict=True)):
        raise AssertionError(f"{chain.name} does not restore what it encoded")
    return stored, 1e3 * statistics.median(times)


def table(rows: list[Result]) -> Iterator[str]:
    """A line for each row, sorted by step and size."""
    yield f"{'step':>7} {'chain':46} {'bits/logit':>10} {'decode ms':>10} {'encode ms':>10} {'max error':>10} {'KL, nats':>9}"
    for row in sorted(rows, key=lambda row: (row["step"], row["bits_per_logit"])):
        yield (
            f"{row['step']:7.4f} {row['chain']:46} {row['bits_per_logit']:10.3f} {row['decode_ms']:10.3f} "
            f"{row['encode_ms']:10.2f} {row['max_abs_error']:10.4f} {row['mean_kl_nats']:9.1e}"
        )
