"""Time of a cache build against the teachers' forward passes alone, and of these against one batched call of all teachers;
time of ingest against decoding and resizing alone.
"""

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

from mtkd_cache.bench.machine import Result, Size, conditions
from mtkd_cache.bench.synthetic import SPLIT, as_teachers, make_store, write_dataset
from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.builder import images_in_view
from mtkd_cache.cache.loader import BatchReader
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import TeacherRunner
from mtkd_cache.data.dresden import ANATOMIES, find_samples, read_image, read_mask
from mtkd_cache.data.ingest import ingest
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import interleaved, medians, ratio, spreads


def bench_build(
    recipe: Recipe, accelerator: Accelerator, size: Size, batch: int, rounds: int, samples: int, compiled: bool, stacked: bool
) -> Result:
    """Time whole builds of new caches (reading, quantizing, compressing, writing) and the bare forward passes, interleaved.

    The bare passes take the same images, which are on the device already, in as many views as `recipe.cache.views`.

    Args:
        samples: at least so many, rounded up to a multiple of the anatomies.
        compiled: compile the teachers; plain_s is then the time of the passes without compilation.
        stacked: also run all teachers as one batched call (torch.func.vmap over their stacked weights).

    Returns:
        Medians in seconds. throughput: bare_s / build_s, 1 for a build that costs nothing but its passes.
    """
    torch.manual_seed(0)
    networks = [spread_out(create_network(recipe.teacher.arch, 1)) for _ in ANATOMIES]
    runner = TeacherRunner(networks, accelerator, compiled)
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        store = make_store(folder, size, samples)
        teachers = as_teachers(networks, store)
        spec = CacheSpec.of(store, teachers.stride, recipe, accelerator.mixed_precision)
        temperature = recipe.distillation.temperature
        rows = store.rows("train")
        chunks = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        batches = [BatchReader(store).read(chunk).to(accelerator.device) for chunk in chunks]
        images = [images_in_view(spec, store, each, view) for view in range(spec.n_views) for each in batches]

        def build() -> None:
            url = str(folder / f"{next(numbers)}.zarr")
            build_cache(store, teachers, spec, url, accelerator, temperature=temperature, batch=batch, compiled=compiled)

        actions: dict[str, Callable[[], object]] = {"bare": partial(_run_all, runner, images), "build": build}
        if compiled:
            actions["plain"] = partial(_run_all, TeacherRunner(copy.deepcopy(networks), accelerator), images)  # not compiled
        if stacked:
            actions["stacked"] = as_one_call(networks, images, accelerator)
        times = interleaved(actions, rounds, accelerator.device)
    return {
        **{f"{name}_s": median for name, median in medians(times).items()},
        "throughput": ratio(times, "bare", "build"),
        **({"plain_over_compiled": ratio(times, "plain", "bare")} if compiled else {}),
        **({"loop_over_stacked": ratio(times, "bare", "stacked")} if stacked else {}),
        "seconds_per_sample": statistics.median(times["build"]) / len(rows),
        "spread_s": spreads(times),
        "teachers": len(networks),
        "views": spec.n_views,
        **conditions(accelerator, size, teacher=recipe.teacher.arch, samples=len(rows), batch=batch, rounds=rounds),
    }


def _run_all(runner: TeacherRunner, batches: Sequence[Tensor]) -> list[Tensor]:
    return [runner.native(anatomy, images) for anatomy in range(len(runner.networks)) for images in batches]


def spread_out(network: Network, spread: float = 5.0) -> Network:
    """Scale the last layer of an untrained network so that its logits vary as a trained one's do.

    spread: the standard deviation of the logits.
    """
    convolutions = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    last = [module for module in network.decoders[0].modules() if isinstance(module, convolutions)][-1]
    assert last.bias is not None
    with torch.no_grad():
        native = network.eval().native(torch.rand(4, 3, 64, 64))
        scale = spread / float(native.std())
        last.weight *= scale
        last.bias.sub_(float(native.mean())).mul_(scale)
    return network


def as_one_call(networks: Sequence[Network], batches: Sequence[Tensor], accelerator: Accelerator) -> Callable[[], list[Tensor]]:
    """An action that runs all networks, which share one architecture, as one batched call for each batch of images."""
    networks = [copy.deepcopy(network).to(accelerator.device).eval() for network in networks]
    parameters, buffers = stack_module_state(networks)
    skeleton = networks[0]
    skeleton.forward = skeleton.native  # type: ignore[method-assign]
    run_all = torch.vmap(partial(functional_call, skeleton), in_dims=(0, None))

    def run() -> list[Tensor]:
        with torch.inference_mode(), accelerator.autocast():
            return [run_all(parameters | buffers, images) for images in batches]

    return run


def bench_ingest(accelerator: Accelerator, size: Size, source: Size, samples: int, rounds: int) -> Result:
    """Time ingest in one process, and decoding and resizing of the same images alone, interleaved.

    source: (width, height) of the dataset's images, size: of the store's. Rates are images, each with its mask, per second.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), count()
        write_dataset(folder / "dataset", source, samples)
        sources, _ = find_samples(folder / "dataset")

        def decode_all() -> None:
            for sample in sources:
                read_image(sample.image, size)
                read_mask(sample.mask, size)

        def ingest_all() -> None:
            ingest(folder / "dataset", str(folder / f"{next(numbers)}.zarr"), size=size, split=SPLIT)

        times = interleaved({"bare": decode_all, "ingest": ingest_all}, rounds)
    return {
        "images_per_second": len(sources) / statistics.median(times["ingest"]),
        "bare_images_per_second": len(sources) / statistics.median(times["bare"]),
        "ingest_over_bare": ratio(times, "ingest", "bare"),
        "images": len(sources),
        **conditions(accelerator, size, source=list(source), rounds=rounds),
    }
