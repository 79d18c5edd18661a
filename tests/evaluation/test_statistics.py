"""Intervals and tests over patients, each compared with its definition written in loops."""

import itertools
import math
import statistics

import numpy as np
import pytest

from mtkd_cache.evaluation import statistics as module
from mtkd_cache.evaluation.statistics import PatientTotals, holm, intervals, paired_differences, smallest_p
from mtkd_cache.training.metrics import summarize

PICTURES = [  # patient, anatomy, the Dice of two networks
    ("P1", "liver", 0.9, 0.8),
    ("P1", "liver", 0.7, 0.9),
    ("P1", "ureter", 0.1, 0.4),
    ("P2", "liver", 0.5, 0.7),
    ("P2", "ureter", math.nan, math.nan),
    ("P3", "liver", math.nan, 0.0),
    ("P3", "ureter", 0.3, 0.2),
    ("P3", "ureter", 0.0, 0.6),
    ("P4", "liver", 0.6, 0.65),
]


def naive_mean(pictures, network: int) -> float:
    return summarize((anatomy, [values[network]]) for _, anatomy, *values in pictures)["mean_dice"]


def totals(pictures, network: int) -> PatientTotals:
    return PatientTotals.of([row[2 + network] for row in pictures], [row[0] for row in pictures], [row[1] for row in pictures])


def of_patient(patient: str):
    return [row for row in PICTURES if row[0] == patient]


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 60)
    monkeypatch.setattr(module, "BLOCK", 20)


@pytest.mark.parametrize("network", [0, 1])
def test_estimates_are_those_of_the_evaluation(network):
    every_patient = totals(PICTURES, network).estimates(np.ones((1, 4)))[0]
    expected = summarize((anatomy, [values[network]]) for _, anatomy, *values in PICTURES)
    assert every_patient == pytest.approx([expected["mean_dice"], *expected["dice"].values()])


def test_intervals_draw_patients_with_all_their_pictures(few_resamples):
    random, drawn = np.random.default_rng(5), {"mean": [], "liver": [], "ureter": []}
    for _ in range(3):
        for counts in random.multinomial(4, [0.25] * 4, 20):
            resample = [row for patient, count in enumerate(counts) for row in of_patient(f"P{patient + 1}") * count]
            summary = summarize((anatomy, [dice]) for _, anatomy, dice, _ in resample)
            known = {anatomy: dice for anatomy, dice in summary["dice"].items() if dice is not None}
            for name, value in {**known, "mean": summary["mean_dice"]}.items():
                drawn[name].append(value)
    expected = {name: tuple(np.percentile(values, [2.5, 97.5])) for name, values in drawn.items()}
    mean, each = intervals(totals(PICTURES, 0), seed=5)
    assert mean == pytest.approx(expected.pop("mean"))
    assert {name: pytest.approx(bounds) for name, bounds in each.items()} == expected
    assert intervals(totals(PICTURES, 0), seed=6)[0] != mean


def test_many_pictures_of_few_patients_do_not_make_an_interval_narrow(few_resamples):
    random = np.random.default_rng(0)
    level = np.repeat(random.uniform(0.2, 0.8, 8), 100)  # the patients differ, the pictures of each hardly do
    values = level + random.normal(0, 0.01, 800)
    by_patient = intervals(PatientTotals.of(values, np.repeat(np.arange(8).astype(str), 100), ["liver"] * 800))[0]
    by_picture = intervals(PatientTotals.of(values, np.arange(800).astype(str), ["liver"] * 800))[0]
    assert by_patient[1] - by_patient[0] > 5 * (by_picture[1] - by_picture[0])


def test_one_patient_has_no_interval():
    mean, each = intervals(totals([row for row in PICTURES if row[:2] != ("P1", "ureter")], 0))
    assert (mean is None, each["liver"] is None, each["ureter"] is None) == (False, False, True)
    assert intervals(totals(of_patient("P1"), 0)) == (None, {"liver": None, "ureter": None})


def test_the_test_swaps_the_networks_of_whole_patients():
    observed = naive_mean(PICTURES, 1) - naive_mean(PICTURES, 0)
    extreme = 0
    for swaps in itertools.product((False, True), repeat=4):
        swapped = {f"P{number + 1}": swap for number, swap in enumerate(swaps)}
        pictures = [(p, a, *((y, x) if swapped[p] else (x, y))) for p, a, x, y in PICTURES]
        extreme += abs(naive_mean(pictures, 1) - naive_mean(pictures, 0)) >= abs(observed) - 1e-9
    mean = paired_differences(totals(PICTURES, 0), totals(PICTURES, 1))[0]
    assert (mean.first, mean.second) == pytest.approx((naive_mean(PICTURES, 0), naive_mean(PICTURES, 1)))
    assert mean.difference == pytest.approx(observed)
    assert mean.p == extreme / 16


def test_more_swaps_than_resamples_are_drawn(few_resamples, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 15)
    monkeypatch.setattr(module, "BLOCK", 5)
    random, observed, extreme = np.random.default_rng(1), naive_mean(PICTURES, 1) - naive_mean(PICTURES, 0), 0
    for swaps in np.concatenate([random.integers(0, 2, (5, 4)) for _ in range(3)]):
        pictures = [(p, a, *((y, x) if swaps[int(p[1]) - 1] else (x, y))) for p, a, x, y in PICTURES]
        extreme += abs(naive_mean(pictures, 1) - naive_mean(pictures, 0)) >= abs(observed) - 1e-9
    assert paired_differences(totals(PICTURES, 0), totals(PICTURES, 1), seed=1)[0].p == (extreme + 1) / 16


def test_the_effect_size_is_of_patients_differences(few_resamples):
    mean, liver, ureter = paired_differences(totals(PICTURES, 0), totals(PICTURES, 1))
    differences = [0.85 - 0.8, 0.7 - 0.5, 0.65 - 0.6]  # P1, P2 and P4: P3's liver counts for one network only
    assert liver.effect_size == pytest.approx(statistics.mean(differences) / statistics.stdev(differences))
    assert (liver.patients, liver.higher, liver.lower) == (3, 3, 0)
    assert (ureter.patients, ureter.higher, ureter.lower) == (2, 2, 0)
    of_mean = [(0.05 + 0.3) / 2, 0.2, (0.0 + 0.4) / 2 - 0.15, 0.05]
    assert mean.effect_size == pytest.approx(statistics.mean(of_mean) / statistics.stdev(of_mean))


def test_a_network_does_not_differ_from_itself(few_resamples):
    mean, *each = paired_differences(totals(PICTURES, 1), totals(PICTURES, 1))
    for one in (mean, *each):
        assert (one.difference, one.interval, one.p, one.effect_size) == (0, (0, 0), 1, None)


def test_an_interval_of_a_difference_needs_two_patients_that_count_for_both(few_resamples):
    pictures = [("P1", "liver", 0.5, 0.6), ("P2", "liver", math.nan, 0.6), ("P1", "colon", 0.5, 0.6), ("P2", "colon", 0.4, 0.6)]
    mean, liver, colon = paired_differences(totals(pictures, 0), totals(pictures, 1))
    assert (mean is None, liver.interval is None, colon.interval is None) == (False, True, False)


def test_an_anatomy_without_pictures_has_no_difference(few_resamples):
    nothing = [("P1", "liver", 0.5, 0.6), ("P2", "liver", 0.4, 0.6), ("P2", "colon", math.nan, math.nan)]
    mean, liver, colon = paired_differences(totals(nothing, 0), totals(nothing, 1))
    assert colon is None
    assert (mean.difference, liver.difference) == (pytest.approx(0.15), pytest.approx(0.15))


@pytest.mark.parametrize("patients", [1, 2, 4])
def test_the_smallest_p_is_that_of_patients_that_all_gain(patients, few_resamples):
    names = [f"P{number}" for number in range(patients)]
    worse, better = (PatientTotals.of(np.arange(patients) + gain, names, ["liver"] * patients) for gain in (0, 1))
    assert paired_differences(worse, better)[0].p == pytest.approx(smallest_p(patients))


def test_holm():
    assert holm(np.array([0.04, 0.01, math.nan, 0.03])) == pytest.approx([0.06, 0.03, math.nan, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])) == [1, 1]
