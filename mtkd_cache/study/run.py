"""The whole study: the rows of Table 1 as jobs, which any number of processes and machines share.

    runs/NAME/
      teachers-ARCH/ANATOMY/       a separate row, one network an anatomy; those of recipe.teacher.arch teach the distilled rows
      logits.zarr                  the logits of those teachers, one cache for all distilled rows
      ARCH-no-kd-seedN/            a shared row without distillation
      ARCH-kd-seedN/               a shared row with it
      bench-inference.json         times for the report: what `mtkd-cache bench inference --json` prints, which `make paper` runs
      report/

A job is one command (`mtkd_cache.study.jobs.command_of`), and it is done when its result is there: a study resumes after an
interruption, and a job done by hand counts. A process locks the folder of its job; the others take another job and come back.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.evaluation.dice import evaluate
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS
from mtkd_cache.models.own import is_own
from mtkd_cache.models.records import EVALUATION, read_evaluation, read_run, read_teacher, read_training_records
from mtkd_cache.recipe import Recipe
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.study.jobs import CACHE, KD, Job
from mtkd_cache.study.report.write import write_report
from mtkd_cache.training.student import train_student
from mtkd_cache.training.teachers import train_teachers

EVALUATED = EVALUATION.format("test")
PAUSE = partial(time.sleep, 10.0)  # before jobs that other processes are doing are looked at again
END, WAIT = -1, -2
TRAINED = ("teacher", "student")  # kinds of jobs


@dataclass(frozen=True)
class Study:
    """A study's folder and how its jobs are done. resident: see `mtkd_cache.cache.loader.preload`."""

    out: Path
    store: SampleStore
    recipe: Recipe
    resident: str = "auto"

    def done(self, job: Job) -> bool:
        """Whether a job's result is there. `run` compares the settings of a training that is done with the recipe's."""
        folder = self.out / job.folder
        if job.kind == "cache":
            return self._cache_is_current(folder, self.teachers_of(job))
        if job.kind == "evaluation":
            evaluation = read_evaluation(folder, job.split)
            if evaluation is None or evaluation.store_fingerprint != self.store.fingerprint:
                return False
            return evaluation.is_of(read_training_records(folder))
        record = read_teacher(folder) if job.kind == "teacher" else read_run(folder)
        return record is not None and (folder / WEIGHTS).exists()

    def _cache_is_current(self, folder: Path, teachers: Path) -> bool:
        try:
            cache = LogitCache.open(str(folder))
            cache.check_belongs(self.store, self.store.rows("train"))
        except MtkdError:
            return False
        run = read_run(teachers)
        records = {anatomy: run or read_teacher(teachers / anatomy) for anatomy in cache.manifest.teachers}
        return all(
            (record := records[anatomy]) is not None and record.weights_sha256 == used["weights_sha256"]
            for anatomy, used in cache.manifest.teachers.items()
        )

    def lock(self, job: Job) -> Folder:
        """The folder whose lock stands for a job. `build_cache` locks the cache itself, so the study's folder stands for it.

        Trainings lock their folder themselves as well: of these the lock is only tried.
        """
        return Folder(self.out if job.kind == "cache" else self.out / job.folder)

    def run(self, job: Job, accelerator: Accelerator) -> None:
        """Do a job; a network that is already trained is compared with the recipe and left as it is. Raises MtkdError."""
        folder = self.out / job.folder
        if job.kind in TRAINED and accelerator.is_main_process and not self.done(job):
            for evaluation in (folder.parent if job.kind == "teacher" else folder).glob(EVALUATION.format("*")):
                evaluation.unlink()
        try:
            if job.kind == "teacher":
                train_teachers(self.store, folder.parent, self.teacher(job), accelerator, [job.anatomy], self.resident)
            elif job.kind == "cache":
                teachers = Teachers.gather([self.teachers_of(job)], self.store)
                spec = CacheSpec.of(self.store, teachers.stride, self.recipe, accelerator.mixed_precision)
                temperature = self.recipe.distillation.temperature
                build_cache(self.store, teachers, spec, str(folder), accelerator, temperature=temperature)
            elif job.kind == "student":
                recipe, cache = self.student(job)
                train_student(self.store, folder, recipe, accelerator, cache, self.resident, layout=self.layout_of(job))
            else:
                evaluate(self.predictor(job, accelerator), self.store, job.split, accelerator)
        finally:
            accelerator.free_memory()

    def predictor(self, job: Job, accelerator: Accelerator) -> Predictor:
        """What an evaluation judges. The code of a network of your own is imported because the study names it."""
        named = job.arch if is_own(job.arch) else None
        return Predictor.load(self.out / job.folder, accelerator.device, self.store.anatomies, named)

    def layout_of(self, job: Job) -> str | None:
        """A student's layout, see `mtkd_cache.models.network.create_network`."""
        return None

    def teachers_of(self, job: Job) -> Path:
        """The folder of the teachers whose logits a cache holds."""
        return self.out / f"teachers-{job.arch}"

    def teacher(self, job: Job) -> Recipe:
        """What a teacher is trained with."""
        return replace(self.recipe, teacher=replace(self.recipe.teacher, arch=job.arch))

    def student(self, job: Job) -> tuple[Recipe, LogitCache | None]:
        """What a student is trained with."""
        recipe = replace(self.recipe, seed=job.seed, student=replace(self.recipe.student, arch=job.arch))
        return recipe, LogitCache.open(str(self.out / CACHE)) if job.arm == KD else None

    def report(self, pause: Callable[[], None]) -> dict[str, Any] | None:
        """Write the report of every row that is evaluated in the study's folder, also by others; None where there is none."""
        evaluated = sorted(path.parent for path in self.out.glob(f"*/{EVALUATED}"))
        if not evaluated:
            return None
        while True:
            try:
                with locked(Folder(self.out / "report")):
                    return write_report(evaluated, self.out / "report", store=self.store.url)
            except LockedError:
                pause()


@dataclass
class Progress:
    """What one process knows of the jobs: those done, those made here, and those that failed here, with their error."""

    study: Study
    jobs: Sequence[Job]
    accelerator: Accelerator
    say: Callable[[str], None]
    done: set[str] = field(default_factory=set)
    made: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def step(self) -> int:
        """Do the first job that is free. Returns END where there is none, WAIT where other processes have the rest."""
        main = self.accelerator.is_main_process
        with ExitStack() as held:
            number: int = broadcast_object_list([self._take(held) if main else END])[0]
            if number in (END, WAIT):
                return number
            job = self.jobs[number]
            if main:
                self.say(f"[{len(self.done) + 1}/{len(self.jobs)}] {job.name}")
            try:
                self.study.run(job, self.accelerator)
            except LockedError:
                return WAIT  # another process has begun it since
            except MtkdError as error:
                if self.accelerator.num_processes > 1:
                    raise
                self._fail(job, error)
            else:
                self.done.add(job.name)
                self.made.append(job.name)
            return number

    def _take(self, held: ExitStack) -> int:
        """Lock the first job that is to be done and return its number; END, or WAIT for what others do."""
        waiting = False
        for number, job in enumerate(self.jobs):
            if job.name in self.done or job.name in self.failed or not self.done.issuperset(job.needs):
                continue
            try:
                if self._is_done(job):
                    continue
                with ExitStack() as attempt:
                    attempt.enter_context(locked(self.study.lock(job)))
                    if job.kind in TRAINED:
                        attempt.close()
                    if not self._is_done(job):
                        held.push(attempt.pop_all())
                        return number
            except LockedError:
                waiting = True
            except MtkdError as error:
                self._fail(job, error)
        return WAIT if waiting else END

    def _is_done(self, job: Job) -> bool:
        """Whether a job is done, also by another process. Raises MtkdError where it was trained with other settings."""
        if not self.study.done(job):
            return False
        if job.kind in TRAINED:
            self.study.run(job, self.accelerator)
        self.done.add(job.name)
        return True

    def _fail(self, job: Job, error: MtkdError) -> None:
        self.failed[job.name] = str(error)
        self.say(f"{job.name} failed: {error}")


def run_study(
    study: Study,
    jobs: Sequence[Job],
    accelerator: Accelerator,
    say: Callable[[str], None] = print,
    pause: Callable[[], None] = PAUSE,
) -> dict[str, Any]:
    """Do the jobs that are not done, wait for those that other processes are doing, and write the report.

    say: called with a message for people, in the main process alone. pause: called before the jobs of others are tried again.
    Returns study, units (the number of jobs), done, made (here), seconds, report. After a job that fails, all that do not need it
    are still done, and the failures are one MtkdError at the end. Under accelerate launch the first failure ends the study.
    """
    started = time.perf_counter()
    main = accelerator.is_main_process
    if main:
        study.out.mkdir(parents=True, exist_ok=True)
    progress = Progress(study, jobs, accelerator, say)
    while (step := progress.step()) != END:
        if step == WAIT and main:
            pause()
    report = study.report(pause) if main else None
    if progress.failed:
        waiting = len(jobs) - len(progress.done) - len(progress.failed)
        raise MtkdError(
            f"{len(progress.failed)} of {len(jobs)} jobs failed and {waiting} wait for them; the first: "
            f"{next(iter(progress.failed.values()))} Then run the same command again."
        )
    return {
        "study": str(study.out),
        "units": len(jobs),
        "done": len(progress.done),
        "made": progress.made,
        "seconds": time.perf_counter() - started,
        "report": report,
    }
