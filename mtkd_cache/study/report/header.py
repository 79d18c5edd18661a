"""What the report says before its tables: which data, which runs, and how far the paper's numbers may be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtkd_cache.data.dresden import ANATOMIES, REFERENCE_SURGERIES, Split
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.samples import SPLITS
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.records import RunRecord
from mtkd_cache.study.report.collect import Result, Row, results_of, teachers_of
from mtkd_cache.study.report.formats import TIMES, full_name, percent, spoken

DRESDEN_SAMPLES = 13_195
TEACHER = "segformer-mit_b3"  # the paper's


@dataclass(frozen=True)
class Data:
    """The data all rows were evaluated on.

    samples: how many the sample store holds; None where it is not at hand. is_papers: see `holds_dresden`.
    """

    name: str | None
    anatomies: tuple[str, ...]
    size: tuple[int, int]
    fingerprint: str | None
    samples: int | None = None
    is_papers: bool = False


def holds_dresden(store: SampleStore) -> bool:
    """Whether a store holds the whole Dresden Surgical Anatomy Dataset in the reference split.

    Other datasets can have its layout and its anatomies' names; none has its 13,195 samples of 32 surgeries as well.
    """
    split, patients = Split(), [str(surgery) for surgery in REFERENCE_SURGERIES]
    return (
        store.anatomies == ANATOMIES
        and len(store) == DRESDEN_SAMPLES
        and set(store.patients.tolist()) == set(patients)
        and all(
            set(store.patients[store.rows(part)].tolist()) == {patient for patient in patients if split.of(int(patient)) == part}
            for part in SPLITS
        )
    )


def describe_data(rows: Sequence[Row], store: SampleStore | None) -> Data:
    """The data of the rows. Raises MtkdError where the store is not the one they were evaluated on."""
    results = results_of(rows)
    first = results[0]
    if store is None:
        return Data(first.evaluation.dataset, first.training.anatomies, first.training.size, first.store_fingerprint)
    for result in results:
        if result.store_fingerprint not in (None, store.fingerprint):
            raise MtkdError(f"{result.path} was evaluated on another sample store than {store.url}. Name its own.")
    return Data(store.name, tuple(store.anatomies), store.size, store.fingerprint, len(store), holds_dresden(store))


def facts(data: Data, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(term, description) pairs of the header."""
    results = results_of(rows)
    images = sorted({result.evaluation.images for result in results})
    pairs = [
        ("Data", _data(data)),
        ("Test split", f"{_numbers(images)} images, split by patient; Dice is the mean over an anatomy's images"),
        (f"{len(data.anatomies)} anatomies", ", ".join(map(spoken, data.anatomies))),
        ("Seeds", _numbers(sorted({result.seed for result in results}))),
    ]
    distilled = [(result, teachers_of(rows, result)) for result in results if result.kd]
    if teachers := dict.fromkeys(_teachers(data, folder) for result, folder in distilled if folder or result.teachers):
        pairs.append(("Teachers", "; ".join(teachers)))
    if caches := cache_fingerprints(rows):
        pairs.append(("Logit cache", ", ".join(f"fingerprint {short(fingerprint)}" for fingerprint in caches)))
    return pairs


def cache_fingerprints(rows: Sequence[Row]) -> list[str]:
    """The fingerprints of the logit caches that distilled runs were trained from, sorted."""
    runs = [result.training for result in results_of(rows)]
    return sorted({run.cache_fingerprint for run in runs if isinstance(run, RunRecord) and run.cache_fingerprint})


def short(fingerprint: str) -> str:
    """The first 16 digits of a fingerprint; the report's return value has all of them."""
    return fingerprint[:16]


def _data(data: Data) -> str:
    parts = [data.name or "unnamed", f"{data.samples:,} samples" if data.samples else ""]
    parts += [f"{data.size[0]}{TIMES}{data.size[1]} pixels"]
    parts += [f"fingerprint {short(data.fingerprint)}" if data.fingerprint else ""]
    return ", ".join(filter(None, parts))


def _teachers(data: Data, folder: Result | None) -> str:
    if folder is None:
        return "not among these rows"
    paper = f"; the paper's: {full_name(TEACHER)}" if data.is_papers and folder.training.arch != TEACHER else ""
    return f"{full_name(folder.training.arch)}, one an anatomy, mean Dice {percent(folder.mean_dice)} %{paper}"


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def remarks(data: Data, rows: Sequence[Row]) -> list[str]:
    """What a reader must know before comparing: why the paper's figures are absent, missing anatomies, unequal settings."""
    notes = []
    if data.anatomies == ANATOMIES and not data.is_papers:
        known = f"these {data.samples:,} samples are not" if data.samples else "without --store it is not known whether these are"
        notes.append(
            f"The paper's figures are left out: {known} the whole Dresden Surgical Anatomy Dataset in its reference split "
            f"({DRESDEN_SAMPLES:,} samples of 32 surgeries)."
        )
    for result in results_of(rows):
        missing = [spoken(anatomy) for anatomy in data.anatomies if result.evaluation.dice.get(anatomy) is None]
        if missing:
            notes.append(f"{_name(result)} has no Dice for {', '.join(missing)}; its mean is over the others.")
    return notes + overlaps(rows) + unequal_settings(rows)


def overlaps(rows: Sequence[Row]) -> list[str]:
    """A sentence for each result on test samples that had been seen in training, and one on those of which it is unknown."""
    results = results_of(rows)
    notes = [
        f"{_name(result)} saw {overlap} in training, which --allow-overlap allowed: its Dice is not that of new images."
        for result in results
        if (overlap := result.evaluation.overlap) and overlap.found
    ]
    known = [overlap for result in results if (overlap := result.evaluation.overlap) is not None and str(overlap) != "unknown"]
    if unknown := len(results) - len(known):
        notes.append(f"Of {unknown} of {len(results)} results it is unknown whether the networks saw test samples in training.")
    return notes


def _name(result: Result) -> str:
    label = f"{result.label}, " if result.label else ""
    return f"{full_name(result.training.arch)} {result.layout}{' with KD' if result.kd else ''} ({label}seed {result.seed})"


def unequal_settings(rows: Sequence[Row]) -> list[str]:
    """One sentence for each architecture whose runs were trained with different settings, by their recipes."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results_of(rows):
        groups.setdefault(result.key[:2], []).append(result)
    notes = []
    for (arch, layout), results in groups.items():
        stage = "teacher" if layout == "separate" else "student"
        if unequal := _unequal(results, (stage, "augmentation")) + _unequal(
            [r for r in results if r.kd], ("distillation", "cache")
        ):
            notes.append(f"{full_name(arch)} {layout}: not all runs have the same settings: {'; '.join(unequal)}.")
    return notes


def _unequal(results: Sequence[Result], sections: Sequence[str]) -> list[str]:
    """``section.key is 20, 60`` for each setting of these sections on which the recipes differ."""
    values: dict[str, dict[str, None]] = {}
    for section in sections:
        recipes = [result.training.recipe for result in results if isinstance(result.training.recipe.get(section), dict)]
        for key in sorted({key for recipe in recipes for key in recipe[section]}):
            values[f"{section}.{key}"] = dict.fromkeys(str(recipe[section].get(key, "the default")) for recipe in recipes)
    return [f"{key} is {', '.join(different)}" for key, different in values.items() if len(different) > 1]
