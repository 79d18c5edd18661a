"""The student's step three ways in turn: without distillation, with cached logits, with the teachers run in every step."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.bench.machine import machine, peak_mb, start_peak
from mtkd_cache.bench.synthetic import make_cache, make_store
from mtkd_cache.cache.loader import Batch
from mtkd_cache.cache.teacher_runner import TeacherRunner
from mtkd_cache.data.augment import apply_views, draw_views
from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.losses import channelwise_kl, distillation_objective, exclusive_cross_entropy
from mtkd_cache.models.network import create_network, upsample
from mtkd_cache.models.segformer import reference_smp
from mtkd_cache.recipe import Recipe
from mtkd_cache.runtime.timing import ratio, spread, wait
from mtkd_cache.training.loop import Task
from mtkd_cache.training.student import student_task

SETTLING = 3  # steps before those that count
ONLINE_ROUNDS = 2  # turns of the way that takes minutes a step on a CPU, which settles in one


def bench_stage2(
    recipe: Recipe, size: tuple[int, int], rounds: int, accelerator: Accelerator, resident: str = "off", compiled: bool = False
) -> dict:
    """Medians of a step in seconds with their spread, the share of a step spent waiting for data, and peak memory.

    recipe: its student, its teachers' architecture, its batch. size: (width, height). The weights and the samples are synthetic.
    Where the teachers are SegFormers, online_smp is a step with smp's own modules for teachers.
    compiled: all three students; warm_up_s is the first step of each.
    """
    torch.manual_seed(0)
    teachers = TeacherRunner([create_network(recipe.teacher.arch, 1) for _ in ANATOMIES], accelerator)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), size, 2 * recipe.student.batch)
        cache = make_cache(Path(folder), store, recipe, teachers.networks[0].stride, accelerator)
        ways = {
            "none": Way(student_task(store, recipe, accelerator, None, resident, compiled), accelerator),
            "cached": Way(student_task(store, recipe, accelerator, cache, resident, compiled), accelerator),
            "online": Way(online_task(store, recipe, accelerator, teachers, resident, compiled), accelerator),
        }
        if recipe.teacher.arch.startswith("segformer"):
            own = TeacherRunner([reference_smp(network) for network in teachers.networks], accelerator)
            ways["online_smp"] = Way(online_task(store, recipe, accelerator, own, resident, compiled), accelerator)
        warm_up = {name: way.warm_up(1 if "online" in name else SETTLING) for name, way in ways.items()}
        for turn in range(rounds):
            for name, way in ways.items():
                if "online" not in name or turn < ONLINE_ROUNDS:
                    way.step()
        peaks = {name: way.peak() for name, way in ways.items()}
        for way in ways.values():
            way.close()
    times = {name: way.times for name, way in ways.items()}
    return {
        **{f"{name}_s": statistics.median(taken) for name, taken in times.items()},
        "kd_overhead": ratio(times, "cached", "none"),
        **{f"{name}_over_cached": ratio(times, name, "cached") for name in ways if "online" in name},
        "loader_share": sum(ways["cached"].waited) / sum(times["cached"]),
        "spread_s": {name: spread(taken) for name, taken in times.items()},
        "peak_mb": peaks,
        "arch": recipe.student.arch,
        "teacher": recipe.teacher.arch,
        "size": list(size),
        "batch": recipe.student.batch,
        "anatomies": len(store.anatomies),
        "rounds": rounds,
        "resident": resident,
        "compiled": compiled,
        "warm_up_s": warm_up,
        "precision": accelerator.mixed_precision,
        "machine": machine(accelerator.device),
    }


class Way:
    """One of the three: a student of its own, and how its steps went."""

    def __init__(self, task: Task, accelerator: Accelerator):
        self.task, self.accelerator, self.device = task, accelerator, accelerator.device
        self.network, self.optimizer = task.start(self.device)
        self.network.train()
        self.batches = self._batches()
        self.times: list[float] = []
        self.waited: list[float] = []

    def warm_up(self, steps: int = SETTLING) -> float:
        """Steps that do not count, in which memory finds its place; the seconds of the first."""
        for _ in range(steps):
            self.step()
        taken = self.times[0]
        for noted in (self.times, self.waited):
            noted.clear()
        return taken

    def peak(self) -> float:
        """Most memory in use during one more step, MB."""
        start_peak(self.device)
        self.step()
        for noted in (self.times, self.waited):
            noted.pop()
        return peak_mb(self.device)

    def close(self) -> None:
        self.batches.close()

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        epoch = 0
        while True:
            for batch in self.task.batches(epoch):
                yield epoch, batch
            epoch += 1

    def step(self) -> None:
        """A step as `mtkd_cache.training.loop.fit` takes it."""
        wait(self.device)
        start = time.perf_counter()
        epoch, batch = next(self.batches)
        waited = time.perf_counter() - start
        batch = batch.to(self.device)
        with self.accelerator.autocast():
            loss = self.task.losses(self.network, batch, epoch)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        wait(self.device)
        self.times.append(time.perf_counter() - start)
        self.waited.append(waited)


def online_task(
    store: SampleStore,
    recipe: Recipe,
    accelerator: Accelerator,
    teachers: TeacherRunner,
    resident: str = "off",
    compiled: bool = False,
) -> Task:
    """The student's task with its teachers run on every view it sees, as without a cache."""
    task = student_task(store, recipe, accelerator, None, resident, compiled)

    def losses(forward, batch: Batch, epoch: int) -> dict[str, Tensor]:
        views = draw_views(recipe.augmentation, task.seed, store.hashes[batch.rows], epoch + 1, store.size)
        images, masks, valid = apply_views(batch.images, batch.masks, views.to(batch.images.device))
        native = torch.stack([teachers.native(anatomy, images) for anatomy in range(len(ANATOMIES))], dim=1)
        logits = forward(images).float()
        teacher = upsample(native, images.shape[2:])
        kl = channelwise_kl(logits, teacher, recipe.distillation.temperature, valid)
        cross_entropy = exclusive_cross_entropy(logits, masks, batch.anatomy, valid)
        return {"loss": distillation_objective(cross_entropy, kl, recipe.distillation.weight, recipe.distillation.combine)}

    task.losses = losses
    return task
