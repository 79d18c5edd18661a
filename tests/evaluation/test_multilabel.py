"""The multilabel subset: which images, the two figures against hand-made cases, and the way through the command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mtkd_cache.cli.main import main
from mtkd_cache.data.dresden import REFERENCE_TEST
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.multilabel import count_pixels, evaluate_multilabel, find_scenes, pooled_shares
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import OperatingPoint, OperatingPoints
from mtkd_cache.phantom.dataset import MULTILABEL_ANATOMIES


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "#" for mark in row] for row in rows])


def test_the_figures_of_a_case_counted_by_hand():
    claims = {"liver": mask("##..", "##.."), "spleen": mask(".##.", "...."), "ureter": mask("...#", "....")}
    truths = {"liver": mask("#...", "#..."), "spleen": mask("..#.", "..#.")}
    found = count_pixels(claims, truths)
    assert found["dice"] == pytest.approx({"liver": 2 * 2 / (4 + 2), "spleen": 2 * 1 / (2 + 2)})
    assert found["claimed"] == 6 / 8
    assert found["claimed_twice"] == 1 / 8
    # the liver's second column is annotated as nothing: it is neither right nor wrong
    assert found["known"] == {"liver": (2, 0), "spleen": (1, 0)}
    # of the two pixels that are the spleen's, and the two that are the liver's; the ureter's head claims none of the four
    assert found["elsewhere"] == {"liver": (0, 2), "spleen": (0, 2), "ureter": (0, 4)}


def test_a_claim_on_another_anatomy_is_wrong_but_not_where_both_are_annotated():
    claims = {"liver": mask("####"), "spleen": mask("....")}
    truths = {"liver": mask("##.."), "spleen": mask(".##.")}
    assert count_pixels(claims, truths)["known"] == {"liver": (2, 1), "spleen": (0, 0)}
    assert pooled_shares([{"liver": (2, 1), "spleen": (0, 0)}, {"liver": (1, 2)}]) == {"liver": 0.5, "spleen": None}


def test_empty_truths():
    empty = mask("....")
    found = count_pixels({"liver": empty, "spleen": mask("#...")}, {"liver": empty, "spleen": empty, "tongue": mask("#...")})
    assert math.isnan(found["dice"]["liver"])
    assert found["dice"]["spleen"] == 0
    assert "tongue" not in found["dice"]
    assert found["known"]["spleen"] == (0, 1)  # the tongue has no head, but its mask says whose pixel it is


def test_the_phantoms_scenes_of_a_split(phantom_folder):
    patients = set(map(str, REFERENCE_TEST))
    scenes = find_scenes(phantom_folder, patients)
    images = sorted((phantom_folder / "multilabel" / "02").glob("image*.png"))
    assert list(scenes) == images
    assert all(tuple(masks) == MULTILABEL_ANATOMIES for masks in scenes.values())


def test_what_is_missing_is_named(phantom_folder, copy_of, tmp_path):
    with pytest.raises(MtkdError, match="no folder multilabel"):
        find_scenes(tmp_path, {"2"})
    with pytest.raises(MtkdError, match="no image of the patients 30, 31"):
        find_scenes(phantom_folder, {"31", "30"})
    copy = copy_of(phantom_folder / "multilabel")
    for path in (copy / "02").glob("mask00_*.png"):
        path.unlink()
    with pytest.raises(MtkdError, match=r"02/image00.png has no mask: mask00_ANATOMY.png"):
        find_scenes(copy.parent, {"2"})


@pytest.fixture
def run(phantom_store, tmp_path):
    """A student's run folder with random weights."""
    torch.manual_seed(0)
    save_network(tmp_path / "run" / WEIGHTS, create_network("mininetv2", 11), phantom_store.anatomies)
    record = {"kind": "student", "arch": "mininetv2", "layout": "shared", "seed": 4, "kd": True, "cache_fingerprint": "cc"}
    record |= {"size": [64, 64], "best_epoch": 0, "val_dice": 0.5}
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "anatomies": list(phantom_store.anatomies)}))
    return tmp_path / "run"


def dice_of(predictor: Predictor, path, anatomy: str, threshold: float, truth) -> float:
    image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255
    claim = predictor(image, [anatomy])[0, 0].numpy() > threshold
    return 2 * (claim & truth).sum() / (claim.sum() + truth.sum())


def expected_dice(network, image, truth, head) -> float:
    with torch.no_grad():
        claim = network(torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255)[0, head].numpy() > 0
    return 2 * (claim & truth).sum() / (claim.sum() + truth.sum())


def test_a_student_through_the_command(run, phantom_folder, phantom_store):
    words = ["evaluate", "--run", str(run), "--store", phantom_store.url, "--multilabel", str(phantom_folder), "--device", "cpu"]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads((run / "multilabel-test.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert set(result["dice"]) == set(MULTILABEL_ANATOMIES) == set(result["known_precision"])
    assert (result["kind"], result["arch"], result["seed"], result["kd"]) == ("student", "mininetv2", 4, True)
    assert result["images"] == len(find_scenes(phantom_folder, set(map(str, REFERENCE_TEST))))
    assert 0 <= result["claimed_twice"] <= result["claimed"] <= 1
    assert "claimed by a head" in (run / "README.md").read_text()
    assert "thresholds" not in result and not any(key.endswith("_at_operating_point") for key in result)

    from mtkd_cache.models.checkpoints import load_network

    network, head = load_network(run), phantom_store.anatomies.index("stomach")
    dice = []
    for path in sorted((phantom_folder / "multilabel" / "02").glob("image*.png")):
        truth = np.asarray(Image.open(path.with_name(path.name.replace("image", "mask").replace(".png", "_stomach.png")))) > 0
        dice.append(expected_dice(network, np.asarray(Image.open(path)), truth, head))
    assert result["dice"]["stomach"] == pytest.approx(np.nanmean(dice), abs=1e-6)


def test_the_teachers(phantom_folder, phantom_store, untrained_teacher, accelerator, tmp_path):
    for seed, anatomy in enumerate(phantom_store.anatomies):
        untrained_teacher(tmp_path, anatomy, seed=seed)
    predictor = Predictor.load(tmp_path)
    given = {anatomy: OperatingPoint(threshold=-2.0, images=1, patients=1) for anatomy in phantom_store.anatomies}
    given["liver"] = replace(given["liver"], presence=100.0)
    points = OperatingPoints(store_fingerprint=phantom_store.fingerprint, weights_sha256="", points=given)
    result = evaluate_multilabel(
        replace(predictor, operating_points=[points]), phantom_folder, phantom_store, "test", accelerator
    )
    assert set(result.thresholds.values()) == {-2.0}
    assert result.claimed_at_operating_point > result.claimed
    assert result.claimed_twice_at_operating_point > result.claimed_twice
    image = phantom_folder / "multilabel" / "02" / "image00.png"
    truth = np.asarray(Image.open(image.with_name("mask00_liver.png"))) > 0
    assert len(find_scenes(phantom_folder, {"2"})) == 1
    assert result.dice["liver"] == pytest.approx(dice_of(predictor, image, "liver", 0, truth), abs=1e-6)
    assert result.dice_at_operating_point["liver"] == pytest.approx(dice_of(predictor, image, "liver", -2, truth), abs=1e-6)
    silent = {anatomy: value for anatomy, value in result.dice_at_operating_point.items() if value is not None} | {"liver": 0.0}
    assert result.dice_with_presence == silent
    assert result.claimed_twice_with_presence <= result.claimed_twice_at_operating_point
    assert (result.kind, result.layout, result.arch) == ("teachers", "separate", "mininetv2")
    assert (tmp_path / "multilabel-test.json").exists()
    assert not (tmp_path / "README.md").exists()  # nothing is recorded of their training


def test_a_mask_of_another_size_is_refused(run, phantom_folder, phantom_store, copy_of, accelerator):
    copy = copy_of(phantom_folder)
    path = copy / "multilabel" / "02" / "mask00_liver.png"
    Image.open(path).resize((10, 10), Image.Resampling.NEAREST).save(path)
    with pytest.raises(MtkdError, match=r"mask00_liver.png is 10x10, its image 64x64"):
        evaluate_multilabel(Predictor.load(run), copy, phantom_store, "test", accelerator)
