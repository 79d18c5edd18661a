"""The rows of Table 1 as units of work, in the order in which they need each other, and the command that does each by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Recipe
from mtkd_cache.study.published import table1

CACHE = "logits.zarr"
SEPARATE, NO_KD, KD = "separate", "no-kd", "kd"  # the arms of Table 1


@dataclass(frozen=True)
class Job:
    """One piece of work.

    kind: "teacher", "cache", "student" or "evaluation". folder: where it writes, below the study's folder.
    needs: the names of the units that come before it. seed: of a student, or of the teachers. anatomy: of a teacher.
    """

    kind: str
    folder: str
    arch: str
    arm: str
    seed: int
    anatomy: str = ""
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind} {self.folder}"


def row_names(recipe: Recipe) -> list[str]:
    """The rows of Table 1 as ARCH/ARM, before them the recipe's teachers where they are none of these."""
    names = [f"{row['arch']}/{SEPARATE if row['layout'] == 'separate' else KD if row['kd'] else NO_KD}" for row in table1()]
    own = f"{recipe.teacher.arch}/{SEPARATE}"
    return names if own in names else [own, *names]


def choose_rows(recipe: Recipe, patterns: Sequence[str]) -> list[str]:
    """The rows that a pattern names, all without patterns, and the teachers' row where one of them is distilled.

    A pattern is a shell's, as ``mininetv2/kd``, ``*/separate`` or ``deeplabv3-*/no-kd``; one without "/" names architectures.
    Raises MtkdError where a pattern names no row.
    """
    names = row_names(recipe)
    found: set[str] = set() if patterns else set(names)
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern if "/" in pattern else f"{pattern}/*")}
        if not matching:
            raise MtkdError(f"row {pattern!r}: there is no such row. Name some of {', '.join(names)}.")
        found |= matching
    if any(name.endswith(f"/{KD}") for name in found):
        found.add(f"{recipe.teacher.arch}/{SEPARATE}")
    return [name for name in names if name in found]


def plan(recipe: Recipe, anatomies: Sequence[str], seeds: Sequence[int] = (), rows: Sequence[str] = ()) -> list[Job]:
    """The units of the chosen rows, each after those it needs: the recipe's teachers, their cache, the students, other networks.

    seeds: of the students, the recipe's own where none is named; all separate rows, the teachers among them, have the recipe's.
    rows: patterns, see `choose_rows`, which also names the error.
    """
    chosen = [name.split("/") for name in choose_rows(recipe, rows)]
    own = [(arch, arm) for arch, arm in chosen if arm == SEPARATE and arch == recipe.teacher.arch]
    others = [(arch, arm) for arch, arm in chosen if arm == SEPARATE and arch != recipe.teacher.arch]
    students = sorted(((arch, arm) for arch, arm in chosen if arm != SEPARATE), key=lambda row: row[1] != KD)
    units: list[Job] = []
    for arch, _ in own:
        units += _separate(arch, anatomies, recipe.seed)
    if any(arm == KD for _, arm in students):
        units.append(Job("cache", CACHE, recipe.teacher.arch, KD, recipe.seed, needs=tuple(u.name for u in units[:-1])))
    cache = tuple(unit.name for unit in units if unit.kind == "cache")
    for seed in dict.fromkeys(seeds or [recipe.seed]):
        for arch, arm in students:
            made = Job("student", f"{arch}-{arm}-seed{seed}", arch, arm, seed, needs=cache if arm == KD else ())
            units += [made, replace(made, kind="evaluation", needs=(made.name,))]
    for arch, _ in others:
        units += _separate(arch, anatomies, recipe.seed)
    return units


def _separate(arch: str, anatomies: Sequence[str], seed: int) -> list[Job]:
    """One unit for each anatomy's network, and last their evaluation."""
    folder = f"teachers-{arch}"
    made = [Job("teacher", f"{folder}/{anatomy}", arch, SEPARATE, seed, anatomy) for anatomy in anatomies]
    return [*made, Job("evaluation", folder, arch, SEPARATE, seed, needs=tuple(unit.name for unit in made))]


def command_of(unit: Job, out: Path, store: str, recipe: Sequence[str] = (), compute: Sequence[str] = ()) -> list[str]:
    """The command that does a unit by hand. recipe, compute: options of the study that it shares, as ["--recipe", "paper"]."""
    folder, rest = str(out / unit.folder), ["--store", store, *compute]
    if unit.kind == "teacher":
        chosen = ["--arch", unit.arch, "--anatomy", unit.anatomy, "--teachers", str(out / f"teachers-{unit.arch}")]
        return ["mtkd-cache", "train-teachers", *recipe, *chosen, *rest]
    if unit.kind == "cache":
        return ["mtkd-cache", "build", *recipe, "--teachers", str(out / f"teachers-{unit.arch}"), "--cache", folder, *rest]
    if unit.kind == "student":
        arm = ["--cache", str(out / CACHE)] if unit.arm == KD else ["--no-kd"]
        chosen = ["--arch", unit.arch, "--seed", str(unit.seed), *arm, "--run", folder]
        return ["mtkd-cache", "train-student", *recipe, *chosen, *rest]
    return ["mtkd-cache", "evaluate", "--teachers" if unit.arm == SEPARATE else "--run", folder, *rest]
