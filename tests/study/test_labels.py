"""The study of what labels gain: its jobs, its figures against naive loops, and a tiny one from the command line."""

import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from click.testing import CliRunner
from PIL import Image

from mtkd_cache.cli.main import main
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.weak_labels import FILE
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import OperatingPoint, OperatingPoints, RunRecord
from mtkd_cache.recipe import load_recipe, recipe_from
from mtkd_cache.study.labels.arms import ARMS, OFF, Place, all_arms, plan
from mtkd_cache.study.labels.false_alarms import FalseAlarms, read_false_alarms, write_false_alarms
from mtkd_cache.study.labels.results import Result, best_arm, estimated_dice, gain_over, worst_anatomy
from mtkd_cache.study.labels.run import LabelsStudy, arms_to_test
from mtkd_cache.study.labels.table import markdown
from mtkd_cache.training.presence import highest_logits

SIZE = (32, 32)


def result(arm: str, seed: int, split: str = "test", network: str = "mininetv2", several: bool = True, **dice: float) -> Result:
    """A student whose multilabel Dice, or else its estimate, is as given by anatomy."""
    return Result(
        study="a",
        split=split,
        network=network,
        arm=arm,
        seed=seed,
        epochs=3,
        minutes=1.5,
        own=dict.fromkeys(dice, 0.8),
        multilabel={name: value - 0.1 for name, value in dice.items()} if several else {},
        multilabel_with_presence=dice if several else {},
        estimated={name: 0.4 if several else value for name, value in dice.items()},
        alarms=dict.fromkeys(dice, 0.25),
        alarms_with_presence=dict.fromkeys(dice, 0.05),
        missed_with_presence=dict.fromkeys(dice, 0.02),
        claimed_twice=0.1 if several else None,
        known_precision=0.9 if several else None,
    )


def test_every_arm_is_a_recipe_and_the_first_is_the_one_without_labels():
    recipes = {name: load_recipe("paper", values={**OFF, **arm.values}) for name, arm in ARMS.items()}
    assert next(iter(recipes.values())) == load_recipe("paper")
    settings = {
        (arm.teachers, recipe.student.negatives, recipe.distillation.correct)
        for arm, recipe in zip(ARMS.values(), recipes.values(), strict=True)
    }
    assert len(settings) == len(ARMS)


def test_jobs_come_after_those_they_need():
    own = Place("/somewhere/teachers", "/somewhere/logits.zarr")
    jobs = plan(own, ["liver", "colon"], "fpn", ("mininetv2", None), "test", ["plain", "move", "stages", "masks"], [10, 11])
    before: set[str] = set()
    for job in jobs:
        assert before.issuperset(job.needs) and job.name not in before
        before.add(job.name)
    assert [job.folder for job in jobs if job.kind == "cache"] == [own.cache, "logits-both.zarr"]
    assert [job.folder for job in jobs if job.kind == "teacher"][1:3] == ["/somewhere/teachers/colon", "teachers-both/liver"]
    students = {job.arm: job.needs for job in jobs if job.kind == "student" and job.seed == 11}
    assert students == {
        "plain": (f"cache {own.cache}",),
        "move": (f"cache {own.cache}",),
        "stages": ("cache logits-both.zarr",),
        "masks": (),
    }
    with pytest.raises(MtkdError, match=r"arm 'all': .* plain, teachers-exclusive, "):
        plan(own, ["liver"], "fpn", ("mininetv2", None), "test", ["all"], [0])


def test_a_run_for_all_anatomies_can_be_the_teachers(organ_store, recipe, tmp_path):
    """One network learns its kinds as students do; its recipe and layout are its own, not those of the students."""
    own = Place(str(tmp_path / "run"), str(tmp_path / "c.zarr"))
    assert all_arms(run=True) == [arm for arm in ARMS if arm not in ("teachers-exclusive", "teachers-both")]
    assert all_arms(run=False) == list(ARMS)
    jobs = plan(own, (), "fpn", ("mininetv2", None), "test", ["teachers-exclusive", "stages"], [0])
    assert [job.name for job in jobs if "seed" not in job.folder] == [
        f"cache {own.cache}",
        f"evaluation {own.teachers}",
        "student teachers-absent",
        "cache logits-absent.zarr",
        "evaluation teachers-absent",
    ]
    needs = [job.needs for job in jobs if job.kind == "student"]
    assert needs == [(), (f"cache {own.cache}",), ("cache logits-absent.zarr",)]
    settings = recipe("student.epochs=7", "student.arch=unet-resnet18", "augmentation.scale=0.2", "seed=5").as_dict()
    run = RunRecord(
        kind="student",
        arch="unet-resnet18",
        anatomies=("a", "b"),
        size=SIZE,
        seed=5,
        layout="joint",
        recipe={key: settings[key] for key in ("student", "augmentation")},
        kd=False,
        cache_fingerprint=None,
        best_epoch=0,
        val_dice=0.5,
    )
    options = {"recipe_of": lambda values: load_recipe("paper", values=values), "own": own, "dataset": None, "layout": "shared"}
    study = LabelsStudy(tmp_path, organ_store, load_recipe("paper"), **options, teacher_run=run)
    taught, cache = study.student(jobs[2])
    assert cache is None and study.layout_of(jobs[2]) == "joint"
    assert (taught.student.epochs, taught.student.arch, taught.augmentation.scale, taught.seed) == (7, "unet-resnet18", 0.2, 5)
    assert taught.student == replace(recipe_from(settings, "it").student, negatives="absent")
    assert study.layout_of(next(job for job in jobs if job.arm == "stages")) == "shared"
    with pytest.raises(MtkdError, match="was distilled"):
        replace(study, teacher_run=replace(run, kd=True)).student(jobs[2])


def test_the_estimate_is_the_dice_of_pictures_that_show_and_lack_an_anatomy():
    counts = {"absent": {"a": 30, "b": 0}, "present": {"a": 10, "b": 4}}
    counts |= {key: {} for key in ("claimed", "elsewhere", "missed", "alarms_with_presence", "missed_with_presence")}
    alarms = FalseAlarms(
        split="test", store_fingerprint="s", labels_fingerprint="l", weights_sha256="w", alarms={"a": 0.2, "b": None}, **counts
    )
    images = [0.6] * 10 + [0.0] * 6  # of the 30 that lack a, those that claim it; the others do not count
    assert estimated_dice({"a": 0.6, "b": 0.5, "c": None}, alarms) == pytest.approx({"a": statistics.mean(images), "b": 0.5})


def test_gains_are_paired_and_the_worst_anatomy_is_named():
    plain = [result("plain", seed, a=0.5, b=0.6 + 0.1 * seed) for seed in (0, 1)]
    move = [result("move", seed, a=0.56, b=0.58 + 0.1 * seed) for seed in (0, 1, 2)]
    found = gain_over(move, plain, "multilabel")
    assert (found.over, found.seeds) == ("plain", (0, 1)) and found.mean == pytest.approx(2)
    assert gain_over(move, plain, "own").mean == 0
    assert gain_over(plain, plain, "multilabel_with_presence", "multilabel").mean == pytest.approx(10)
    name, points = worst_anatomy(move, plain)
    assert (name, points) == ("b", pytest.approx(-2))
    assert worst_anatomy(move, []) is None and gain_over(move, [], "own") is None


def test_the_best_arm_is_chosen_on_validation_with_labels_and_teachers():
    given = [("plain", 0.9), ("masks-absent", 0.95), ("move", 0.5), ("stages", 0.6)]
    results = [result(arm, 0, "validation", several=False, a=dice) for arm, dice in given]
    results += [
        result("move", 1, "validation", a=1.0),
        result("move", 0, a=1.0),
        result("both", 0, "validation", "teachers", a=1.0),
    ]
    assert best_arm(results) == "stages"
    assert best_arm(results[:2]) is None


def test_the_table():
    results = [result(arm, seed, a=0.5 + 0.1 * (arm == "move"), b=0.5) for arm in ("move", "plain") for seed in (0, 1)]
    lines = markdown([*results, result("own", 0, network="teachers", a=0.7)]).splitlines()
    assert lines[0] == "**a, test: teachers (3 epochs)**"
    plain, move = lines[10:12]
    assert (
        plain == "| plain | 0, 1 | 80.0 ± 0.0 |  | 40.0 ± 0.0 |  | 50.0 ± 0.0 |  | +10.0 [+10.0, +10.0] | 40.0 ± 0.0 |  |  "
        "| 25.0 ± 0.0 | 5.0 ± 0.0 | 2.0 ± 0.0 | 10.0 ± 0.0 | 90.0 ± 0.0 | 1.5 |"
    )
    assert "| 55.0 ± 0.0 | +5.0 [+5.0, +5.0] | +15.0 [+15.0, +15.0] | 40.0 ± 0.0 | 0.0 [0.0, 0.0] | b 0.0 |" in move


@pytest.fixture(scope="module")
def labelled(organ_folder, organ_split, tmp_path_factory) -> Path:
    """The two organs with labels, none showing the other, multilabel images of a validation patient, and their store."""
    root = tmp_path_factory.mktemp("labels")
    shutil.copytree(organ_folder, root / "organs")
    for folder in (root / "organs").glob("*/*"):
        names = sorted(("kidney", "tongue"), key=lambda name, own=folder.parent.name: name != own)
        (folder / FILE).write_text(f"image,{','.join(names)}\n0,1,0\n1,1,0\n2,1,\n")
    scene = root / "organs" / "multilabel" / "40"
    scene.mkdir(parents=True)
    shutil.copy(root / "organs/kidney/40/image00.png", scene)
    shutil.copy(root / "organs/kidney/40/mask00.png", scene / "mask00_kidney.png")
    Image.new("L", (64, 64)).save(scene / "mask00_tongue.png")
    ingest(root / "organs", str(root / "s.zarr"), size=SIZE, split=organ_split)
    return root


def test_false_alarms_are_the_naive_loop(labelled, organ_teachers, copy_of):
    store = SampleStore.open(str(labelled / "s.zarr"))
    predictor = Predictor.load(copy_of(organ_teachers), anatomies=store.anatomies)
    rows = store.rows("validation")
    level = float(np.median(highest_logits(predictor.heads, store, rows, Accelerator(cpu=True))[:, 0])) + 1e-3
    point = {"kidney": OperatingPoint(threshold=0.0, presence=level, images=1, patients=1)}
    points = OperatingPoints(store_fingerprint=store.fingerprint, weights_sha256="", points=point)
    predictor = replace(predictor, operating_points=[points])
    found = write_false_alarms(predictor, store, "validation")
    assert read_false_alarms(predictor.folder, "validation") == found
    alarms, heard, missed, claimed, elsewhere = ({name: [] for name in store.anatomies} for _ in range(5))
    for row in store.rows("validation"):
        image, mask = (values[0] for values in store.read([row]))
        logits = predictor(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0].numpy()
        for head, name in enumerate(store.anatomies):
            silent = name == "kidney" and logits[head].max() <= level
            if store.present[row, head] == 0:
                alarms[name].append((logits[head] > 0).any())
                heard[name].append((logits[head] > 0).any() and not silent)
                claimed[name].append((logits[head] > 0).mean())
            if store.present[row, head] == 1 or (head == store.anatomy[row] and (mask > 0).any()):
                missed[name].append(silent or not (logits[head] > 0).any())
            if head != store.anatomy[row]:
                elsewhere[name] += (logits[head] > 0)[mask > 0].tolist()
    assert found.absent == {"kidney": 2, "tongue": 2} and found.present == {"kidney": 3, "tongue": 3}
    assert found.alarms == pytest.approx({name: np.mean(values) for name, values in alarms.items()})
    assert found.claimed == pytest.approx({name: np.mean(values) for name, values in claimed.items()})
    assert found.elsewhere == pytest.approx({name: np.mean(values) for name, values in elsewhere.items()})
    assert found.alarms_with_presence == pytest.approx({name: np.mean(values) for name, values in heard.items()})
    assert found.missed_with_presence == pytest.approx({name: np.mean(values) for name, values in missed.items()})
    assert min(found.claimed.values()) > 0 and found.alarms_with_presence["kidney"] < found.alarms["kidney"]


@pytest.fixture
def run(labelled, tmp_path) -> Callable[..., dict]:
    """run(*words) runs the command on the two organs and returns its JSON."""
    options = ["--store", str(labelled / "s.zarr"), "--out", str(tmp_path / "labels"), "--multilabel", str(labelled / "organs")]
    options += ["--teachers", str(tmp_path / "teachers"), "--cache", str(tmp_path / "c.zarr"), "--device", "cpu", "--json"]
    tiny = ("teacher.arch=mininetv2", "teacher.weights=none", "teacher.epochs=1", "student.weights=none", "student.batch=4")
    options += [word for setting in (*tiny, "teacher.batch=4") for word in ("--set", setting)]

    def run(*words: str) -> dict:
        done = CliRunner().invoke(main, ["labels", *options, "--epochs", "1", "--seeds", "0", *words])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_a_tiny_study_from_the_command_line(run, tmp_path):
    arms, out = ("--arm", "plain", "--arm", "stages-move"), tmp_path / "labels"
    made = run(*arms)["made"]
    assert [name.split()[0] for name in made] == ["teacher", "teacher", "cache", "evaluation"] * 2 + ["student", "evaluation"] * 2
    assert json.loads((out / "teachers-both/kidney/teacher.json").read_text())["recipe"]["teacher"]["negatives"] == "both"
    student = json.loads((out / "mininetv2/stages-move/seed0/run.json").read_text())
    assert (student["recipe"]["student"]["negatives"], student["recipe"]["distillation"]["correct"]) == ("absent", "move")
    assert run(*arms)["made"] == []

    tested = run("--phase", "test")
    assert [name.split()[0] for name in tested["made"]] == ["evaluation"] * 4  # the same seed: not trained again
    report = tested["report"]
    assert report["best_arm"] == "stages-move" and arms_to_test(out) == ["plain", "stages-move"]
    measured = {(each["split"], each["network"], each["arm"]): each for each in report["results"]}
    assert len(measured) == 8
    assert measured["validation", "mininetv2", "plain"]["multilabel"].keys() <= {"kidney", "tongue"}
    assert measured["validation", "teachers", "own"]["claimed_twice"] is not None
    assert measured["test", "teachers", "both"]["multilabel"] == {}  # the folder has no test patient
    assert {gain["figure"] for gain in report["gains"]} >= {"own", "estimated"}
    (out / "mininetv2/plain/seed0/false-alarms-test.json").unlink()
    assert run("--phase", "test")["made"] == ["evaluation mininetv2/plain/seed0"]
    joined = run("--join", str(out))
    assert len(joined["results"]) == 8 and (out / "labels.md").read_text() == joined["markdown"]


def test_what_is_no_study_a_store_without_labels_and_a_missing_folder_are_refused(organ_store, labelled, tmp_path):
    def refused(*words: str) -> str:
        done = CliRunner().invoke(main, ["labels", "--out", str(tmp_path / "o"), "--device", "cpu", *words])
        assert done.exit_code == 1
        return done.stderr

    assert "gone holds no results of a labels study. Name its folder." in refused("--join", str(tmp_path / "gone"))
    assert not (tmp_path / "o").exists()
    assert "has no labels of what its pictures show" in refused("--store", organ_store.url)
    assert "has no folder multilabel" in refused("--store", str(labelled / "s.zarr"), "--multilabel", str(tmp_path))
    with pytest.raises(MtkdError, match="choose first"):
        arms_to_test(tmp_path)
