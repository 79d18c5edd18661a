"""The page of the lowest Dice, and the files that an evaluation leaves."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cli.main import main
from mtkd_cache.evaluation.pictures import Picture, score_pictures
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.evaluation.worst_cases import outline, worst, write_worst_cases
from mtkd_cache.models.checkpoints import WEIGHTS, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import OperatingPoint, OperatingPoints, write_json
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.training.metrics import summarize

NAN = math.nan


@pytest.fixture(scope="module")
def evaluated(organ_store, tmp_path_factory):
    """A run's folder with an evaluation on test, and what the command printed as JSON."""
    folder = tmp_path_factory.mktemp("run") / "a <run>"
    torch.manual_seed(3)
    save_network(folder / WEIGHTS, create_network("mininetv2", 2), organ_store.anatomies)
    done = CliRunner().invoke(main, ["evaluate", "--run", str(folder), "--store", organ_store.url, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


def picture(anatomy: str, frame: int, dice: float) -> Picture:
    return Picture(patient="1", frame=frame, anatomy=anatomy, sha256="", dice=dice)


def test_every_anatomy_has_its_lowest_pictures_on_the_page():
    values = {"liver": (0.9, 0.8, NAN, 0.7, 0.95), "ureter": (0.1, 0.0, 0.3, 0.2), "colon": (NAN, 0.5)}
    rows = [picture(anatomy, frame, dice) for anatomy, each in values.items() for frame, dice in enumerate(each)]
    shown = [(row.anatomy, row.dice) for row in worst(rows, "dice")]
    assert shown == [
        ("ureter", 0.0),
        ("ureter", 0.1),
        ("ureter", 0.2),
        ("colon", 0.5),
        ("liver", 0.7),
        ("liver", 0.8),
        ("liver", 0.9),
    ]


def test_an_outline_encloses_the_pixels_of_its_mask():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    mask[4, 6] = True  # in the corner of the picture
    areas = []
    for line in outline(mask).strip("MZ").split("ZM"):
        x, y = np.array([point.split(",") for point in line.split("L")], float).T
        assert min(*x, *y) >= 0
        assert (x.max() <= 7, y.max() <= 5) == (True, True)
        areas.append(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
        assert (x.mean(), y.mean()) == pytest.approx((4, 2) if areas[-1] > 1 else (6.5, 4.5), abs=0.3)
    assert sorted(areas) == pytest.approx([0.5, 7.5])  # the pixels' 1 and 8, with cut corners
    assert outline(np.zeros((5, 7), bool)) == ""


def test_the_page_shows_pictures_with_their_outlines_and_dice(evaluated, organ_store):
    page = (evaluated[0] / "worst-test.html").read_text()
    assert "a &lt;run&gt;: lowest Dice on test" in page
    rows = list(csv.DictReader((evaluated[0] / "evaluation-test.csv").open()))
    dice = sorted(float(row["dice"]) for row in rows)
    assert re.findall(r"<figcaption><b>([\d.]+)</b>", page) == [f"{100 * value:.1f}" for value in dice]
    assert page.count("data:image/jpeg;base64,") == len(rows) == 6
    for row in organ_store.rows("test"):
        truth = outline(organ_store.read(np.array([row]))[1][0] > 0)
        assert page.count(f'class="truth" d="{truth}"') == 1


def test_an_evaluations_csv_has_the_means_that_it_records(evaluated):
    folder, said = evaluated
    rows = list(csv.DictReader((folder / "evaluation-test.csv").open()))
    assert not any("nsd" in column or "hd95" in column or "operating_point" in column for column in rows[0])
    means = summarize((row["anatomy"], [float(row["dice"])]) for row in rows)
    assert means["dice"] == pytest.approx(said["dice"], abs=1e-6)
    assert means["mean_dice"] == pytest.approx(said["mean_dice"], abs=1e-6)
    lines = csv.DictReader((folder / "evaluation-test-summary.csv").open())
    summary = {line["name"]: float(line["value"]) for line in lines if line["figure"] == "dice" and line["group"] != "patient"}
    assert summary == pytest.approx({"": said["mean_dice"], **said["dice"]}, abs=1e-6)
    assert said["patients"] == 1
    assert said["intervals"]["dice"] == {"mean": None, "by_anatomy": {"kidney": None, "tongue": None}}


def test_surface_distances_are_asked_for(evaluated, organ_store):
    pytest.importorskip("monai")
    folder, _ = evaluated
    words = ["evaluate", "--run", str(folder), "--store", organ_store.url, "--device", "cpu", "--surface", "1.5", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["nsd_tolerance"] == 1.5
    row = next(csv.DictReader((folder / "evaluation-test.csv").open()))
    assert 0 <= float(row["nsd"]) <= 1
    assert float(row["hd95"]) > 0


def test_where_one_head_lacks_a_point_all_are_drawn_and_judged_at_one_half(evaluated, organ_store, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(evaluated[0], folder)
    half = Predictor.load(folder)
    points = OperatingPoints(
        store_fingerprint=organ_store.fingerprint,
        weights_sha256=half.weights_sha256,
        points={"kidney": OperatingPoint(threshold=-8.0, images=1, patients=1)},
    )
    write_json(folder / OperatingPoints.FILE, points.to_json())
    accelerator = make_accelerator("cpu")
    pages = []
    for predictor in (half, Predictor.load(folder)):
        pictures = score_pictures(predictor, organ_store, "test", accelerator)
        pages.append(write_worst_cases(pictures, predictor, organ_store, "test").read_text())
    assert pages[0] == pages[1]
    assert predictor.thresholds_on(organ_store) == {"kidney": -8.0}
