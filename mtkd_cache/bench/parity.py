"""Cached or online: students that differ in what they are shown alone, paired by seed. `mtkd-cache bench parity`

    OUT/
      views.zarr                       the teachers' maps of the plain samples and of recorded views
      NETWORK/LENGTH/ARM/seedN/        a student, with its evaluation; NETWORK: its architecture and layout
      view-gap.json parity.json parity.md parity.png parity.svg

Every arm trains the same network from the same weights on the same batches, in epoch e in the same view e of the samples (but
views-N, which has only the first N). Live teachers are run here alone; no other training imports any.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.bench.parity_report import VIEW_GAP, write_parity
from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.builder import Builder
from mtkd_cache.cache.layout import CachePlan
from mtkd_cache.cache.loader import Batch
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cache.view_gap import Live, measure_view_gap, samples_of
from mtkd_cache.data.augment import Views, draw_views, to_float, warp
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.network import upsample
from mtkd_cache.models.records import EVALUATION, RUN, RunRecord, write_json
from mtkd_cache.recipe import Recipe
from mtkd_cache.storage.folder import Folder
from mtkd_cache.study.gain.arms import LENGTHS, StudentJob
from mtkd_cache.study.gain.results import read_results
from mtkd_cache.study.jobs import Job, check_arms, network_name
from mtkd_cache.study.run import Study
from mtkd_cache.training.loop import Task
from mtkd_cache.training.run_folder import train_or_resume
from mtkd_cache.training.signal import CachedTeachers, NoTeachers, TeacherSignal
from mtkd_cache.training.student import student_config, student_task

CACHE = "views.zarr"
GAP_SAMPLES = 16
MASKS, CACHED, ONLINE, CLEAN = "masks", "cached", "online", "online-clean"
RECORDED = {"views-1": 1, "views-2": 2, "views-4": 4, "views-epochs": 0}  # by arm, the number of views; 0: one an epoch
ARMS = {
    MASKS: "no distillation",
    CACHED: "the stored map of the plain sample, warped with the picture",
    **{name: f"{count or 'as many as epochs'} recorded views, the plain sample the first" for name, count in RECORDED.items()},
    ONLINE: "live teachers on the picture as the student sees it",
    CLEAN: "live teachers on the warped picture without its change of colors",
}


def plan(
    arms: Sequence[str], lengths: Sequence[str], arch: str, seeds: Sequence[int], split: str, layout: str | None = None
) -> list[Job]:
    """The cache, then the trainings with their evaluations: short ones first, then seed by seed.

    Raises MtkdError for an arm that there is not.
    """
    check_arms(arms, ARMS)
    cache = Job("cache", CACHE, arch, "", 0)
    jobs: list[Job] = [cache]
    for length in sorted(lengths, key=lambda name: LENGTHS[name]):
        for seed in seeds:
            for arm in arms:
                place = f"{network_name(arch, layout)}/{length}/{arm}/seed{seed}", arch, arm, seed
                student = StudentJob("student", *place, needs=(cache.name,), length=length)
                jobs += [student, replace(student, kind="evaluation", needs=(student.name,), split=split)]
    return jobs


def paired_views(recipe: Recipe, size: tuple[int, int], hashes: Sequence[str], epoch: int) -> Views:
    """The view of an epoch, the same in every arm and with every seed: that with its number in the cache."""
    return draw_views(recipe.augmentation, None, hashes, epoch % recipe.student.epochs, size)


class PairedMasks(NoTeachers):
    """Masks alone, in the views of the other arms."""

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        return paired_views(self.recipe, self.size, hashes, epoch)


class PairedCache(CachedTeachers):
    """The map of the plain sample, warped by the views of the other arms."""

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        return paired_views(self.recipe, self.size, hashes, epoch)


class RecordedTeachers(CachedTeachers):
    """Recorded views in turn, each with its own maps; the only one is that of the plain sample."""

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        return self.cache.draw_views(hashes, epoch % self.cache.views)


@dataclass(frozen=True)
class PairedTeachers:
    """Live teachers on the views of the other arms. colors: on the picture as the student sees it, or before colors change."""

    live: Live
    recipe: Recipe
    size: tuple[int, int]
    colors: bool = True
    cache: None = None

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        return paired_views(self.recipe, self.size, hashes, epoch)

    def logits(self, batch: Batch, images: Tensor, views: Views) -> Tensor:
        size = (images.shape[2], images.shape[3])
        if not self.colors:
            images = warp(to_float(batch.images), views.affine, size, padding="reflection")
        return torch.cat([upsample(native[:, None], size) for native in self.live(images)], 1)


def first_views(cache: LogitCache, count: int) -> LogitCache:
    """A cache of which only the first views are read."""
    spec = cache.spec
    settings = replace(spec, views=replace(spec.views, count=min(count, spec.n_views)))
    return replace(cache, manifest=replace(cache.manifest, settings=settings))


@dataclass(frozen=True, kw_only=True)
class ParityStudy(Study):
    """recipe_of: the recipe with values by key, as {"student.epochs": 3}. load: the teachers. views: that are recorded.

    layout: of the students, see `mtkd_cache.models.network.create_network`.
    """

    recipe_of: Callable[[Mapping[str, Any]], Recipe]
    load: Callable[[], Teachers]
    views: int
    layout: str | None = None

    @cached_property
    def teachers(self) -> Teachers:
        return self.load()

    def done(self, job: Job) -> bool:
        if job.kind != "cache":
            return super().done(job)
        try:
            cache = LogitCache.open(str(self.out / CACHE))
            cache.check_belongs(self.store, self.store.rows("train"))
        except MtkdError:
            return False
        current = cache.manifest.teachers == self.teachers.info and cache.views >= self.views
        return current and (self.out / VIEW_GAP).exists()

    def run(self, job: Job, accelerator: Accelerator) -> None:
        if job.kind == "cache":
            self._build(accelerator)
        elif isinstance(job, StudentJob) and job.kind == "student":
            self._train(job, accelerator)
        else:
            super().run(job, accelerator)

    def _build(self, accelerator: Accelerator) -> None:
        """The cache with the views of all arms, and the gap that its plain maps leave."""
        recipe = self.recipe_of({"cache.views": self.views})
        temperature = recipe.distillation.temperature
        spec = CacheSpec.of(self.store, self.teachers.stride, recipe, accelerator.mixed_precision)
        build_cache(self.store, self.teachers, spec, str(self.out / CACHE), accelerator, temperature=temperature)
        rows = samples_of(self.store, self.store.rows("train"), GAP_SAMPLES)
        live, device = self._live(LogitCache.open(str(self.out / CACHE)), accelerator), accelerator.device
        gaps = measure_view_gap(live, self.store, rows, recipe.augmentation, recipe.cache.step, temperature, device)
        if accelerator.is_main_process:
            write_json(self.out / VIEW_GAP, gaps)

    def _live(self, cache: LogitCache, accelerator: Accelerator) -> Live:
        """The teachers' logits of images, of each anatomy."""
        plan = CachePlan(settings=cache.spec, temperature=cache.manifest.temperature, samples=())
        return Builder(Folder(cache.url), self.store, self.teachers, plan, accelerator).live

    def _train(self, job: StudentJob, accelerator: Accelerator) -> None:
        epochs = LENGTHS[job.length] * self.recipe.student.epochs
        recipe = self.recipe_of({"seed": job.seed, "student.arch": job.arch, "student.epochs": epochs})
        folder, cache = self.out / job.folder, LogitCache.open(str(self.out / CACHE))
        if accelerator.is_main_process and not self.done(job):
            (folder / EVALUATION.format(job.split)).unlink(missing_ok=True)
        config = student_config(self.store, recipe, job.arm != MASKS, self.layout)
        config |= {"arm": job.arm, "cache_fingerprint": cache.fingerprint}
        make_task = partial(self._task, recipe, job.arm, cache, accelerator)
        details = {"teachers": cache.manifest.teachers} if job.arm != MASKS else {}
        try:
            train_or_resume(RunRecord, folder / RUN, config, make_task, accelerator, self.store, details)
        finally:
            accelerator.free_memory()

    def _task(self, recipe: Recipe, arm: str, cache: LogitCache, accelerator: Accelerator) -> Task:
        signal = self._signal(recipe, arm, cache, accelerator)
        task = student_task(self.store, recipe, accelerator, signal, self.resident, layout=self.layout)
        return task if arm == MASKS else replace(task, inherited=task.inherited | self.teachers.seen)

    def _signal(self, recipe: Recipe, arm: str, cache: LogitCache, accelerator: Accelerator) -> TeacherSignal:
        size = self.store.size
        if arm == MASKS:
            return PairedMasks(recipe, size)
        if arm == CACHED:
            return PairedCache(first_views(cache, 1), recipe, size)
        if arm in RECORDED:
            return RecordedTeachers(first_views(cache, RECORDED[arm] or recipe.student.epochs), recipe, size)
        return PairedTeachers(self._live(cache, accelerator), recipe, size, colors=arm == ONLINE)

    def report(self, pause: Callable[[], None]) -> dict[str, Any] | None:
        return write_parity([self.out], self.out) if read_results(self.out) else None
