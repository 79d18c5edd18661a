"""Reading a random batch (images, masks, all maps) against what limits it, and against the ways it is done today."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numcodecs import blosc

from mtkd_cache.bench.machine import machine
from mtkd_cache.bench.synthetic import make_cache, make_store
from mtkd_cache.cache.layout import BLOCK, logits_spec
from mtkd_cache.cache.loader import BatchReader, InMemorySource
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.network import create_network, upsample
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import interleaved, ratio, seconds, spread
from mtkd_cache.storage.shard_reader import ShardReader, readers

DRAWS = 1000  # random batches that are drawn before they are timed


def bench_cache(recipe: Recipe, size: tuple[int, int], batch: int, rounds: int, accelerator: Accelerator) -> dict:
    """Medians in milliseconds for a random batch, all taken in turn, with the files in the page cache.

    read_ms: streamed. decode_limit_ms: Blosc alone in as many threads, out of memory into memory that is there. resident_ms: out
    of memory; copy_ms: as many bytes copied. write_over_forward: encoding and writing a shard file, over the teachers' passes
    for it.
    """
    device = accelerator.device
    teacher = create_network(recipe.teacher.arch, 1).eval().to(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, size, 3 * batch)
        cache = make_cache(folder, store, recipe, teacher.stride, accelerator)
        rows = store.rows("train")
        stream = BatchReader(store, cache)
        resident = InMemorySource(stream, rows, device)
        chosen = _Chosen(rows, batch)
        times = interleaved(
            {
                "read": lambda: stream.read(chosen.next()),
                "decode": _decoding(store, cache, chosen),
                "resident": lambda: resident.read(chosen.next()),
                "copy": _copying(stream.bytes_per_sample(), batch, len(rows), device),
            },
            10 * rounds,
            device,
        )
        maps = cache.read(store.hashes[rows])
        shard_seconds = _write_seconds(folder, cache, maps)
        image = torch.rand(1, 3, size[1], size[0], device=device)
        with torch.inference_mode():
            teacher.native(image)
            forward = statistics.median(seconds(lambda: teacher.native(image), device) for _ in range(rounds))
        ways = [_our_way(cache, store, rows, chosen, 3 * rounds), *_todays_ways(folder, maps, cache.step, size, chosen, rounds)]
    names = {"read": "read_ms", "decode": "decode_limit_ms", "resident": "resident_ms", "copy": "copy_ms"}
    return {
        **{names[key]: 1e3 * statistics.median(taken) for key, taken in times.items()},
        "read_over_decode_limit": ratio(times, "read", "decode"),
        "resident_over_copy": ratio(times, "resident", "copy"),
        "write_over_forward": shard_seconds / (min(BLOCK, len(rows)) * len(store.anatomies) * forward),
        "spread_ms": {names[key]: [1e3 * one for one in spread(taken)] for key, taken in times.items()},
        "ways": ways,
        "teacher": recipe.teacher.arch,
        "size": list(size),
        "batch": batch,
        "samples": len(rows),
        "machine": machine(device),
    }


class _Chosen:
    """Random batches of rows, drawn beforehand."""

    def __init__(self, rows: np.ndarray, batch: int):
        self.rows, self.batch = rows, batch
        random = np.random.default_rng(0)
        self.drawn = cycle([random.choice(len(rows), batch, replace=False) for _ in range(DRAWS)])

    def next(self) -> np.ndarray:
        return self.rows[self.places()]

    def places(self) -> np.ndarray:
        """The same as places in `rows`."""
        return next(self.drawn)


def _decoding(store: SampleStore, cache: LogitCache, chosen: _Chosen) -> Callable[[], None]:
    """Decodes the next random batch, whose stored bytes are in memory."""
    stored: dict[int, list[bytes]] = {}
    for row in chosen.rows:
        at = cache.row_of[store.hashes[row]]
        pairs: Sequence[tuple[ShardReader, int]] = ((store.image, row), (store.mask, row), (cache.reader, at))
        stored[row] = [bytes(reader.stored(int(place))) for reader, place in pairs]
    targets = [
        [np.empty(reader.bytes, np.uint8) for reader in (store.image, store.mask, cache.reader)] for _ in range(chosen.batch)
    ]

    def one(row: int, into: list[np.ndarray]) -> None:
        for data, target in zip(stored[row], into, strict=True):
            blosc.decompress(data, target)

    return lambda: list(readers().map(one, chosen.next(), targets))


def _copying(each: int, batch: int, samples: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """Copies a batch's bytes, next to each other somewhere among those of all samples, into new memory."""
    held = torch.ones(samples * each, dtype=torch.uint8, device=device)
    random = np.random.default_rng(0)

    def copy() -> torch.Tensor:
        start = int(random.integers((samples - batch) * each))
        return held[start : start + batch * each].clone()

    return copy


def _write_seconds(folder: Path, cache: LogitCache, maps: np.ndarray) -> float:
    """Time to encode one shard file and to write it."""
    spec = logits_spec(1, len(cache.anatomies), tuple(cache.settings["grid"]), cache.step)
    values = maps[:BLOCK, None]
    start = time.perf_counter()
    (folder / "shard").write_bytes(spec.encode_shard(values))
    return time.perf_counter() - start


def _our_way(cache: LogitCache, store: SampleStore, rows: np.ndarray, chosen: _Chosen, rounds: int) -> dict:
    """The maps alone, as `ways` compares them."""
    stored = sum(entry["bytes"] for key, entry in cache.manifest["files"].items() if key.startswith("logits/c/"))
    times = interleaved({"read": lambda: cache.read(store.hashes[chosen.next()])}, rounds)["read"]
    return {
        "way": "this cache",
        "bytes_per_sample": stored / len(rows),
        "read_ms": 1e3 * statistics.median(times),
        "max_abs_error": cache.step / 2,
    }


def _todays_ways(folder: Path, maps: np.ndarray, step: float, size: tuple[int, int], chosen: _Chosen, rounds: int) -> list[dict]:
    """Full-size maps of each sample: fp16 in a .pt, fp16 in a compressed .npz, float32 in one uncompressed memory map."""
    shape = (maps.shape[1], size[1], size[0])
    memory = np.lib.format.open_memmap(folder / "all.npy", "w+", np.float32, (len(maps), *shape))
    for index, one in enumerate(maps):
        full = upsample(dequantize(torch.from_numpy(one), step)[None], (size[1], size[0]))[0]
        torch.save(full.half(), folder / f"{index}.pt")
        np.savez_compressed(folder / f"{index}.npz", full.half().numpy())
        memory[index] = full.numpy()
    memory.flush()

    def from_npz(index: int) -> np.ndarray:
        with np.load(folder / f"{index}.npz") as file:
            return file["arr_0"]

    actions = {
        ".pt a sample, fp16, full size": lambda: [torch.load(folder / f"{index}.pt") for index in chosen.places()],
        "compressed .npz a sample, fp16, full size": lambda: [from_npz(index) for index in chosen.places()],
        "memory map, float32, full size": lambda: [np.array(memory[index]) for index in chosen.places()],
    }
    sizes = [sum(path.stat().st_size for path in folder.glob(name)) / len(maps) for name in ("*.pt", "*.npz", "all.npy")]
    times = interleaved(actions, rounds)
    return [
        {"way": way, "bytes_per_sample": stored, "read_ms": 1e3 * statistics.median(times[way])}
        for way, stored in zip(actions, sizes, strict=True)
    ]
