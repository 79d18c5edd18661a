"""The model card: what a reader must find in it, and that nobody's own README is lost."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mtkd_cache.evaluation.dice import evaluate
from mtkd_cache.evaluation.model_card import CARD, MARK, write_card
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, save_network
from mtkd_cache.models.network import create_network

STORE, CACHE, SHA = "5" * 64, "c" * 64, "f" * 64


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def student(folder: Path, anatomies=("liver", "ureter"), **more) -> Path:
    record = {
        "kind": "student",
        "arch": "mininetv2",
        "layout": "shared",
        "kd": True,
        "seed": 7,
        "anatomies": list(anatomies),
        "size": [640, 512],
        "recipe": {"student": {"arch": "mininetv2", "weights": "none", "lr": 0.001}, "distillation": {"temperature": 4.0}},
        "dataset": "dsad",
        "store_fingerprint": STORE,
        "cache_fingerprint": CACHE,
        "teachers": {"liver": {"arch": "segformer-mit_b3", "weights_sha256": SHA}},
        "weights_sha256": SHA,
        "history": [{"epoch": 0}, {"epoch": 1}],
        "best_epoch": 1,
        "val_dice": 0.512,
        "environment": {"torch": "9.9"},
    }
    write(folder / "run.json", {**record, **more})
    return folder


def teachers(folder: Path, anatomies=("liver", "ureter"), **more) -> Path:
    for anatomy in anatomies:
        record = {"kind": "teacher", "arch": "segformer-mit_b3", "seed": 0, "anatomies": list(anatomies), "anatomy": anatomy}
        record |= {
            "size": [640, 512],
            "best_epoch": 0,
            "val_dice": 0.5,
            "store_fingerprint": STORE,
            "weights_sha256": anatomy[0] * 64,
        }
        write(folder / anatomy / "teacher.json", {**record, "recipe": {"teacher": {"weights": "paper"}}, **more})
    return folder


def evaluation(folder: Path, split: str, liver: float, ureter: float | None) -> None:
    value = {"dice": {"liver": liver, "ureter": ureter}, "mean_dice": liver, "images": 31, "split": split, "dataset": "dsad"}
    write(folder / f"evaluation-{split}.json", value)


def test_a_students_card(tmp_path):
    evaluation(student(tmp_path), "test", 0.7149, None)
    evaluation(tmp_path, "validation", 0.6, 0.25)
    text = write_card(tmp_path).read_text()
    assert text.startswith(MARK)
    assert "# mininetv2, one encoder with 2 decoders, with distillation" in text
    assert "no medical device" in text
    for said in (
        "Dataset: dsad",
        "640x512",
        "liver, ureter",
        "weights: none",
        "Seed: 7",
        "cached logits of its teachers (segformer-mit_b3)",
        "epoch 2 of 2",
        "51.2 %",
        "torch: 9.9",
    ):
        assert said in text
    for fingerprint in (STORE, CACHE, SHA):
        assert fingerprint in text
    assert "| Anatomy | test: at 0.5 | validation: at 0.5 |\n" in text
    assert "no operating point is chosen" in text and "## Operating points" not in text
    assert "| liver | 71.5 | 60.0 |\n| ureter | - | 25.0 |\n" in text
    assert '[student]\narch = "mininetv2"\nweights = "none"\nlr = 0.001\n\n[distillation]\ntemperature = 4.0\n' in text
    assert write_card(tmp_path).read_text() == text


def test_a_baseline_names_no_cache(tmp_path):
    text = write_card(student(tmp_path, kd=False, cache_fingerprint=None)).read_text()
    assert "without distillation" in text
    assert "Logit cache" not in text
    assert "Not evaluated yet." in text


def test_a_card_calls_the_precision_as_the_command_does(tmp_path):
    text = write_card(student(tmp_path / "a", precision="no")).read_text()
    assert "\n- Precision: fp32\n" in text and "\n\n## Dice\n" in text
    assert "\n- Precision: bf16\n" in write_card(student(tmp_path / "b", precision="bf16")).read_text()


def test_a_card_says_what_paper_weights_are(tmp_path):
    text = write_card(student(tmp_path, recipe={"student": {"weights": "paper"}})).read_text()
    assert "Started from weights: none: random weights" in text


def test_the_teachers_card_names_each_networks_weights(tmp_path):
    evaluation(teachers(tmp_path / "teachers"), "test", 0.9, 0.5)
    text = write_card(tmp_path / "teachers").read_text()
    assert "# segformer-mit_b3, one network for each of 2 anatomies" in text
    assert f"Weights of liver, SHA-256: `{'l' * 64}`" in text
    assert f"Weights of ureter, SHA-256: `{'u' * 64}`" in text
    assert 'Predictor.load("teachers")' in text
    assert "Dataset: dsad" in text
    assert "Started from weights: cityscapes, as in the paper's setting" in text


@pytest.mark.parametrize("name", ["run", 'a "run"', "a\n```\nrun\\"])
def test_the_loading_code_runs(tmp_path, monkeypatch, name):
    run = tmp_path / name
    torch.manual_seed(0)
    save_network(run / WEIGHTS, create_network("mininetv2", 2), ("liver", "ureter"))
    student(run, weights_sha256=file_sha256(run / WEIGHTS), size=[64, 64])
    code = re.search(r"```python\n(.*?)\n```", write_card(run).read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    names = {"frame": np.zeros((48, 60, 3), np.uint8)}
    exec(code, names)
    assert names["masks"].shape == (2, 48, 60)
    assert names["masks"].dtype == bool


def test_anothers_readme_is_left(tmp_path):
    (student(tmp_path) / CARD).write_text("# My own words\n")
    assert write_card(tmp_path).read_text() == "# My own words\n"


def test_a_folder_without_records_has_no_card(tmp_path):
    assert write_card(tmp_path) is None
    assert not (tmp_path / CARD).exists()


@pytest.mark.parametrize("kind", ["student", "teachers"])
def test_evaluation_writes_the_card(tmp_path, organ_store, accelerator, kind):
    organs, folder = organ_store.anatomies, tmp_path / "folder"
    torch.manual_seed(0)
    if kind == "student":
        save_network(folder / WEIGHTS, create_network("mininetv2", 2), organs)
        student(folder, organs, weights_sha256=file_sha256(folder / WEIGHTS))
    else:
        for organ in organs:
            save_network(folder / organ / WEIGHTS, create_network("mininetv2", 1), [organ])
        teachers(folder, organs, weights_sha256=None)
    evaluation = evaluate(Predictor.load(folder), organ_store, "validation", accelerator)
    text = (folder / CARD).read_text()
    means = (evaluation.mean_dice, evaluation.mean_dice_at_operating_point, evaluation.mean_average_precision)
    assert f"| **mean** | {' | '.join(f'**{100 * mean:.1f}**' for mean in means)} |" in text
    titles = ("at 0.5", "at operating point", "average precision")
    assert f"| Anatomy | {' | '.join(f'validation: {title}' for title in titles)} |" in text
    if kind == "student":  # these teachers' records name no weights
        for organ in organs:
            assert re.search(rf"\| {organ} \| {evaluation.thresholds[organ]} \| - \| [0-9.]+ \| [0-9.]+ \|\n", text)
        assert "no operating point is chosen" not in text


def test_a_card_shows_markup_as_it_is(tmp_path):
    evil = "<svg onload=alert(1)>"
    student(tmp_path, ("liver|", f"{evil}\n# x"), arch=evil, dataset=evil, environment={evil: evil})
    write(tmp_path / "evaluation-test.json", {"dice": {f"{evil}|": 0.5}, "mean_dice": 0.5, "images": 1, "split": evil})
    text = write_card(tmp_path).read_text()
    assert "<svg" not in text
    assert "\n# x" not in text
    assert "| &lt;svg onload=alert(1)>\\| | 50.0 |\n" in text


def test_a_card_leaves_out_what_other_weights_were_judged(tmp_path):
    student(tmp_path)
    for split, weights in (("test", "0" * 64), ("validation", SHA)):
        evaluation(tmp_path, split, 0.5, 0.5)
        path = tmp_path / f"evaluation-{split}.json"
        write(path, {**json.loads(path.read_text()), "weights_sha256": weights})
    assert "| Anatomy | validation: at 0.5 |\n" in write_card(tmp_path).read_text()


def test_a_card_has_intervals_and_names_heads_that_claim_nearly_everything(tmp_path):
    student(tmp_path)
    content = {"split": "validation", "mean_dice": 0.5, "images": 4, "dice": {"liver": 0.6, "ureter": 0.02}}
    bounds = {"mean": [0.4, 0.61], "by_anatomy": {"liver": [0.5, 0.7], "ureter": None}}
    content |= {"intervals": {"dice": bounds}, "dice_at_operating_point": {"liver": 0.9, "ureter": 0.04}}
    content |= {"claims_at_operating_point": {"liver": 0.95, "ureter": 0.97}}  # the liver's pictures are full of liver
    write(tmp_path / "evaluation-validation.json", content)
    text = write_card(tmp_path).read_text()
    assert "| liver | 60.0 (50.0 to 70.0) | 90.0 |" in text and "| ureter | 2.0 | 4.0 |" in text
    assert "| **mean** | **50.0 (40.0 to 61.0)** |" in text
    assert "claim more than 90 % of the validation pixels, most of them wrongly: ureter (97.0 %).** Do not use them." in text
