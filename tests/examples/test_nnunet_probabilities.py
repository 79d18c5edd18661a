"""docs/examples/nnunet_probabilities.py on files in the layout that nnU-Net v2's --save_probabilities leaves."""

import json
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mtkd_cache as mc

SCRIPT = str(Path(__file__).parents[2] / "docs" / "examples" / "nnunet_probabilities.py")
EXAMPLE = runpy.run_path(SCRIPT)
STATED = {"source": "nnU-Net 2d, five folds", "license": "CC BY 4.0"}
LABELS = {"background": 0, "tongue": 1, "kidney": 2}
REGIONS = {"background": 0, "tongue": [1, 2], "kidney": [2], "ignore": 3}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def scores(row: int, channels: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(row).normal(0, 2.5, (channels, *size))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(0))
    return powers / powers.sum(0)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def save_case(folder: Path, case: str, probabilities: np.ndarray) -> None:
    """What nnUNetv2_predict leaves of a case: the array, the segmentation, and a pickle, here one that must not be opened."""
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)
    (folder / f"{case}.pkl").write_bytes(pickle.dumps(Trap(folder / "opened")))
    Image.fromarray(probabilities.reshape(len(probabilities), *probabilities.shape[-2:]).argmax(0).astype(np.uint8)).save(
        folder / f"{case}.png"
    )


@pytest.fixture
def predictions(store, tmp_path):
    """predictions(labels, function, channels, dtype, axes) writes a folder of all training cases and returns it."""

    def write(labels=LABELS, function=softmax, channels=3, dtype=np.float32, axes=4, size=(32, 32)) -> Path:
        folder = tmp_path / "predictions"
        folder.mkdir(exist_ok=True)
        for row in store.rows("train"):
            values = function(scores(row, channels, size)).astype(dtype)
            save_case(folder, EXAMPLE["case_of"](store, row), values[:, None] if axes == 4 else values)
        (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".png"}))
        return folder

    return write


def test_a_softmax_becomes_the_log_odds_of_each_anatomy(store, predictions, tmp_path):
    url, rows = str(tmp_path / "logits.zarr"), store.rows("train")
    counts = EXAMPLE["write_cache"](store.url, predictions(), url, **STATED)
    assert counts["maps"] == 24 and counts["zeros"] == counts["ones"] == 0
    cache = mc.LogitCache.open(url)
    assert cache.anatomies == ("kidney", "tongue") and cache.spec.grid == (32, 32)
    stored = cache.read(store.hashes[rows]) * cache.step
    for row, maps in zip(rows, stored, strict=True):
        kidney, tongue, background = (scores(row, 3)[channel] for channel in (2, 1, 0))
        for own, others, found in ((kidney, (tongue, background), maps[0]), (tongue, (kidney, background), maps[1])):
            exact = own - np.logaddexp(*others)  # log(p / (1 - p)) of a softmax
            limits = np.log(EXAMPLE["EPSILON"]), -np.log(EXAMPLE["EPSILON"])
            assert np.abs(found - exact.clip(*limits)).max() <= cache.step / 2 + 0.05  # float32 near 1
    assert mc.verify_cache(url, store=store)["ok"] and not (tmp_path / "predictions" / "opened").exists()
    assert "clipped at 1e-06" in cache.manifest.teachers["kidney"]["source"]


def test_regions_are_sigmoids_in_the_order_of_the_file(store, predictions, tmp_path):
    url, rows = str(tmp_path / "logits.zarr"), store.rows("train")
    folder = predictions(REGIONS, sigmoid, channels=2, dtype=np.float64, axes=3)
    EXAMPLE["write_cache"](store.url, folder, url, **STATED)
    cache = mc.LogitCache.open(url)
    stored = cache.read(store.hashes[rows]) * cache.step
    exact = np.stack([scores(row, 2)[[1, 0]] for row in rows])
    assert np.abs(stored - exact.clip(-13.8155, 13.8155)).max() <= cache.step / 2 + 1e-3


def test_exact_zeros_and_ones_are_clipped_and_counted(store, predictions, tmp_path):
    """nnU-Net crops: what it did not look at is background with probability 1."""
    folder, url = predictions(), str(tmp_path / "logits.zarr")
    row = store.rows("train")[0]
    values = softmax(scores(row, 3)).astype(np.float32)
    values[:, :4], values[0, :4] = 0, 1
    values[:, 5, 5] = 1e-9, 1 - 1e-9, 0
    save_case(folder, EXAMPLE["case_of"](store, row), values[:, None])
    counts = EXAMPLE["write_cache"](store.url, folder, url, **STATED)
    assert counts["zeros"] == 2 * 4 * 32 + 1 and counts["ones"] == 1
    cache = mc.LogitCache.open(url)
    kidney, tongue = cache.read(store.hashes[[row]])[0] * cache.step
    assert (kidney[:4] == -13.75).all() and tongue[5, 5] == 13.75


def test_other_grids_are_resampled_and_what_is_written_is_kept(store, predictions, tmp_path):
    folder, url = predictions(size=(48, 64)), str(tmp_path / "logits.zarr")
    last = folder / f"{EXAMPLE['case_of'](store, store.rows('train')[-1])}.npz"
    hidden = last.rename(folder / "hidden")
    with pytest.raises(mc.MtkdError, match=r"\.npz has no readable probabilities"):
        EXAMPLE["write_cache"](store.url, folder, url, **STATED, stride=2)
    hidden.rename(last)
    assert EXAMPLE["write_cache"](store.url, folder, url, **STATED, stride=2)["maps"] == 2
    cache, row = mc.LogitCache.open(url), store.rows("train")[3]
    exact = EXAMPLE["to_logits"](softmax(scores(row, 3, (48, 64))).astype(np.float32)[2], 1e-6, EXAMPLE["Counter"]())
    stored = cache.read(store.hashes[[row]])[0, 0] * cache.step
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    assert cache.spec.grid == (16, 16) and np.abs(stored[corners] - exact[corners]).max() <= cache.step / 2


def test_what_does_not_fit_is_named(store, predictions, tmp_path):
    folder = predictions()
    first = EXAMPLE["case_of"](store, store.rows("train")[0])

    def refused(text: str, values=None, labels=None) -> None:
        (folder / "dataset.json").write_text(json.dumps({"labels": labels or LABELS}))
        if values is not None:
            np.savez_compressed(folder / f"{first}.npz", **values)
        with pytest.raises(mc.MtkdError, match=text):
            EXAMPLE["write_cache"](store.url, folder, str(tmp_path / "logits.zarr"), **STATED)

    good = softmax(scores(0, 3)).astype(np.float32)
    refused("has no label kidney but background, liver, tongue", labels={"background": 0, "liver": 2, "tongue": 3})
    refused(r"not probabilities of 3 channels", {"probabilities": good[:2]})
    refused(r"not probabilities of 3 channels", {"probabilities": np.stack([good, good], 1)})
    refused("are no probabilities", {"probabilities": np.where(good > 0.5, np.nan, good)})
    refused("are no probabilities", {"probabilities": np.log(good)})
    refused("do not add up to 1", {"probabilities": good / 2})
    refused("turned the other way", {"probabilities": good[:, :, :20]})
    refused("no readable probabilities", {"softmax": good})
    refused("no readable probabilities", {"probabilities": np.array([Trap(folder / "opened")], object)})
    (folder / f"{first}.npz").write_bytes(b"PK")
    refused("no readable probabilities")
    assert not (folder / "opened").exists()


def test_the_script(store, predictions, tmp_path, monkeypatch, capsys):
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *words])
        runpy.run_path(SCRIPT, run_name="__main__")
        return capsys.readouterr().out

    assert run("images", store.url, str(tmp_path / "images")) == "12 images\n"
    row = store.rows("train")[5]
    image = np.asarray(Image.open(tmp_path / "images" / f"{EXAMPLE['case_of'](store, row)}_0000.png"))
    assert np.array_equal(image, store.read(np.array([row]))[0][0])
    words = ["cache", store.url, str(predictions()), str(tmp_path / "logits.zarr"), "--source", "nnU-Net", "--license", "MIT"]
    assert "'maps': 24" in run(*words) and mc.LogitCache.open(str(tmp_path / "logits.zarr")).spec.license == "MIT"
    with pytest.raises(SystemExit) as stopped:
        run(*words[:-1], "BSD")
    assert stopped.value.code == 1 and "license MIT (now BSD)" in capsys.readouterr().err
