"""Time to read a random batch (images, masks, all maps) against its lower limits, and against common ways to store logits."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numcodecs import blosc

from mtkd_cache.bench.machine import Result, Size, conditions
from mtkd_cache.bench.synthetic import make_cache, make_store
from mtkd_cache.cache.layout import BLOCK, logits_spec
from mtkd_cache.cache.loader import BatchReader, InMemorySource
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.network import Network, create_network, upsample
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import interleaved, medians, ratio, spreads
from mtkd_cache.storage.shard_reader import ShardReader, readers

DRAWS = 1000  # random batches, drawn before they are timed


def bench_cache(recipe: Recipe, accelerator: Accelerator, size: Size, batch: int, rounds: int) -> Result:
    """Time the reading of random batches, all ways interleaved, with the files in the page cache.

    Returns:
        Medians in milliseconds a batch. read_ms: streamed. decode_limit_ms: Blosc alone in as many threads, from memory into
        memory that is allocated. resident_ms: from memory; copy_ms: a copy of as many bytes. write_over_forward: time to encode
        and write a shard file, over the teachers' forward passes for it. ways: this cache and others, bytes and time.
    """
    device = accelerator.device
    teacher = create_network(recipe.teacher.arch, 1).eval().to(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, size, 3 * batch)
        cache = make_cache(folder, store, recipe, teacher.stride, accelerator)
        rows = store.rows("train")
        random = np.random.default_rng(0)
        draws = cycle([random.choice(len(rows), batch, replace=False) for _ in range(DRAWS)])
        reader = BatchReader(store, cache)
        resident = InMemorySource(reader, rows, device)
        actions: dict[str, Callable[[], object]] = {
            "read_ms": lambda: reader.read(rows[next(draws)]),
            "decode_limit_ms": _decoding(store, cache, rows, draws),
            "resident_ms": lambda: resident.read(rows[next(draws)]),
            "copy_ms": _copying(reader.bytes_per_sample(), batch, len(rows), device),
        }
        times = interleaved(actions, 10 * rounds, device)
        maps = cache.read(store.hashes[rows])
        write_over_forward = _write_over_forward(folder, cache, maps, teacher, size, rounds)
        ways = _ways(folder, cache, store.hashes[rows], maps, draws, size, rounds)
    return {
        **medians(times, 1e3),
        "read_over_decode_limit": ratio(times, "read_ms", "decode_limit_ms"),
        "resident_over_copy": ratio(times, "resident_ms", "copy_ms"),
        "write_over_forward": write_over_forward,
        "spread_ms": spreads(times, 1e3),
        "ways": ways,
        **conditions(accelerator, size, teacher=recipe.teacher.arch, batch=batch, samples=len(rows), rounds=rounds),
    }


def _decoding(store: SampleStore, cache: LogitCache, rows: np.ndarray, draws: Iterator[np.ndarray]) -> Callable[[], object]:
    """Decodes the next random batch, whose stored bytes are in memory."""
    arrays: list[ShardReader] = [store.image, store.mask, cache.readers[0]]
    stored = [
        [bytes(array.stored(int(row))) for array, row in zip(arrays, (row, row, cache.row_of[store.hashes[row]]), strict=True)]
        for row in rows
    ]
    targets = [[np.empty(array.bytes, np.uint8) for array in arrays] for _ in next(draws)]

    def decode(index: int, target: list[np.ndarray]) -> None:
        for data, array in zip(stored[index], target, strict=True):
            blosc.decompress(data, array)

    return lambda: list(readers().map(decode, next(draws), targets))


def _copying(bytes_per_sample: int, batch: int, samples: int, device: torch.device) -> Callable[[], object]:
    """Copies the bytes of a batch, contiguous at a random place among those of all samples, into new memory."""
    everything = torch.ones(samples * bytes_per_sample, dtype=torch.uint8, device=device)
    random, length = np.random.default_rng(0), batch * bytes_per_sample
    return lambda: everything.narrow(0, int(random.integers(len(everything) - length)), length).clone()


def _write_over_forward(folder: Path, cache: LogitCache, maps: np.ndarray, teacher: Network, size: Size, rounds: int) -> float:
    """Time to encode and write one shard file, over that of the teachers' forward passes for it, at batch 1."""
    spec = logits_spec(1, len(cache.anatomies), cache.spec.arrays[0].grid, cache.step)
    device = next(teacher.parameters()).device
    forward = torch.inference_mode()(partial(teacher.native, torch.rand(1, 3, size[1], size[0], device=device)))

    def write() -> None:
        (folder / "shard").write_bytes(spec.encode_shard(maps[:BLOCK, None]))

    times = interleaved({"write": write, "forward": forward}, rounds, device)
    return ratio(times, "write", "forward") / maps[:BLOCK, :, 0, 0].size


def _ways(
    folder: Path, cache: LogitCache, hashes: np.ndarray, maps: np.ndarray, draws: Iterator[np.ndarray], size: Size, rounds: int
) -> list[Result]:
    """Bytes a sample and time a batch of the maps alone: this cache, and full-size maps in .pt, .npz and a memory map."""
    memory = np.lib.format.open_memmap(folder / "all.npy", "w+", np.float32, (*maps.shape[:2], size[1], size[0]))
    for index, quantized in enumerate(maps):
        full = upsample(dequantize(torch.from_numpy(quantized), cache.step)[None], (size[1], size[0]))[0]
        torch.save(full.half(), folder / f"{index}.pt")
        np.savez_compressed(folder / f"{index}.npz", full.half().numpy())
        memory[index] = full.numpy()
    memory.flush()
    ways: dict[str, tuple[str, Callable[[], object]]] = {  # its files, and how a batch is read
        "this cache": ("logits.zarr/logits/c/*/*/*/*/*", lambda: cache.read(hashes[next(draws)])),
        ".pt a sample, fp16, full size": ("*.pt", lambda: [torch.load(folder / f"{index}.pt") for index in next(draws)]),
        "compressed .npz a sample, fp16, full size": (
            "*.npz",
            lambda: [np.load(folder / f"{index}.npz")["arr_0"] for index in next(draws)],
        ),
        "memory map, float32, full size": ("all.npy", lambda: [np.array(memory[index]) for index in next(draws)]),
    }
    times = medians(interleaved({way: read for way, (_, read) in ways.items()}, rounds), 1e3)
    results: list[Result] = []
    for way, (pattern, _) in ways.items():
        stored = sum(path.stat().st_size for path in folder.glob(pattern)) / len(maps)
        results.append({"way": way, "bytes_per_sample": stored, "read_ms": times[way]})
    results[0]["max_abs_error"] = cache.step / 2
    return results
