"""The whole study: the rows of Table 1 as units of work, which any number of processes and machines share.

    runs/NAME/
      teachers-ARCH/ANATOMY/       a separate row, one network an anatomy; those of recipe.teacher.arch teach the distilled rows
      logits.zarr                  what those teachers say, one cache for all distilled rows
      ARCH-no-kd-seedN/            a shared row without distillation
      ARCH-kd-seedN/               a shared row with it
      bench-inference.json         times for the report: what `mtkd-cache bench inference --json` prints, which `make paper` runs
      report/

A unit is one command (`mtkd_cache.study.jobs.command_of`), and what it writes is all that says it is done: a study goes on wherever it
stopped, and a unit made by hand counts. Who works on a unit holds its folder's lock; the others take another one and come back.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mtkd_cache.cache.build import build
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.evaluation.dice import evaluate_student, evaluate_teachers
from mtkd_cache.models.checkpoints import WEIGHTS
from mtkd_cache.models.records import STUDENT, TEACHER, is_current, read_record, read_trainings
from mtkd_cache.recipe import Recipe
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.study.jobs import CACHE, KD, SEPARATE, Job
from mtkd_cache.study.report.write import write_report
from mtkd_cache.training.student import train_student
from mtkd_cache.training.teachers import train_teachers

EVALUATION = "evaluation-test.json"
PAUSE = 10.0  # seconds before units that other processes hold are looked at again
END, WAIT = -1, -2
TRAINED = ("teacher", "student")  # kinds of units


@dataclass(frozen=True)
class Study:
    """A study's folder and what is done in it. resident: see `mtkd_cache.cache.loader.preload`."""

    out: Path
    store: SampleStore
    recipe: Recipe
    resident: str = "auto"

    def done(self, unit: Job) -> bool:
        """Whether a unit's result is there. Of which settings it is, is seen by `run`, which then only looks."""
        folder = self.out / unit.folder
        if unit.kind == "cache":
            return self._cache_is_current(folder)
        if unit.kind == "evaluation":
            record = read_record(folder / EVALUATION)
            fits = record is not None and record.get("store_fingerprint") == self.store.fingerprint
            return fits and is_current(record, read_trainings(folder))
        record = read_record(folder / (TEACHER if unit.kind == "teacher" else STUDENT))
        return record is not None and (folder / WEIGHTS).exists()

    def _cache_is_current(self, folder: Path) -> bool:
        try:
            cache = LogitCache.open(str(folder))
            cache.check_belongs(self.store, self.store.rows("train"))
        except MtkdError:
            return False
        for anatomy, about in cache.manifest["teachers"].items():
            record = read_record(self.out / f"teachers-{self.recipe.teacher.arch}" / anatomy / TEACHER) or {}
            if record.get("weights_sha256") != about["weights_sha256"]:
                return False
        return True

    def lock(self, unit: Job) -> Folder:
        """The folder whose lock stands for a unit. `build` locks the cache by itself, so the study's folder stands for it.

        So do trainings their folder: of these the lock is only looked at.
        """
        return Folder(self.out if unit.kind == "cache" else self.out / unit.folder)

    def run(self, unit: Job, accelerator: Accelerator) -> None:
        """Do a unit; a network that is trained is compared with the recipe and left as it is. Raises MtkdError."""
        folder = self.out / unit.folder
        if unit.kind in TRAINED and accelerator.is_main_process and not self.done(unit):
            (folder.parent if unit.kind == "teacher" else folder).joinpath(EVALUATION).unlink(missing_ok=True)
        try:
            if unit.kind == "teacher":
                recipe = replace(self.recipe, teacher=replace(self.recipe.teacher, arch=unit.arch))
                train_teachers(self.store, folder.parent, recipe, accelerator, [unit.anatomy], self.resident)
            elif unit.kind == "cache":
                build(self.store, self.out / f"teachers-{unit.arch}", str(folder), self.recipe, accelerator)
            elif unit.kind == "student":
                recipe = replace(self.recipe, seed=unit.seed, student=replace(self.recipe.student, arch=unit.arch))
                cache = LogitCache.open(str(self.out / CACHE)) if unit.arm == KD else None
                train_student(self.store, folder, recipe, accelerator, cache, self.resident)
            else:
                evaluate = evaluate_teachers if unit.arm == SEPARATE else evaluate_student
                evaluate(folder, self.store, "test", accelerator)
        finally:
            accelerator.free_memory()

    def report(self, pause: Callable[[], None]) -> dict | None:
        """Write the report of every row that is evaluated in the study's folder, also by others; None where there is none."""
        evaluated = sorted(path.parent for path in self.out.glob(f"*/{EVALUATION}"))
        if not evaluated:
            return None
        with ExitStack() as held:
            while not _enter(held, Folder(self.out / "report")):
                pause()
            return write_report(evaluated, self.out / "report", store=self.store.url)


def _enter(held: ExitStack, folder: Folder) -> bool:
    """Lock a folder until `held` ends; False where another process has it."""
    try:
        held.enter_context(locked(folder))
    except LockedError:
        return False
    return True


@dataclass
class Progress:
    """What one process knows of the units: those that are done, and those that failed here, with their error."""

    study: Study
    units: list[Job]
    accelerator: Accelerator
    tell: Callable[[str], None]
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def take(self, held: ExitStack) -> int:
        """Lock the first unit that is to be done and return its number; END, or WAIT for what others do."""
        waiting = False
        for number, unit in enumerate(self.units):
            if unit.name in self.done or unit.name in self.failed or not self.done.issuperset(unit.needs):
                continue
            try:
                if self._found(unit):
                    continue
                with ExitStack() as attempt:
                    if not _enter(attempt, self.study.lock(unit)):
                        waiting = True
                        continue
                    if unit.kind in TRAINED:
                        attempt.close()
                    if not self._found(unit):
                        held.push(attempt.pop_all())
                        return number
            except MtkdError as error:
                self.fail(unit, error)
        return WAIT if waiting else END

    def _found(self, unit: Job) -> bool:
        """Whether a unit is done, be it by another process. Raises MtkdError where it was trained with other settings."""
        if not self.study.done(unit):
            return False
        if unit.kind in TRAINED:
            self.study.run(unit, self.accelerator)
        self.done.add(unit.name)
        return True

    def fail(self, unit: Job, error: MtkdError) -> None:
        self.failed[unit.name] = str(error)
        self.tell(f"{unit.name} failed: {error}")


def _sleep() -> None:
    time.sleep(PAUSE)


def run_study(
    study: Study,
    units: Sequence[Job],
    accelerator: Accelerator,
    tell: Callable[[str], None] = print,
    pause: Callable[[], None] = _sleep,
) -> dict:
    """Do the units that are not done, wait for those that other processes hold, and write the report.

    tell: called with a line for people, in the main process alone. pause: called before units that others hold are tried again.
    Returns study, units, done, made (here), seconds, report. A unit that fails is told and left, and so is what needs it; the
    rest goes on, and the failures are one MtkdError at the end. Under accelerate launch the first failure ends the study.
    """
    started = time.perf_counter()
    main = accelerator.is_main_process
    if main:
        _make(study.out)
    progress = Progress(study, list(units), accelerator, tell)
    made: list[str] = []
    while True:
        with ExitStack() as held:
            number = broadcast_object_list([progress.take(held) if main else END])[0]
            if number == END:
                break
            if number != WAIT:
                unit = progress.units[number]
                if main:
                    tell(f"[{len(progress.done) + 1}/{len(units)}] {unit.name}")
                try:
                    study.run(unit, accelerator)
                except LockedError:
                    number = WAIT  # another process has begun it since
                except MtkdError as error:
                    if accelerator.num_processes > 1:
                        raise
                    progress.fail(unit, error)
                else:
                    progress.done.add(unit.name)
                    made.append(unit.name)
        if number == WAIT and main:
            pause()
    report = study.report(pause) if main else None
    if progress.failed:
        waiting = len(units) - len(progress.done) - len(progress.failed)
        raise MtkdError(
            f"{len(progress.failed)} of {len(units)} units failed and {waiting} wait for them; the first: "
            f"{next(iter(progress.failed.values()))} Then run the same command again."
        )
    return {
        "study": str(study.out),
        "units": len(units),
        "done": len(progress.done),
        "made": made,
        "seconds": time.perf_counter() - started,
        "report": report,
    }


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtkdError(f"{out} cannot be made ({error.strerror}). Name another folder with --out.") from error
