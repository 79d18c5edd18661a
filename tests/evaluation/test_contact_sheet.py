"""The contact sheet shows samples of the teachers with the lowest Dice first."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.contact_sheet import contact_sheet
from mtkd_cache.models.network import upsample
from mtkd_cache.models.records import OperatingPoint, OperatingPoints, TeacherRecord
from mtkd_cache.training.metrics import image_dice

SHA = "f" * 64


def test_contact_sheet_shows_the_worst_teacher_first(organ_cache, organ_store, tmp_path):
    dice = {}
    for index, anatomy in enumerate(organ_store.anatomies):
        rows = organ_store.rows("train", anatomy)
        logits = torch.from_numpy(organ_cache.read(organ_store.hashes[rows])[:, [index]]) * organ_cache.step
        predicted = upsample(logits, organ_store.size[::-1])[:, 0] > 0
        dice[anatomy] = float(image_dice(predicted, torch.from_numpy(organ_store.read(rows)[1]) > 0).mean())
    order = contact_sheet(organ_cache, organ_store, tmp_path / "new" / "sheet.png", samples=3)
    assert order == sorted(dice, key=dice.get) and len(set(dice.values())) == 2
    picture = np.asarray(Image.open(tmp_path / "new" / "sheet.png").convert("RGB"))
    assert picture.shape[0] > 300 and picture.shape[1] > 400 and picture.std() > 20


def test_contact_sheet_believes_the_teachers_records(organ_cache, organ_store, tmp_path, monkeypatch):
    titles, set_title = [], Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda axis, text, **style: (titles.append(text), set_title(axis, text, **style)))
    for anatomy, dice in (("kidney", 0.25), ("tongue", 0.75)):
        (tmp_path / anatomy).mkdir()
        record = TeacherRecord(
            kind="teacher",
            arch="mininetv2",
            anatomies=(anatomy,),
            size=(64, 64),
            seed=0,
            best_epoch=1,
            val_dice=dice,
            anatomy=anatomy,
            weights_sha256=SHA,
        )
        (tmp_path / anatomy / "teacher.json").write_text(json.dumps(record.to_json()))
    out = tmp_path / "sheet.png"
    assert contact_sheet(organ_cache, organ_store, out, samples=1, teachers=tmp_path) == ["kidney", "tongue"]
    assert [title.split(" at ")[0] for title in titles[1:]] == ["kidney\nDice 25.0 %", "tongue\nDice 75.0 %"]
    for anatomy, dice in (("kidney", 0.9), ("tongue", 0.8)):
        point = OperatingPoint(threshold=-2.0, dice=dice, images=3, patients=1)
        points = OperatingPoints(store_fingerprint=organ_store.fingerprint, weights_sha256=SHA, points={anatomy: point})
        (tmp_path / anatomy / OperatingPoints.FILE).write_text(json.dumps(points.to_json()))
    assert contact_sheet(organ_cache, organ_store, out, samples=1, teachers=tmp_path) == ["tongue", "kidney"]
    Path(tmp_path / "tongue" / "teacher.json").unlink()
    with pytest.raises(MtkdError, match=r"no teacher\.json of tongue"):
        contact_sheet(organ_cache, organ_store, out, samples=1, teachers=tmp_path)


def test_contact_sheet_takes_a_name_as_it_is(organ_cache, organ_store, tmp_path):
    """Dollar signs would be typeset as a formula."""
    names = (r"$\frac{a}{b$", "tongue")
    spec = replace(organ_cache.spec, anatomies=names)
    cache = replace(organ_cache, manifest=replace(organ_cache.manifest, settings=spec))
    store = replace(organ_store, anatomies=names)
    assert set(contact_sheet(cache, store, tmp_path / "sheet.png", samples=2)) == set(names)


def test_contact_sheet_of_another_store(organ_cache, phantom_store, tmp_path):
    with pytest.raises(MtkdError, match="built for the anatomies"):
        contact_sheet(organ_cache, phantom_store, tmp_path / "sheet.png")
