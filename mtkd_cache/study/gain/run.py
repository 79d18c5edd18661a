"""The study of what distillation gains, shared by processes and machines as `mtkd_cache.study.run` says.

runs/NAME/
  NETWORK/LENGTH/ARM/seedN/    a student, with its evaluations; NETWORK: its architecture and layout
  exclusion-shift.json         how far negatives by exclusion lower each head's logits
  gain.json gain.md            all figures; the tables
  thresholds.png thresholds.svg
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.records import read_evaluation, write_json
from mtkd_cache.recipe import Recipe
from mtkd_cache.storage.folder import write_durably
from mtkd_cache.study.gain.arms import ARMS, BASELINE, LENGTHS, OBJECTIVE, PAPER, SPLITS, StudentJob
from mtkd_cache.study.gain.results import SHIFTS, TEACHERS, best_arm, gains, read_all, read_results, read_teachers
from mtkd_cache.study.gain.table import groups, markdown, threshold_figure
from mtkd_cache.study.jobs import Job
from mtkd_cache.study.run import Study
from mtkd_cache.training.balance import exclusion_shift


@dataclass(frozen=True, kw_only=True)
class GainStudy(Study):
    """recipe_of: the recipe with values by key, as {"student.epochs": 3}. teachers, cache: whose students are trained.

    layout: of the students, see `mtkd_cache.models.network.create_network`.
    """

    recipe_of: Callable[[Mapping[str, Any]], Recipe]
    teachers: Path
    cache: str
    layout: str | None = None

    def layout_of(self, job: Job) -> str | None:
        return self.layout

    def student(self, job: Job) -> tuple[Recipe, LogitCache | None]:
        assert isinstance(job, StudentJob)
        epochs = LENGTHS[job.length] * self.recipe.student.epochs
        values = {"seed": job.seed, "student.arch": job.arch, "student.epochs": epochs, **OBJECTIVE, **ARMS[job.arm]}
        return self.recipe_of(values), LogitCache.open(self.cache) if job.distilled else None

    def report(self, pause: Callable[[], None]) -> dict[str, Any] | None:
        for split in SPLITS.values():
            if evaluation := read_evaluation(self.teachers, split):
                write_json(self.out / TEACHERS.format(split), evaluation.to_json())
        shifts = exclusion_shift(self.store, self.store.rows("train"))
        write_json(self.out / SHIFTS, dict(zip(self.store.anatomies, shifts, strict=True)))
        return write_gain([self.out], self.out) if read_results(self.out) else None


def arms_to_test(study: Path) -> list[str]:
    """Masks alone, the paper's KL, and the arm that was best on validation. Raises MtkdError where none was evaluated there."""
    best = best_arm(read_results(study))
    if best is None:
        raise MtkdError(f"{study} has no students evaluated on validation to choose from. Run it with --phase choose first.")
    return list(dict.fromkeys([BASELINE, PAPER, best]))


def write_gain(studies: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the tables and figures of one study, or of several together, into `out`.

    Returns results (a dict for each student and split), gains (over masks and over the KL, for each arm, by group), teachers,
    best_arm (on validation, over all the studies), markdown, and files, the paths written. Raises MtkdError for a folder that
    holds no results.
    """
    results = read_all(studies, read_results, "gain")
    teachers = {study.name: read_teachers(study) for study in studies}
    text = markdown(results, teachers)
    out.mkdir(parents=True, exist_ok=True)
    figures = threshold_figure(results, out / "thresholds")
    content = {
        "results": [asdict(result) for result in results],
        "gains": [
            {"group": group, "arm": arm, **asdict(found)}
            for group, arms in groups(results)
            for arm in arms
            for found in gains(arm, arms).values()
        ],
        "teachers": teachers,
        "best_arm": best_arm(results),
    }
    write_json(out / "gain.json", content)
    write_durably(out / "gain.md", text.encode())
    return {**content, "markdown": text, "files": [str(path) for path in (out / "gain.json", out / "gain.md", *figures)]}
