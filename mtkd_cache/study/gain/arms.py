"""The arms of the study, and its jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtkd_cache.study.jobs import Job, check_arms, network_name

BASELINE, PAPER = "masks", "kl"
OBJECTIVE = {"distillation.term": "kl", "distillation.weight": 3.0, "distillation.combine": "sum"}  # of the paper
ARMS: dict[str, dict[str, Any]] = {  # by name, what differs from that and the recipe; those called masks have no teacher
    BASELINE: {},
    "masks-prior": {"student.prior_bias": True},
    "masks-heads": {"student.cross_entropy": "heads"},
    "masks-balanced": {"student.balanced": True},
    PAPER: {},
    "printed": {"distillation.combine": "printed"},
    "sigmoid": {"distillation.term": "sigmoid"},
    "sigmoid+kl": {"distillation.term": "sigmoid+kl", "distillation.weight": 0.3},
    "pearson": {"distillation.term": "pearson"},
    "standardized": {"distillation.term": "standardized", "distillation.temperature": 2.0},  # Sun et al.'s temperature
}
LENGTHS = {"short": 1, "long": 4}  # by name, how many times the recipe's epochs
ARCHITECTURES = ("mininetv2", "segformer-mit_b0")
SPLITS = {"choose": "validation", "test": "test"}  # by phase
SEEDS = {"choose": (0, 1, 2), "test": (10, 11, 12, 13, 14)}


@dataclass(frozen=True)
class StudentJob(Job):
    """A student's training or evaluation. length: one of LENGTHS."""

    length: str = "short"

    @property
    def distilled(self) -> bool:
        return not self.arm.startswith(BASELINE)


def plan(
    teachers: str,
    split: str,
    arms: Sequence[str],
    lengths: Sequence[str],
    archs: Sequence[str],
    seeds: Sequence[int],
    layout: str | None = None,
) -> list[Job]:
    """The trainings and their evaluations on a split, and the teachers' evaluation; short trainings first, then by seed.

    teachers: the folder of the teachers. layout: of the students, see `mtkd_cache.models.network.create_network`.
    Raises MtkdError for an arm that there is not.
    """
    check_arms(arms, ARMS)
    jobs = [Job("evaluation", teachers, "", "teachers", 0, split="validation")]  # which also chooses their operating points
    if split != "validation":
        jobs.append(replace(jobs[0], split=split, needs=(jobs[0].name,)))
    for length in sorted(lengths, key=lambda name: LENGTHS[name]):
        for seed in seeds:
            for arch in archs:
                for arm in arms:
                    place = f"{network_name(arch, layout)}/{length}/{arm}/seed{seed}", arch, arm, seed
                    student = StudentJob("student", *place, length=length)
                    jobs += [student, StudentJob("evaluation", *place, needs=(student.name,), split=split, length=length)]
    return jobs
