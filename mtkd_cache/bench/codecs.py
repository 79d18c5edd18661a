"""What trained teachers' logits weigh under standard Zarr codecs, and how long these take: every step with every chain.

A chain is timed as the cache's reader runs it: the codecs alone, on all maps of one sample as one chunk, in one thread, with the
chunk's CRC-32C compared. What zarr-python adds to each chunk on top is the same for all of them.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from accelerate import Accelerator
from numcodecs import Blosc, Delta, FixedScaleOffset, GZip, Shuffle, Zstd, blosc
from numcodecs.abc import Codec
from torch import Tensor

from mtkd_cache.bench.machine import machine
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.teacher_runner import TeacherRunner, Teachers
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.losses import map_kl
from mtkd_cache.runtime.timing import CPU, interleaved, seconds

STEPS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
TEMPERATURE = 4.0
CHECKSUM = 4  # bytes of a CRC-32C
SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
ANATOMY_LAST = (1, 2, 0)
COLUMNS = (0, 2, 1)


@dataclass(frozen=True)
class Chain:
    """Codecs in the order of writing, on integers of a type; axes: Zarr's `transpose` before them."""

    name: str
    codecs: tuple[Codec, ...]
    dtype: str = "int16"
    axes: tuple[int, int, int] = (0, 1, 2)

    def encode(self, maps: np.ndarray) -> bytes:
        """maps: integers (A, h, w) of the chain's type."""
        data = np.ascontiguousarray(maps.transpose(self.axes))
        for codec in self.codecs:
            data = codec.encode(data)
        body = bytes(data)
        return body + google_crc32c.value(body).to_bytes(CHECKSUM, "little")

    def decode(self, data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        """The maps (A, h, w), which need not be contiguous. Raises ValueError where the checksum does not fit."""
        body = data[:-CHECKSUM]
        if google_crc32c.value(body).to_bytes(CHECKSUM, "little") != data[-CHECKSUM:]:
            raise ValueError("the checksum does not fit")
        for codec in reversed(self.codecs):
            body = codec.decode(body)
        flat = np.frombuffer(body, self.dtype)
        return flat.reshape([shape[axis] for axis in self.axes]).transpose(np.argsort(self.axes))


def chains() -> Iterator[Chain]:
    """The present one first. All are Zarr v3's own codecs or, as `numcodecs.*`, registered ones that zarr-python ships."""
    bits = partial(Blosc, shuffle=Blosc.BITSHUFFLE)
    yield Chain("blosc zstd-5 bitshuffle", (bits("zstd", 5),))
    for cname, levels in (("zstd", (1, 3, 5, 7, 9)), ("lz4", (1, 5, 9))):
        for shuffle, number in SHUFFLES.items():
            for level in levels:
                if (cname, shuffle, level) != ("zstd", "bitshuffle", 5):
                    yield Chain(f"blosc {cname}-{level} {shuffle}", (Blosc(cname, level, number),))
    for level in (1, 5, 12, 19):
        yield Chain(f"zstd-{level}", (Zstd(level),))
    for level in (1, 6, 9):
        yield Chain(f"gzip-{level}", (GZip(level),))
    yield Chain("shuffle, zstd-5", (Shuffle(2), Zstd(5)))
    for block in (2**14, 2**16, 2**19):
        yield Chain(f"blosc zstd-5 bitshuffle, blocks of {block >> 10} KiB", (bits("zstd", 5, blocksize=block),))
    delta = Delta("<i2")
    bias, small_bias = (FixedScaleOffset(offset=-offset, scale=1, dtype="<i2", astype="<u2") for offset in (1024, 128))
    yield Chain("delta, zstd-5", (delta, Zstd(5)))
    yield Chain("delta, shuffle, zstd-5", (delta, Shuffle(2), Zstd(5)))
    for level in (1, 5, 9):
        yield Chain(f"delta, blosc zstd-{level} shuffle", (delta, Blosc("zstd", level, Blosc.SHUFFLE)))
    yield Chain("delta, blosc zstd-5 bitshuffle", (delta, bits("zstd", 5)))
    yield Chain("delta, offset 128, blosc zstd-5 shuffle", (delta, small_bias, Blosc("zstd", 5, Blosc.SHUFFLE)))
    yield Chain("delta, offset 128, blosc zstd-5 bitshuffle", (delta, small_bias, bits("zstd", 5)))
    yield Chain("delta twice, blosc zstd-5 shuffle", (delta, delta, Blosc("zstd", 5, Blosc.SHUFFLE)))
    yield Chain("delta, blosc lz4-5 bitshuffle", (delta, bits("lz4", 5)))
    yield Chain("offset 1024, blosc zstd-5 bitshuffle", (bias, bits("zstd", 5)))
    yield Chain("offset 1024, blosc lz4-5 bitshuffle", (bias, bits("lz4", 5)))
    for axes, what in ((ANATOMY_LAST, "anatomy last"), (COLUMNS, "x before y")):
        yield Chain(f"{what}, blosc zstd-5 bitshuffle", (bits("zstd", 5),), axes=axes)
        yield Chain(f"{what}, delta, blosc zstd-5 shuffle", (delta, Blosc("zstd", 5, Blosc.SHUFFLE)), axes=axes)
    for codec in (bits("zstd", 1), bits("zstd", 5), bits("lz4", 5), Blosc("zstd", 5, Blosc.NOSHUFFLE)):
        name = f"int8, blosc {codec.cname}-{codec.clevel} {'bitshuffle' if codec.shuffle == Blosc.BITSHUFFLE else 'noshuffle'}"
        yield Chain(name, (codec,), "int8")
    for level in (1, 5, 19):
        yield Chain(f"int8, zstd-{level}", (Zstd(level),), "int8")
    yield Chain("int8, delta, zstd-5", (Delta("|i1"), Zstd(5)), "int8")


def bench_codecs(store: SampleStore, teachers: Path, samples: int, accelerator: Accelerator) -> dict:
    """Every step with every chain on the logits of some training samples, drawn at random and always the same.

    rows: of each step and chain bits_per_logit; decode_ms, encode_ms, medians a sample; max_abs_error, mean_kl_nats at
    `temperature`, both of the step alone. A chain of int8 has no row where a logit does not fit it.
    """
    loaded = Teachers.load(teachers, store)
    train = store.rows("train")
    chosen = np.sort(np.random.default_rng(0).choice(train, min(samples, len(train)), replace=False))
    logits = _logits(store, loaded, chosen, accelerator)
    threads, blosc.use_threads = blosc.use_threads, False
    try:
        rows = [row for step in STEPS for row in _step(logits, step)]
    finally:
        blosc.use_threads = threads
    return {
        "rows": rows,
        "samples": len(chosen),
        "anatomies": logits.shape[1],
        "size": list(store.size),
        "grid": list(logits.shape[2:]),
        "teacher": loaded.networks[0].arch,
        "precision": accelerator.mixed_precision,
        "temperature": TEMPERATURE,
        "largest_logit": float(logits.abs().max()),
        "machine": machine(accelerator.device),
    }


def _logits(store: SampleStore, teachers: Teachers, rows: np.ndarray, accelerator: Accelerator) -> Tensor:
    """Native logits float32 (n, A, h, w), one picture at a time."""
    ensemble, said = TeacherRunner(teachers.networks, accelerator), []
    for row in rows:
        image = to_float(torch.from_numpy(store.read(np.array([row]))[0]).to(accelerator.device))
        said.append(torch.stack([ensemble.native(number, image) for number in range(len(teachers.networks))], 1).cpu())
    return torch.cat(said)


def _step(logits: Tensor, step: float) -> list[dict]:
    """A row for each chain, all timed in turn."""
    integers = quantize(logits, step)
    kept = dequantize(integers, step)
    about = {
        "step": step,
        "max_abs_error": float((kept - logits).abs().max()),
        "mean_kl_nats": float(map_kl(kept, logits, TEMPERATURE).mean()),
    }
    maps = integers.numpy()
    narrow = maps.astype(np.int8)
    fits = np.array_equal(narrow, maps)
    decode, rows = {}, []
    for chain in chains():
        if chain.dtype == "int8" and not fits:
            continue
        stored, encode_ms = _encode_all(chain, narrow if chain.dtype == "int8" else maps)
        bits = 8 * sum(map(len, stored)) / maps.size
        rows.append({**about, "chain": chain.name, "bits_per_logit": bits, "encode_ms": encode_ms})
        decode[chain.name] = partial(_decode_next, chain, cycle(stored), maps.shape[1:])
    times = interleaved(decode, len(maps))
    return [{**row, "decode_ms": 1e3 * statistics.median(times[row["chain"]])} for row in rows]


def _encode_all(chain: Chain, samples: np.ndarray) -> tuple[list[bytes], float]:
    """The chunks of samples' maps (n, A, h, w), and the median milliseconds that one took."""
    stored: list[bytes] = []
    taken = [seconds(lambda maps=maps: stored.append(chain.encode(maps)), CPU) for maps in samples]
    if not all(np.array_equal(chain.decode(data, maps.shape), maps) for data, maps in zip(stored, samples, strict=True)):
        raise AssertionError(f"{chain.name} does not give back what it was given")
    return stored, 1e3 * statistics.median(taken)


def _decode_next(chain: Chain, stored: Iterator[bytes], shape: tuple[int, int, int]) -> None:
    chain.decode(next(stored), shape)


def table(rows: Sequence[dict]) -> Iterator[str]:
    """A line a row: of each step the smallest first."""
    yield f"{'step':>7} {'chain':46} {'bits/logit':>10} {'decode ms':>10} {'encode ms':>10} {'max error':>10} {'KL, nats':>9}"
    for row in sorted(rows, key=lambda row: (row["step"], row["bits_per_logit"])):
        yield (
            f"{row['step']:7.4f} {row['chain']:46} {row['bits_per_logit']:10.3f} {row['decode_ms']:10.3f} "
            f"{row['encode_ms']:10.2f} {row['max_abs_error']:10.4f} {row['mean_kl_nats']:9.1e}"
        )
