"""Dice as Kolbinger et al. compute it."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from support import split_dice

from mtkd_cache.cli.main import main
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, load_network, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import OperatingPoints
from mtkd_cache.training.metrics import GRID, grid_dice, image_dice, split_curves, summarize


def test_dice_of_images():
    truth = torch.zeros(4, 4, 4, dtype=torch.bool)
    predicted = truth.clone()
    truth[0, :2], predicted[0, 1:3] = True, True  # 8 and 8 pixels, 4 shared
    predicted[2, 0, 0] = True  # an empty truth with a prediction
    truth[3] = True  # a truth that is not found at all
    dice = image_dice(predicted, truth).tolist()
    assert dice[0] == pytest.approx(0.5)
    assert math.isnan(dice[1])
    assert dice[2:] == [0, 0]


def test_means_are_of_images_then_of_anatomies():
    said = summarize([("liver", [1.0, 0.5]), ("colon", [0.25, math.nan]), ("liver", [0.0]), ("ureter", [math.nan])])
    assert said["dice"] == {"liver": 0.5, "colon": 0.25, "ureter": None}
    assert said["mean_dice"] == pytest.approx(0.375)
    assert said["images_by_anatomy"] == {"liver": 3, "colon": 2, "ureter": 1}
    assert said["images"] == 6


def test_each_anatomy_is_judged_by_its_own_head_on_its_own_subset(organ_store, accelerator):
    torch.manual_seed(0)
    network = create_network("mininetv2", 2).eval()
    heads = {"kidney": (network, 0), "tongue": (network, 1)}
    curves = split_curves(heads, organ_store, "test", accelerator)
    at_half = {organ: curve[:, list(GRID).index(0)].mean() for organ, curve in curves.items()}
    assert at_half == pytest.approx(split_dice(heads, organ_store, "test"), abs=1e-6)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", ["run", "teachers"])
def test_a_split_is_judged_by_itself(kind, split, organ_store, organ_teachers, accelerator, copy_of, tmp_path):
    organs = organ_store.anatomies
    if kind == "run":
        torch.manual_seed(0)
        folder = tmp_path / "run"
        save_network(folder / WEIGHTS, create_network("mininetv2", 2), organs)
        heads = {organ: (load_network(folder), head) for head, organ in enumerate(organs)}
        weights = file_sha256(folder / WEIGHTS)
    else:
        folder = copy_of(organ_teachers)
        heads = {organ: (load_network(folder / organ), 0) for organ in organs}
        weights = {organ: file_sha256(folder / organ / WEIGHTS) for organ in organs}
    words = ["evaluate", f"--{kind}", str(folder), "--store", organ_store.url, "--split", split, "--device", "cpu", "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    said = json.loads((folder / f"evaluation-{split}.json").read_text())
    assert json.loads(done.stdout) == said
    assert (said["split"], said["weights_sha256"]) == (split, weights)
    by_split = {name: split_dice(heads, organ_store, name) for name in ("validation", "test")}
    assert said["dice"] == pytest.approx(by_split[split], abs=1e-6)
    chosen = split == "validation"  # thresholds are never chosen on another split
    assert len(list(folder.rglob(OperatingPoints.FILE))) == chosen * len(list(folder.rglob(WEIGHTS)))
    assert ("thresholds" in said, "dice_at_operating_point" in said) == (chosen, chosen)
    assert set(said["average_precision"]) == set(organs)
    assert said["dice"] != pytest.approx(by_split["test" if split == "validation" else "validation"], abs=1e-6)


def test_the_dice_at_every_threshold_is_that_of_its_prediction():
    torch.manual_seed(0)
    logits, truth = 4 * torch.randn(3, 8, 8) - 3, torch.rand(3, 8, 8) > 0.7
    logits[0, 0, :3] = torch.tensor([-8.0, 0.5, 4.0])  # at a threshold is not above it
    logits[0, 1, :3] = torch.tensor([float("nan"), -float("inf"), float("inf")])
    logits[1], truth[1] = -9, False
    said = grid_dice(logits, truth)
    assert said.isnan()[1].all()
    for place, threshold in enumerate(GRID):
        expected = image_dice(logits > threshold, truth)
        assert said[:, place].tolist() == pytest.approx(expected.tolist(), nan_ok=True)
