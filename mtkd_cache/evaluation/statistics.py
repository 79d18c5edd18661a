"""Intervals and tests for figures of pictures, with the patient as the unit: pictures of one patient resemble each other.

The estimate is that of `mtkd_cache.training.metrics`: the mean over an anatomy's pictures, then the unweighted mean over the
anatomies; a picture whose value is NaN does not count.

intervals   percentile bootstrap: patients are drawn with replacement, each with all its pictures (Efron and Tibshirani 1993,
            An Introduction to the Bootstrap, chapter 13)
tests       permutation: under the null hypothesis a patient's values of the two networks can be swapped, those of all its
            pictures together; two-sided, over all 2^patients swaps where they are at most RESAMPLES, otherwise over that many
            drawn ones (Phipson and Smyth 2010, Permutation P-values should never be zero)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
BLOCK = 1_000  # resamples that are in memory at once
LEVEL = 0.95
ROUNDING = 1e-12  # differences that are this near are equal
SEED = 0
Interval = tuple[float, float]


@dataclass(frozen=True)
class PatientTotals:
    """Sums of a figure, and numbers of pictures that count, float (patients, anatomies) each."""

    patients: tuple[str, ...]
    anatomies: tuple[str, ...]
    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, values: Sequence[float], patients: Sequence[str], anatomies: Sequence[str]) -> "PatientTotals":
        """Totals of one value, patient and anatomy for each picture. Anatomies keep the order in which they come first."""
        known, names = sorted(set(patients)), list(dict.fromkeys(anatomies))
        sums, counts = np.zeros((2, len(known), len(names)))
        for value, patient, anatomy in zip(values, patients, anatomies, strict=True):
            if not math.isnan(value):
                cell = known.index(patient), names.index(anatomy)
                sums[cell] += value
                counts[cell] += 1
        return cls(tuple(known), tuple(names), sums, counts)

    def estimates(self, weights: np.ndarray) -> np.ndarray:
        """The figure if patients count as often as their weights say.

        Args:
            weights: (R, patients).

        Returns:
            float (R, 1 + anatomies): the mean over the anatomies, then each anatomy; NaN where no picture counts.
        """
        return _estimates(weights @ self.sums, weights @ self.counts)


def intervals(totals: PatientTotals, seed: int = SEED) -> tuple[Interval | None, dict[str, Interval | None]]:
    """95 % intervals of the mean over the anatomies and of each anatomy; None where fewer than two patients have a picture.

    A resample without a picture of an anatomy is left out of that anatomy's interval, and its mean is over the other anatomies.
    """
    if len(totals.patients) < 2:
        return None, dict.fromkeys(totals.anatomies)
    drawn = np.concatenate([totals.estimates(weights) for weights in _resampled(len(totals.patients), seed)])
    mean, *each = _percentiles(drawn, _patients_that_count(totals.counts))
    return mean, dict(zip(totals.anatomies, each, strict=True))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What the second of two networks gains over the first on the same pictures. Dice and its like in 0..1.

    first, second: the estimates; difference: second - first. interval: its 95 % interval, None for fewer than two patients.
    p: of the permutation test, two-sided. p_holm: adjusted for the number of anatomies (Holm 1979); None for the mean.
    effect_size: Cohen's d_z, the mean over patients of their differences by its standard deviation; None where that is 0.
    patients: those with a picture that counts for both networks; higher, lower: for how many of them the second's value is so.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None
    p: float
    p_holm: float | None = None
    effect_size: float | None
    patients: int
    higher: int
    lower: int


def paired_differences(first: PatientTotals, second: PatientTotals, seed: int = SEED) -> list[Difference | None]:
    """Compare two networks' totals over the same pictures.

    Returns:
        the difference of the mean over the anatomies, then of each anatomy, in their order; None where no picture counts.
    """
    if (first.patients, first.anatomies) != (second.patients, second.anatomies):
        raise ValueError("the two networks were evaluated on other pictures")
    weights = _resampled(len(first.patients), seed)
    drawn = np.concatenate([second.estimates(block) - first.estimates(block) for block in weights])
    whole = np.ones((1, len(first.patients)))
    estimates = [totals.estimates(whole)[0] for totals in (first, second)]
    p = _permutation_p(first, second, estimates[1] - estimates[0], seed)
    bounds = _percentiles(drawn, _patients_that_count(first.counts * second.counts))
    adjusted = [None, *holm(p[1:])]
    by_patient = second.estimates(np.eye(len(first.patients))) - first.estimates(np.eye(len(first.patients)))
    return [
        _difference(estimates[0][place], estimates[1][place], bounds[place], p[place], adjusted[place], by_patient[:, place])
        for place in range(1 + len(first.anatomies))
    ]


def holm(p: np.ndarray) -> list[float]:
    """P values adjusted for their number by Holm's step-down method; NaN stays and does not count."""
    order = [place for place in np.argsort(p) if not np.isnan(p[place])]
    adjusted, largest = np.full(len(p), np.nan), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(p[place])))
        adjusted[place] = largest
    return [float(value) for value in adjusted]


def _difference(
    first: float, second: float, interval: Interval | None, p: float, p_holm: float | None, by_patient: np.ndarray
) -> Difference | None:
    if np.isnan(second - first):
        return None
    known = by_patient[~np.isnan(by_patient)]
    deviation = known.std(ddof=1) if len(known) > 1 else 0.0
    return Difference(
        first=float(first),
        second=float(second),
        difference=float(second - first),
        interval=interval,
        p=float(p),
        p_holm=p_holm,
        effect_size=float(known.mean() / deviation) if deviation > ROUNDING else None,
        patients=len(known),
        higher=int((known > 0).sum()),
        lower=int((known < 0).sum()),
    )


def _estimates(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over the anatomies, then each anatomy's, of (R, anatomies) sums and counts."""
    each = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    known = ~np.isnan(each)
    number = known.sum(1)
    mean = np.divide(np.where(known, each, 0).sum(1), number, out=np.full(len(each), np.nan), where=number > 0)
    return np.column_stack([mean, each])


def _resampled(patients: int, seed: int) -> Iterator[np.ndarray]:
    """How often each patient is drawn, float (BLOCK, patients) at a time."""
    random = np.random.default_rng(seed)
    for _ in range(RESAMPLES // BLOCK):
        yield random.multinomial(patients, np.full(patients, 1 / patients), BLOCK).astype(float)


def _patients_that_count(counts: np.ndarray) -> np.ndarray:
    """For the mean over the anatomies and for each anatomy, the number of patients with a picture that counts."""
    counting = counts > 0
    return np.array([counting.any(1).sum(), *counting.sum(0)])


def _percentiles(drawn: np.ndarray, patients: np.ndarray) -> list[Interval | None]:
    """The central 95 % of each column that at least two patients contribute to."""
    tails = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
    bounds = [np.nanpercentile(column, tails) if number > 1 else None for column, number in zip(drawn.T, patients, strict=True)]
    return [None if pair is None else (float(pair[0]), float(pair[1])) for pair in bounds]


def smallest_p(patients: int) -> float:
    """The smallest p value that a paired test with so many patients can have: all of them differ in one direction."""
    return max(2.0 / 2**patients, 1 / (RESAMPLES + 1)) if patients else 1.0


def _permutation_p(first: PatientTotals, second: PatientTotals, observed: np.ndarray, seed: int) -> np.ndarray:
    """Two-sided p values of the observed differences (1 + anatomies,); NaN where there is none."""
    patients = len(first.patients)
    exact = 2**patients <= RESAMPLES
    extreme, number = np.zeros(len(observed)), 0
    for swaps in [_all_swaps(patients)] if exact else _drawn_swaps(patients, seed):
        difference = _swapped(second, first, swaps) - _swapped(first, second, swaps)
        extreme += (np.abs(difference) >= np.abs(observed) - ROUNDING).sum(0)
        number += len(swaps)
    p = extreme / number if exact else (extreme + 1) / (number + 1)
    return np.where(np.isnan(observed), np.nan, p)


def _swapped(own: PatientTotals, other: PatientTotals, swaps: np.ndarray) -> np.ndarray:
    """Estimates (R, 1 + anatomies) of one network when the patients that are 1 in swaps (R, patients) take the other's values."""
    sums = (1 - swaps) @ own.sums + swaps @ other.sums
    return _estimates(sums, (1 - swaps) @ own.counts + swaps @ other.counts)


def _all_swaps(patients: int) -> np.ndarray:
    """Every choice of patients whose values are swapped, float (2^patients, patients)."""
    return (np.arange(2**patients)[:, None] >> np.arange(patients) & 1).astype(float)


def _drawn_swaps(patients: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    for _ in range(RESAMPLES // BLOCK):
        yield random.integers(0, 2, (BLOCK, patients)).astype(float)
