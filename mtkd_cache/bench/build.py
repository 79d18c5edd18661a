"""A build against the bare forward passes of its teachers, and these one after the other against one batched call of all."""

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.func import functional_call, stack_module_state

from mtkd_cache.bench.machine import machine
from mtkd_cache.bench.synthetic import make_store, write_cache
from mtkd_cache.cache.teacher_runner import TeacherRunner
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import interleaved, ratio, spread


def bench_build(
    recipe: Recipe,
    size: tuple[int, int],
    samples: int,
    batch: int,
    rounds: int,
    accelerator: Accelerator,
    compiled: bool = False,
    also_stacked: bool = False,
) -> dict:
    """Medians in seconds, taken in turn: a build of new maps, reading, quantising, compressing and writing included, and the
    teachers' forward passes alone on the same pictures, already on the device.

    samples: at least so many, rounded up to a multiple of the anatomies. compiled: the teachers are; plain_s is what they take as
    they are. also_stacked: also all teachers as one batched call (torch.func.vmap over their stacked weights). throughput:
    bare_s / build_s, 1 where a build costs nothing but its passes.
    """
    torch.manual_seed(0)
    networks = [spread_out(create_network(recipe.teacher.arch, 1)) for _ in ANATOMIES]
    ensemble = TeacherRunner(networks, accelerator, compiled)
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        store = make_store(folder, size, samples)
        rows = store.rows("train")
        batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        pictures = [to_float(torch.from_numpy(store.read(part)[0]).to(accelerator.device)) for part in batches]

        def bare(teachers: TeacherRunner) -> list[Tensor]:
            return [teachers.native(anatomy, images) for anatomy in range(len(networks)) for images in pictures]

        def built() -> None:
            write_cache(folder / f"{next(numbers)}.zarr", store, networks, recipe, accelerator, batch, compiled)

        actions: dict[str, Callable[[], object]] = {"bare": partial(bare, ensemble), "build": built}
        if compiled:
            actions["plain"] = partial(bare, TeacherRunner(copy.deepcopy(networks), accelerator))  # a copy is not compiled
        if also_stacked:
            actions["stacked"] = stacked(networks, pictures, accelerator)
        times = interleaved(actions, rounds, accelerator.device)
    return {
        **{f"{way}_s": statistics.median(taken) for way, taken in times.items()},
        "throughput": ratio(times, "bare", "build"),
        **({"plain_over_compiled": ratio(times, "plain", "bare")} if compiled else {}),
        **({"loop_over_stacked": ratio(times, "bare", "stacked")} if also_stacked else {}),
        "seconds_per_sample": statistics.median(times["build"]) / len(rows),
        "spread_s": {way: spread(taken) for way, taken in times.items()},
        "teacher": recipe.teacher.arch,
        "teachers": len(networks),
        "samples": len(rows),
        "size": list(size),
        "batch": batch,
        "precision": accelerator.mixed_precision,
        "machine": machine(accelerator.device),
    }


def spread_out(network: Network, spread: float = 5.0) -> Network:
    """An untrained network whose logits vary as a trained one's do, by its last layer; `spread`: their standard deviation."""
    convolutions = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    last = [module for module in network.decoders[0].modules() if isinstance(module, convolutions)][-1]
    with torch.inference_mode():
        native = network.eval().native(torch.rand(4, 3, 64, 64))
    with torch.no_grad():
        scale = spread / float(native.std())
        last.weight *= scale
        last.bias.sub_(float(native.mean())).mul_(scale)
    return network


def stacked(networks: Sequence[Network], pictures: Sequence[Tensor], accelerator: Accelerator) -> Callable[[], list[Tensor]]:
    """All networks, which are of one architecture, as one batched call a batch of pictures."""
    networks = [copy.deepcopy(network).to(accelerator.device).eval() for network in networks]
    parameters, buffers = stack_module_state(networks)
    bare = _Native(copy.deepcopy(networks[0]))

    def one(parameters: dict, buffers: dict, images: Tensor) -> Tensor:
        named = {f"network.{key}": value for key, value in {**parameters, **buffers}.items()}
        return functional_call(bare, named, (images,))

    every = torch.vmap(one, in_dims=(0, 0, None))

    def run() -> list[Tensor]:
        with torch.inference_mode(), accelerator.autocast():
            return [every(parameters, buffers, images) for images in pictures]

    return run


class _Native(torch.nn.Module):
    """A network's native logits as its forward pass."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.native(images)
