"""The arms of the study, and its jobs: teachers and their cache differ by arm, so they are jobs, too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtkd_cache.study.jobs import Job, check_arms, network_name

BASELINE = "plain"
OFF = {"teacher.negatives": "own", "student.negatives": "exclusive", "distillation.correct": "none"}


@dataclass(frozen=True)
class Arm:
    """How a student is trained. teachers: the `teacher.negatives` of its teachers, None without distillation.

    values: of the recipe, by key, beside those that are `OFF`.
    """

    teachers: str | None = "own"
    values: Mapping[str, Any] = field(default_factory=dict)


ABSENT = {"student.negatives": "absent"}
MOVE, LEAVE_OUT = {"distillation.correct": "move"}, {"distillation.correct": "leave_out"}
ARMS = {
    BASELINE: Arm(),
    "teachers-exclusive": Arm("exclusive"),
    "teachers-absent": Arm("absent"),
    "teachers-both": Arm("both"),
    "student-absent": Arm(values=ABSENT),
    "move": Arm(values=MOVE),
    "leave-out": Arm(values=LEAVE_OUT),
    "stages": Arm("both", ABSENT),
    "stages-move": Arm("both", {**ABSENT, **MOVE}),
    "stages-leave-out": Arm("both", {**ABSENT, **LEAVE_OUT}),
    "masks": Arm(None),
    "masks-absent": Arm(None, ABSENT),
}


OF_RUN = {"own": "own", "exclusive": "own", "absent": "absent", "both": "absent"}


def kind_of(arm: str, run: bool) -> str | None:
    """The kind of an arm's teachers; None without distillation.

    run: they are one network for all anatomies, a student's run. Its pictures are exclusive anyway, and what labels call absent
    it learns as students do.
    """
    kind = ARMS[arm].teachers
    return OF_RUN[kind] if kind and run else kind


def all_arms(run: bool) -> list[str]:
    """The arms that differ. run: see `kind_of`."""
    distinct: dict[tuple[Any, ...], str] = {}
    for name, arm in ARMS.items():
        distinct.setdefault((kind_of(name, run), *arm.values.items()), name)
    return list(distinct.values())


@dataclass(frozen=True)
class Place:
    """Where the teachers of a kind and their cache are, relative to the study's folder or absolute."""

    teachers: str
    cache: str


def places(kinds: Sequence[str], own: Place) -> dict[str, Place]:
    """The place of each kind of teachers; own: of those that learn from their own subset alone."""
    return {kind: own if kind == "own" else Place(f"teachers-{kind}", f"logits-{kind}.zarr") for kind in kinds}


def plan(
    own: Place,
    anatomies: Sequence[str],
    arch: str,
    student: tuple[str, str | None],
    split: str,
    arms: Sequence[str],
    seeds: Sequence[int],
) -> list[Job]:
    """The jobs of some arms, each after those it needs: teachers and caches by kind, students by seed, all evaluated on a split.

    own: see `places`. anatomies: of the teachers; empty where they are a student's run, see `kind_of`. arch: of the teachers.
    student: architecture and layout of the students. The `arm` of a teacher's or cache's job is the kind.
    Raises MtkdError for an arm that there is not.
    """
    check_arms(arms, ARMS)
    taught_by = {arm: kind_of(arm, run=not anatomies) for arm in arms}
    kinds = [kind for kind in dict.fromkeys(taught_by.values()) if kind]
    jobs: list[Job] = []
    for kind, place in places(kinds, own).items():
        teachers = [Job("teacher", f"{place.teachers}/{anatomy}", arch, kind, 0, anatomy) for anatomy in anatomies]
        if not anatomies and kind != "own":
            teachers = [Job("student", place.teachers, arch, kind, 0)]
        trained = tuple(job.name for job in teachers)
        jobs += [*teachers, Job("cache", place.cache, arch, kind, 0, needs=trained)]
        jobs.append(Job("evaluation", place.teachers, arch, kind, 0, needs=trained, split=split))
    caches = {job.arm: (job.name,) for job in jobs if job.kind == "cache"}
    for seed in seeds:
        for arm in arms:
            described = f"{network_name(*student)}/{arm}/seed{seed}", student[0], arm, seed
            training = Job("student", *described, needs=caches.get(taught_by[arm] or "", ()))
            jobs += [training, Job("evaluation", *described, needs=(training.name,), split=split)]
    return jobs
