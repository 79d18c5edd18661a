"""The rows of Table 1 as jobs, each after those it depends on, and the command that does each by hand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Recipe
from mtkd_cache.study.published import published

CACHE = "logits.zarr"
SEPARATE, NO_KD, KD = "separate", "no-kd", "kd"  # the arms of Table 1


@dataclass(frozen=True)
class Job:
    """One step of the study.

    kind: "teacher", "cache", "student" or "evaluation". folder: where it writes, below the study's folder.
    needs: the names of the jobs it depends on. seed: of a student, or of the teachers. anatomy: of a teacher. split: of an
    evaluation.
    """

    kind: str
    folder: str
    arch: str
    arm: str
    seed: int
    anatomy: str = ""
    needs: tuple[str, ...] = ()
    split: str = "test"

    @property
    def name(self) -> str:
        return f"{self.kind} {self.folder}" + ("" if self.split == "test" else f" on {self.split}")


def network_name(arch: str, layout: str | None = None) -> str:
    """A student's network as folders are named for it: mininetv2, mininetv2-joint, package.module.factory."""
    return "-".join(filter(None, (arch.replace(":", "."), layout)))


def check_arms(arms: Iterable[str], known: Iterable[str]) -> None:
    """Raises MtkdError for an arm that a study does not have."""
    names = tuple(known)
    for arm in arms:
        if arm not in names:
            raise MtkdError(f"arm {arm!r}: there is no such arm. Name some of {', '.join(names)}.")


def row_names(recipe: Recipe) -> list[str]:
    """The rows of Table 1 as ARCH/ARM, preceded by the recipe's teachers where they are none of these."""
    names = [f"{arch}/{SEPARATE if layout == 'separate' else KD if kd else NO_KD}" for arch, layout, kd in published()]
    own = f"{recipe.teacher.arch}/{SEPARATE}"
    return names if own in names else [own, *names]


def choose_rows(recipe: Recipe, patterns: Sequence[str]) -> list[str]:
    """The rows that the patterns match (without patterns all), and the teachers' row where one of them is distilled.

    A pattern is a shell's, as ``mininetv2/kd``, ``*/separate`` or ``deeplabv3-*/no-kd``; one without "/" matches architectures.
    Raises MtkdError where a pattern matches no row.
    """
    names = row_names(recipe)
    chosen: set[str] = set() if patterns else set(names)
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern if "/" in pattern else f"{pattern}/*")}
        if not matching:
            raise MtkdError(f"row {pattern!r}: there is no such row. Name some of {', '.join(names)}.")
        chosen |= matching
    if any(name.endswith(f"/{KD}") for name in chosen):
        chosen.add(f"{recipe.teacher.arch}/{SEPARATE}")
    return [name for name in names if name in chosen]


def plan(recipe: Recipe, anatomies: Sequence[str], seeds: Sequence[int] = (), rows: Sequence[str] = ()) -> list[Job]:
    """The jobs of the chosen rows, each after those it needs: the recipe's teachers, their cache, the students, other networks.

    seeds: of the students, by default the recipe's; all separate rows, the teachers among them, have the recipe's.
    rows: patterns, see `choose_rows`, which also says what is raised.
    """
    chosen = [name.split("/") for name in choose_rows(recipe, rows)]
    separate = [arch for arch, arm in chosen if arm == SEPARATE]
    students = sorted(((arch, arm) for arch, arm in chosen if arm != SEPARATE), key=lambda row: row[1] != KD)
    teacher = recipe.teacher.arch
    jobs = _separate(teacher, anatomies, recipe.seed) if teacher in separate else []
    if any(arm == KD for _, arm in students):
        jobs.append(Job("cache", CACHE, teacher, KD, recipe.seed, needs=tuple(job.name for job in jobs[:-1])))
    cache = tuple(job.name for job in jobs if job.kind == "cache")
    for seed in dict.fromkeys(seeds or [recipe.seed]):
        for arch, arm in students:
            student = Job("student", f"{arch}-{arm}-seed{seed}", arch, arm, seed, needs=cache if arm == KD else ())
            jobs += [student, replace(student, kind="evaluation", needs=(student.name,))]
    for arch in separate:
        if arch != teacher:
            jobs += _separate(arch, anatomies, recipe.seed)
    return jobs


def _separate(arch: str, anatomies: Sequence[str], seed: int) -> list[Job]:
    """A job for each anatomy's network, and last their evaluation."""
    folder = f"teachers-{arch}"
    networks = [Job("teacher", f"{folder}/{anatomy}", arch, SEPARATE, seed, anatomy) for anatomy in anatomies]
    return [*networks, Job("evaluation", folder, arch, SEPARATE, seed, needs=tuple(job.name for job in networks))]


def command_of(job: Job, out: Path, store: str, recipe: Sequence[str] = (), compute: Sequence[str] = ()) -> list[str]:
    """The command that does a job by hand. recipe, compute: options of the study that it shares, as ["--recipe", "paper"]."""
    folder, teachers = str(out / job.folder), str(out / f"teachers-{job.arch}")
    arm = ["--cache", str(out / CACHE)] if job.arm == KD else ["--no-kd"]
    words = {
        "teacher": ["train-teachers", *recipe, "--arch", job.arch, "--anatomy", job.anatomy, "--teachers", teachers],
        "cache": ["build", *recipe, "--teachers", teachers, "--cache", folder],
        "student": ["train-student", *recipe, "--arch", job.arch, "--seed", str(job.seed), *arm, "--run", folder],
        "evaluation": ["evaluate", "--teachers" if job.arm == SEPARATE else "--run", folder],
    }[job.kind]
    return ["mtkd-cache", *words, "--store", store, *compute]
