"""The study of what pictures of other subsets and presence labels gain, shared by processes as `mtkd_cache.study.run` says.

runs/NAME/
  teachers-KIND/ANATOMY/       teachers whose `teacher.negatives` is KIND; those of kind "own" are where the command names them.
                               Where these are one run for all anatomies, teachers-absent is one, too
  logits-KIND.zarr             their cache
  NETWORK/ARM/seedN/           a student, with its evaluations; NETWORK: its architecture and layout
  labels.json labels.md        all figures; the tables
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.dresden import MULTILABEL, patient_of
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.multilabel import evaluate_multilabel
from mtkd_cache.models.records import MultilabelEvaluation, RunRecord, read_as, read_training_records, write_json
from mtkd_cache.recipe import Recipe, recipe_from
from mtkd_cache.storage.folder import write_durably
from mtkd_cache.study.gain.results import read_all
from mtkd_cache.study.jobs import Job
from mtkd_cache.study.labels.arms import ARMS, BASELINE, OFF, Place, kind_of, places
from mtkd_cache.study.labels.false_alarms import read_false_alarms, write_false_alarms
from mtkd_cache.study.labels.results import FIGURES, LABELS, Result, best_arm, gain_over, groups, read_results
from mtkd_cache.study.labels.table import markdown
from mtkd_cache.study.run import Study


@cache
def _multilabel_images(dataset: Path, patients: frozenset[str]) -> int:
    folders = (folder for folder in (dataset / MULTILABEL).iterdir() if patient_of(folder.name) in patients)
    return sum(len(list(folder.glob("image*.png"))) for folder in folders)


@dataclass(frozen=True, kw_only=True)
class LabelsStudy(Study):
    """recipe_of: the recipe with values by key. own: see `places`. dataset: with a multilabel folder, or None.

    layout: of the students, see `mtkd_cache.models.network.create_network`. teacher_run: of the teachers of kind "own", where
    they are one network for all anatomies.
    """

    recipe_of: Callable[[Mapping[str, Any]], Recipe]
    own: Place
    dataset: Path | None
    layout: str | None = None
    teacher_run: RunRecord | None = None

    def __post_init__(self) -> None:
        if self.dataset and not (self.dataset / MULTILABEL).is_dir():
            raise MtkdError(f"{self.dataset} has no folder {MULTILABEL}. Name a dataset's folder that has one, or leave it out.")

    def done(self, job: Job) -> bool:
        if job.kind != "evaluation" or not super().done(job):
            return super().done(job)
        folder, trainings = self.out / job.folder, read_training_records(self.out / job.folder)
        alarms = read_false_alarms(folder, job.split)
        if alarms is None or not alarms.is_of(self.store, trainings):
            return False
        images = self._images(job.split)
        several = read_as(MultilabelEvaluation, folder / MultilabelEvaluation.FILE.format(job.split))
        return not images or (several is not None and several.is_of(trainings) and several.images == images)

    def run(self, job: Job, accelerator: Accelerator) -> None:
        super().run(job, accelerator)
        if job.kind != "evaluation":
            return
        predictor = self.predictor(job, accelerator)
        if self.dataset and self._images(job.split):
            evaluate_multilabel(predictor, self.dataset, self.store, job.split, accelerator)
        if accelerator.is_main_process:
            write_false_alarms(predictor, self.store, job.split)

    def _images(self, split: str) -> int:
        """The number of multilabel images that the dataset has of a split."""
        patients = frozenset(self.store.patients[self.store.rows(split)].tolist())
        return _multilabel_images(self.dataset, patients) if self.dataset else 0

    def teachers_of(self, job: Job) -> Path:
        return self.out / places([job.arm], self.own)[job.arm].teachers

    def teacher(self, job: Job) -> Recipe:
        return self.recipe_of({**OFF, "teacher.negatives": job.arm})

    def layout_of(self, job: Job) -> str | None:
        return self.teacher_run.layout if self.teacher_run and job.arm not in ARMS else self.layout

    def student(self, job: Job) -> tuple[Recipe, LogitCache | None]:
        if self.teacher_run and job.arm not in ARMS:
            return self._of_teacher_run(self.teacher_run), None
        recipe = self.recipe_of({"seed": job.seed, **OFF, **ARMS[job.arm].values})
        kind = kind_of(job.arm, run=self.teacher_run is not None)
        return recipe, LogitCache.open(str(self.out / places([kind], self.own)[kind].cache)) if kind else None

    def _of_teacher_run(self, run: RunRecord) -> Recipe:
        """The recipe of a teacher that is a run, with labels. Raises MtkdError where it was distilled itself."""
        if run.kd:
            raise MtkdError(f"{self.own.teachers} was distilled. Name a run that was trained on masks alone as teachers.")
        base = self.recipe_of(OFF)
        recipe = recipe_from({**base.as_dict(), **run.recipe, "seed": run.seed}, self.own.teachers)
        return replace(recipe, student=replace(recipe.student, negatives="absent", negative_share=base.student.negative_share))

    def report(self, pause: Callable[[], None]) -> dict[str, Any] | None:
        teachers = self.out / self.own.teachers
        return write_labels([self.out], self.out, teachers) if read_results(self.out, teachers) else None


def arms_to_test(study: Path) -> list[str]:
    """The recipe without labels, and the arm that was best on validation. Raises MtkdError where none was evaluated there."""
    best = best_arm(read_results(study))
    if best is None:
        raise MtkdError(f"{study} has no students evaluated on validation to choose from. Run it with --phase choose first.")
    return [BASELINE, best]


def write_labels(studies: Sequence[Path], out: Path, own_teachers: Path | None = None) -> dict[str, Any]:
    """Write the tables of one study, or of several together, into `out`. own_teachers: see `read_results`.

    Returns results (a dict for each network and split), gains (over the recipe without labels, of each arm by group and figure),
    best_arm (on validation, over all the studies), markdown, and files, the paths written. Raises MtkdError for a folder that
    holds no results.
    """
    results = read_all(studies, partial(read_results, own_teachers=own_teachers), "labels")
    content = {"results": [asdict(result) for result in results], "gains": _gains(results), "best_arm": best_arm(results)}
    text = markdown(results)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / LABELS, content)
    write_durably(out / "labels.md", text.encode())
    return {**content, "markdown": text, "files": [str(out / LABELS), str(out / "labels.md")]}


def _gains(results: Sequence[Result]) -> list[dict[str, Any]]:
    found = []
    for group, arms in groups(results).items():
        baseline = arms.get("own" if group[-1] == "teachers" else BASELINE, [])
        for arm, each in arms.items():
            for figure, against in FIGURES:
                gain = gain_over(each, baseline, figure, against) if each is not baseline or against else None
                if gain:
                    found.append({"group": group, "arm": arm, "figure": figure, "against": against or figure, **asdict(gain)})
    return found
