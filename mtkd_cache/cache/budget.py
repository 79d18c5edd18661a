"""The quantizer's step for a budget of KL: the largest power of two that keeps to it on a few samples."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from mtkd_cache.cache.builder import Builder
from mtkd_cache.cache.layout import PLAN, CachePlan
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cache.view_gap import samples_of
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import map_kl
from mtkd_cache.runtime.accelerator import run_on_all_ranks
from mtkd_cache.storage.checked_json import read_record
from mtkd_cache.storage.folder import Folder

STEPS = tuple(2.0**power for power in range(3, -9, -1))  # logits, the largest first
SAMPLES = 8


def largest_step(logits: Iterable[Tensor], budget: float, temperature: float, steps: Sequence[float] = STEPS) -> float:
    """The largest step at which the mean KL of quantized from exact maps is within a budget.

    The KL grows as step^2 / (24 T^2), as long as the step is small against the spread of the logits.

    Args:
        logits: of each anatomy, float (B, h, w).
        budget: nats, of the mean over anatomies and samples.
        temperature: T, of the softmax over the pixels, see `map_kl`.
        steps: to choose from, the largest first.

    Raises:
        MtkdError: not even the smallest keeps to it.
    """
    maps = list(logits)
    for step in steps:
        kls = [map_kl(dequantize(quantize(each, step), step)[:, None], each[:, None], temperature).mean() for each in maps]
        if float(torch.stack(kls).mean()) <= budget:
            return step
    raise MtkdError(f"--kl {budget:g}: even at step {steps[-1]:g} the mean KL is larger. Allow more, or choose a --step.")


def step_within(
    budget: float,
    spec: CacheSpec,
    url: str,
    store: SampleStore,
    teachers: Teachers,
    accelerator: Accelerator,
    temperature: float,
    splits: Sequence[str] = ("train",),
) -> float:
    """The step for a budget, by the teachers' logits of the samples with the lowest hashes; a cache that was begun keeps its own.

    spec: of the cache, with any step. Raises MtkdError as `largest_step`.
    """

    def measure() -> float:
        plan = read_record(Folder(url), PLAN, CachePlan)
        if plan:
            return plan.settings.step
        rows = samples_of(store, np.concatenate([store.rows(split) for split in splits]), SAMPLES)
        plan = CachePlan(settings=spec, temperature=temperature, samples=())
        images = to_float(torch.from_numpy(store.read(rows)[0]).to(accelerator.device))
        return largest_step(Builder(Folder(url), store, teachers, plan, accelerator).live(images), budget, temperature)

    step = run_on_all_ranks(accelerator, lambda: measure() if accelerator.is_main_process else None)
    chosen: float = broadcast_object_list([step])[0]
    return chosen
