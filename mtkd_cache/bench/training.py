"""A student's training step without distillation, with cached logits, with live teachers, interleaved; a teacher's step."""

import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.bench.machine import Result, Size, conditions, peak_mb
from mtkd_cache.bench.synthetic import make_cache, make_store
from mtkd_cache.cache.loader import Batch
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import TeacherRunner
from mtkd_cache.data.augment import Views
from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.network import Network, create_network, upsample
from mtkd_cache.models.segformer import reference_smp
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import medians, ratio, spreads, wait
from mtkd_cache.training.loop import Task
from mtkd_cache.training.signal import CachedTeachers, NoTeachers, TeacherSignal, new_views
from mtkd_cache.training.student import student_task
from mtkd_cache.training.teachers import teacher_task

WARM_UP_STEPS = 3
ONLINE_ROUNDS = 2  # an online step takes minutes on a CPU, and one step warms it up


@dataclass(frozen=True)
class LiveTeachers:
    """The teachers run on every view that the student sees: distillation without a cache."""

    teachers: TeacherRunner
    recipe: Recipe
    size: Size
    cache: None = None

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        return new_views(self.recipe, self.size, hashes, epoch)

    def logits(self, batch: Batch, images: Tensor, views: Views) -> Tensor:
        logits = images.new_empty(len(images), len(self.teachers.networks), *images.shape[2:])
        for anatomy in range(logits.shape[1]):
            native = self.teachers.native(anatomy, images)[:, None]  # the teachers may be of several strides
            logits[:, anatomy : anatomy + 1] = upsample(native, (images.shape[2], images.shape[3]))
        return logits


Steps = Generator[tuple[float, float], None, None]  # of each, its seconds and those spent waiting for data


def training_steps(task: Task, accelerator: Accelerator) -> Steps:
    """Train as `mtkd_cache.training.loop.fit` does; the first step includes the memory's allocation and compilation."""
    device = accelerator.device
    network, optimizer = task.start(device)
    network.train()
    batches = ((epoch, batch) for epoch in count() for batch in task.batches(epoch))
    while True:
        wait(device)
        start = time.perf_counter()
        epoch, batch = next(batches)
        waited = time.perf_counter() - start
        batch = batch.to(device)
        with accelerator.autocast():
            loss = task.losses(network, batch, epoch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        wait(device)
        yield time.perf_counter() - start, waited


def bench_stage2(recipe: Recipe, accelerator: Accelerator, size: Size, rounds: int, resident: str, compiled: bool) -> Result:
    """Time the steps of three students that differ in their teachers' signal alone. Weights and samples are synthetic.

    Args:
        recipe: the student, the teachers' architecture and the batch.
        size: (width, height).
        compiled: compile the students.

    Returns:
        Medians of a step in seconds. loader_share: of a cached step, spent waiting for data. online_smp: where the teachers
        are SegFormers, with smp's own modules in their place. warm_up_s: the first step.
    """
    torch.manual_seed(0)
    networks = [create_network(recipe.teacher.arch, 1) for _ in ANATOMIES]
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), size, 2 * recipe.student.batch)
        cache = make_cache(Path(folder), store, recipe, networks[0].stride, accelerator)
        students = {
            name: training_steps(student_task(store, recipe, accelerator, signal, resident, compiled), accelerator)
            for name, signal in _signals(recipe, accelerator, store, cache, networks).items()
        }
        online = students.keys() - {"none", "cached"}
        warm_up = {name: next(steps)[0] for name, steps in students.items()}
        for name in students.keys() - online:
            list(islice(students[name], WARM_UP_STEPS - 1))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in students}
        for number in range(rounds):
            for name, steps in students.items():
                if name not in online or number < ONLINE_ROUNDS:
                    taken[name].append(next(steps))
        peaks = {name: peak_mb(partial(next, steps), accelerator.device) for name, steps in students.items()}
        for steps in students.values():
            steps.close()
    times = {name: [step for step, _ in steps] for name, steps in taken.items()}
    return {
        **{f"{name}_s": median for name, median in medians(times).items()},
        "kd_overhead": ratio(times, "cached", "none"),
        **{f"{name}_over_cached": ratio(times, name, "cached") for name in times if name in online},
        "loader_share": sum(waited for _, waited in taken["cached"]) / sum(times["cached"]),
        "spread_s": spreads(times),
        "peak_mb": peaks,
        "warm_up_s": warm_up,
        "arch": recipe.student.arch,
        "teacher": recipe.teacher.arch,
        "anatomies": len(store.anatomies),
        **conditions(accelerator, size, batch=recipe.student.batch, rounds=rounds, resident=resident, compiled=compiled),
    }


def _signals(
    recipe: Recipe, accelerator: Accelerator, store: SampleStore, cache: LogitCache, networks: list[Network]
) -> dict[str, TeacherSignal]:
    signals: dict[str, TeacherSignal] = {
        "none": NoTeachers(recipe, store.size),
        "cached": CachedTeachers(cache, recipe, store.size),
        "online": LiveTeachers(TeacherRunner(networks, accelerator), recipe, store.size),
    }
    if recipe.teacher.arch.startswith("segformer"):
        smp = TeacherRunner([reference_smp(network) for network in networks], accelerator)
        signals["online_smp"] = LiveTeachers(smp, recipe, store.size)
    return signals


def bench_stage1(recipe: Recipe, accelerator: Accelerator, size: Size, rounds: int, resident: str) -> Result:
    """The median of a teacher's step in seconds, and the share of it spent waiting for data."""
    teacher = recipe.teacher
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), size, 2 * teacher.batch * len(ANATOMIES))
        steps = training_steps(teacher_task(store, store.anatomies[0], recipe, accelerator, resident), accelerator)
        times, waited = zip(*islice(steps, WARM_UP_STEPS, WARM_UP_STEPS + rounds), strict=True)
        steps.close()
    return {
        "step_s": statistics.median(times),
        "spread_s": [min(times), max(times)],
        "loader_share": sum(waited) / sum(times),
        **conditions(accelerator, size, arch=teacher.arch, batch=teacher.batch, resident=resident, rounds=rounds),
    }
