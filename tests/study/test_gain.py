"""The study of what distillation gains: its jobs, its statistics, and a tiny one from the command line."""

import json
import math
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.records import OperatingPoint
from mtkd_cache.recipe import load_recipe
from mtkd_cache.study.gain.arms import ARMS, OBJECTIVE, plan
from mtkd_cache.study.gain.results import Result, best_arm, gain, mean_thresholds, t_975, t_interval
from mtkd_cache.study.gain.run import GainStudy, arms_to_test, write_gain
from mtkd_cache.study.gain.table import markdown
from mtkd_cache.training.balance import exclusion_shift

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def result(arm: str, seed: int, dice: float, split: str = "test", study: str = "a") -> Result:
    group = {"study": study, "split": split, "arch": "mininetv2", "length": "short"}
    figures = {"dice": dice / 2, "dice_at_operating_point": dice, "average_precision": 0.5}
    return Result(**group, arm=arm, seed=seed, epochs=3, minutes=1.5, **figures, thresholds=(-2.0, -1.0), environment={})


def test_arms_mean_the_same_whatever_the_objective_of_the_recipe():
    recipes = {arm: load_recipe("best", values={**OBJECTIVE, **values}) for arm, values in ARMS.items()}
    assert recipes["masks"].distillation == recipes["kl"].distillation == load_recipe("paper").distillation
    assert recipes["sigmoid+kl"].distillation.terms == {"sigmoid": (1.0, 1.0), "kl": (4.0, 0.3)}


def test_jobs_come_after_those_they_need_and_test_after_the_choice_of_thresholds():
    jobs = plan("teachers", "test", ["masks", "kl"], ["long", "short"], ["mininetv2"], [10, 11])
    before: set[str] = set()
    for job in jobs:
        assert before.issuperset(job.needs)
        assert job.name not in before
        before.add(job.name)
    assert [(job.folder, job.split) for job in jobs[:2]] == [("teachers", "validation"), ("teachers", "test")]
    students = [job.folder for job in jobs if job.kind == "student"]
    assert students[:2] == ["mininetv2/short/masks/seed10", "mininetv2/short/kl/seed10"]
    assert len(students) == 8
    own = plan("teachers", "test", ["kl"], ["short"], ["package.module:factory"], [0], "joint")[-1]
    assert (own.folder, own.arch) == ("package.module.factory-joint/short/kl/seed0", "package.module:factory")
    assert [job.distilled for job in jobs[2:6]] == [False, False, True, True]
    with pytest.raises(MtkdError, match=r"arm 'cosine': .* masks, .*, kl, "):
        plan("teachers", "test", ["cosine"], ["short"], ["mininetv2"], [0])


def test_intervals_are_those_of_students_t():
    for freedom in (*range(1, 13), 30, 100):
        assert t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)
    values = [1.0, 2.5, 0.5, 4.0]
    expected = stats.t.interval(0.95, 3, statistics.mean(values), stats.sem(values))
    assert t_interval(values) == pytest.approx(expected, abs=1e-3)
    assert t_interval([1.0]) is None


def test_a_gain_is_paired_by_the_seeds_that_both_have():
    ours = [result("kl", 0, 0.50), result("kl", 1, 0.60), result("kl", 2, 0.90)]
    theirs = [result("masks", 1, 0.50), result("masks", 0, 0.44), result("masks", 7, 0.0)]
    found = gain(ours, theirs)
    assert (found.over, found.seeds) == ("masks", (0, 1))
    assert found.mean == pytest.approx(8)
    assert found.interval == pytest.approx(stats.t.interval(0.95, 1, 8, stats.sem([6, 10])), abs=1e-2)
    assert gain(ours, theirs, "dice").mean == pytest.approx(4)
    assert gain(ours[2:], theirs) is None


def test_the_best_arm_is_chosen_on_validation_over_what_all_arms_have():
    results = [
        *(result(arm, 0, dice, "validation", "a") for arm, dice in (("masks", 0.9), ("kl", 0.5), ("sigmoid", 0.6))),
        *(result(arm, 0, dice, "validation", "b") for arm, dice in (("masks", 0.9), ("kl", 0.7), ("sigmoid", 0.65))),
        result("kl", 1, 1.0, "validation", "a"),  # a seed that the other has not
        result("kl", 0, 1.0, "test", "a"),
    ]
    assert best_arm(results) == "sigmoid"
    assert best_arm([]) is None


def test_the_table():
    results = [*(result("masks", seed, 0.5) for seed in (0, 1)), *(result("kl", seed, 0.6 + 0.02 * seed) for seed in (0, 1))]
    lines = markdown(results, {"a": {"test": (0.7, 0.8)}}).splitlines()
    assert lines[0] == "**a, test: MiniNetV2, short (3 epochs); teachers 70.0 and 80.0**"
    assert lines[4] == "| masks | 0, 1 | 25.0 ± 0.0 | 50.0 ± 0.0 |  |  | 50.0 |  |  | 1.5 |"
    assert lines[5] == "| kl | 0, 1 | 30.5 ± 0.7 | 61.0 ± 1.4 | +11.0 [\N{MINUS SIGN}1.7, +23.7] |  | 50.0 |  |  | 1.5 |"
    placed = [replace(each, threshold=-2.0 - each.seed, calibrated_threshold=-1.04) for each in results]
    assert "| 50.0 | \N{MINUS SIGN}2.5 | \N{MINUS SIGN}1.0 | 1.5 |" in markdown(placed, {"a": {}})


def test_a_calibrated_head_has_its_highest_dice_at_half_of_that_dice():
    """Over pixels whose label is drawn with the head's own probability, seen as by a head trained on thrice the negatives."""
    random = np.random.default_rng(0)
    probability = random.beta(0.3, 1.5, 200_000)
    mask = random.random(len(probability)) < probability
    logits = np.log(probability / (1 - probability)) + math.log(1 / 3)
    order = np.argsort(-logits)
    dice = 2 * np.cumsum(mask[order]) / (np.arange(1, len(mask) + 1) + mask.sum())
    best = int(dice.argmax())
    point = OperatingPoint(threshold=float(logits[order][best]), dice=float(dice[best]), images=1, patients=1)
    silent = OperatingPoint(threshold=0.0, dice=0.0, images=1, patients=1)
    found, expected = mean_thresholds({"colon": point, "liver": silent}, {"colon": math.log(1 / 3), "liver": -5.0})
    assert expected == pytest.approx(found, abs=0.05)
    assert expected < -1.3
    assert mean_thresholds({"colon": point}, {}) == (found, None)
    assert mean_thresholds({"liver": silent}, {}) == (None, None)


def test_a_tiny_study_of_a_network_of_your_own(organ_store, organ_teachers, organ_cache, copy_of, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    teachers, out = copy_of(organ_teachers), tmp_path / "gain"
    options = ["--store", organ_store.url, "--cache", organ_cache.url, "--teachers", str(teachers), "--out", str(out)]
    options += ["--set", "student.weights=none", "--set", "student.batch=4", "--epochs", "1", "--device", "cpu", "--json"]
    options += ["--arch", "own_student:small", "--layout", "joint", "--length", "short", "--seeds", "0"]

    def run(*more: str) -> dict:
        done = CliRunner().invoke(main, ["gain", *options, *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])

    arms = ("--arm", "masks", "--arm", "sigmoid+kl")
    assert len(run(*arms)["made"]) == 1 + 2 * 2
    record = json.loads((out / "own_student.small-joint/short/sigmoid+kl/seed0/run.json").read_text())
    assert record["layout"] == "joint"
    assert record["recipe"]["distillation"] == {"temperature": 4.0, "weight": 0.3, "combine": "sum", "term": "sigmoid+kl"}
    assert {"cross_entropy", "kl", "sigmoid"} <= record["history"][0].keys()

    tested = run(*arms, "--phase", "test")
    assert [name.split()[0] for name in tested["made"]] == ["evaluation"] * 3  # the same seed: not trained again
    assert tested["report"]["best_arm"] == "sigmoid+kl"
    assert arms_to_test(out) == ["masks", "kl", "sigmoid+kl"]
    assert set(tested["report"]["teachers"]["gain"]) == {"validation", "test"}
    assert (out / "thresholds.png").exists()
    assert json.loads((out / "exclusion-shift.json").read_text()) == pytest.approx(
        dict(zip(organ_store.anatomies, exclusion_shift(organ_store, organ_store.rows("train")), strict=True))
    )
    shutil.copytree(out, tmp_path / "other")
    joined = run("--join", str(out), "--join", str(tmp_path / "other"))
    assert {found["study"] for found in joined["results"]} == {"gain", "other"}
    written = (out / "gain.json").read_bytes()
    with pytest.raises(MtkdError, match=r"/empty holds no results of a gain study\. Name its folder"):
        write_gain([tmp_path / "other", tmp_path / "empty"], out)
    assert (out / "gain.json").read_bytes() == written
    with pytest.raises(MtkdError, match="choose first"):
        arms_to_test(tmp_path)


def test_folders_without_results_are_refused_before_anything_is_written(tmp_path):
    done = CliRunner().invoke(main, ["gain", "--join", str(tmp_path / "gone"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and "gone holds no results of a gain study. Name its folder." in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_study_of_which_nothing_is_evaluated_has_no_report(organ_store, recipe, tmp_path):
    study = GainStudy(tmp_path, organ_store, recipe(), recipe_of=lambda _: recipe(), teachers=tmp_path, cache="")
    assert study.report(lambda: None) is None and not (tmp_path / "gain.json").exists()
