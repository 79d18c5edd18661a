"""Presence labels: what is matched whatever its spelling, what is counted, what the store holds."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtkd_cache.data.dresden import find_samples
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.samples import Sample
from mtkd_cache.data.weak_labels import FILE, with_labels
from mtkd_cache.errors import MtkdError


def labels_of(folder: Path, text: str) -> tuple[dict[int | None, dict[str, bool]], dict[str, int]]:
    """The labels that a file gives images 0, 1 and 12 of a folder, and the counts."""
    (folder / FILE).write_text(text, encoding="utf-8")
    samples = [
        Sample(image=folder / f"{frame}.png", mask=folder, anatomy=anatomy, patient="1", frame=frame)
        for frame, anatomy in ((0, "abdominal_wall"), (1, "liver"), (12, "liver"))
    ]
    labelled, counts = with_labels(samples)
    return {sample.frame: dict(sample.labels) for sample in labelled}, dict(counts)


BOTH = {0: {"abdominal_wall": True, "liver": False}, 1: {}, 12: {"abdominal_wall": False, "liver": True}}


@pytest.mark.parametrize(
    "text",
    [
        "image,abdominal_wall,liver\n0,1,0\n12,0,1\n",
        "\ufeffImage;Liver;Abdominal Wall\nimage00.png;0;1\nimage12.png;1;0\n",
        "\tLIVER\tabdominal-wall\n00\tFalse\tTrue\nanno/image12\t1.0\t0.0\n",
        "liver,AbdominalWall,frame\nno,yes,0\nyes,no,12\n",
    ],
)
def test_names_are_matched_whatever_their_spelling(tmp_path, text):
    labels, counts = labels_of(tmp_path, text)
    assert labels == BOTH
    assert counts == {"files": 1, "rows matched": 2}


def test_what_is_not_matched_is_counted(tmp_path):
    text = "image,liver,uterus,abdominal_wall,note\n0,0,1,1,x\n12,1,1,?,x\n7,1,1,1,x\nlast,1,1,1,x\n13,1\n"
    labels, counts = labels_of(tmp_path, text)
    assert labels == {**BOTH, 12: {"liver": True}}
    assert counts == {
        "files": 1,
        "rows matched": 2,
        "rows of no image": 1,
        "rows not understood": 2,
        "cells not understood": 1,
        "columns of no anatomy: uterus": 1,
        "columns of no anatomy: note": 1,
    }


@pytest.mark.parametrize("text", ["", "liver,abdominal_wall\n1,0\n", "image,uterus\n0,1\n"])
def test_a_file_that_is_not_understood_gives_no_labels(tmp_path, text):
    labels, counts = labels_of(tmp_path, text)
    assert labels == {0: {}, 1: {}, 12: {}} and counts["files not understood"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,liver,Liver\n0,1,1\n", "two columns of liver"),
        ("image,liver\n0,1\nimage00.png,0\n", "two rows of image 00"),
        (f'image,liver\n0,"1\n{"x" * 2**17}', r"weak_labels\.csv, line 3: field larger .*\. Is a quote left open\?"),
    ],
)
def test_two_answers_and_an_open_quote_are_refused(tmp_path, text, message):
    with pytest.raises(MtkdError, match=message):
        labels_of(tmp_path, text)


@pytest.fixture(scope="module")
def labelled(organ_folder, organ_split, tmp_path_factory) -> Path:
    """The two organs with labels in three surgeries' folders, and their store beside them."""
    root = tmp_path_factory.mktemp("labelled")
    shutil.copytree(organ_folder, root / "organs")
    for folder in ("kidney/30", "kidney/40", "tongue/50"):
        other = "tongue" if folder.startswith("kidney") else "kidney"
        (root / "organs" / folder / FILE).write_text(f"image,{folder[:6]},{other}\n0,1,0\n2,1,1\n")
    ingest(root / "organs", str(root / "s.zarr"), size=(64, 64), split=organ_split)
    return root


def test_the_store_holds_them_beside_its_fingerprint(labelled, organ_store):
    store = SampleStore.open(str(labelled / "s.zarr"))
    assert store.fingerprint == organ_store.fingerprint
    assert store.present.dtype == np.int8
    expected = np.full((24, 2), -1)
    expected[[0, 2, 6, 8]] = [1, 0], [1, 1], [1, 0], [1, 1]
    expected[[21, 23]] = [0, 1], [1, 1]
    assert np.array_equal(store.present, expected)
    assert organ_store.labels_fingerprint is None and len(store.labels_fingerprint) == 64
    assert np.array_equal(organ_store.present, np.full((24, 2), -1))


def test_changed_labels_are_noticed_and_without_labels_the_store_is_the_plain_one(labelled, organ_store, organ_split, copy_of):
    root = copy_of(labelled)
    before = SampleStore.open(str(root / "s.zarr"))
    file = root / "organs/kidney/30" / FILE
    file.write_text(file.read_text().replace("0,1,0", "0,1,1"))

    def again(**options) -> SampleStore:
        ingest(root / "organs", str(root / "s.zarr"), size=(64, 64), split=organ_split, **options)
        return SampleStore.open(str(root / "s.zarr"))

    after = again()
    assert (after.fingerprint, after.present[0].tolist()) == (before.fingerprint, [1, 1])
    assert after.labels_fingerprint != before.labels_fingerprint
    assert again(without_labels=True).labels_fingerprint is None
    own, plain = (
        {path.relative_to(url): path.read_bytes() for path in Path(url).rglob("*") if path.is_file() and path.name != ".lock"}
        for url in (root / "s.zarr", organ_store.url)
    )
    differing = {str(key) for key in own.keys() | plain.keys() if own.get(key) != plain.get(key)}
    assert differing == {"records/00000.json"}  # the paths


def test_a_mask_that_its_label_contradicts_is_named(labelled, organ_split, copy_of):
    root = copy_of(labelled)
    file = root / "organs/kidney/30" / FILE
    file.write_text(file.read_text().replace("2,1,1", "2,0,1"))
    with pytest.raises(MtkdError, match=r"in the mask of 1 images: .*organs/kidney/30/mask02.png\. Correct"):
        ingest(root / "organs", str(root / "s.zarr"), size=(64, 64), split=organ_split)
    Image.new("L", (64, 64)).save(file.parent / "mask02.png")  # an empty mask agrees with its label
    ingest(root / "organs", str(root / "s.zarr"), size=(64, 64), split=organ_split)
    assert SampleStore.open(str(root / "s.zarr")).present[2].tolist() == [0, 1]


def test_the_phantoms_labels_are_all_matched(phantom_folder, phantom_store):
    _, counts = with_labels(find_samples(phantom_folder)[0])
    assert counts == {"files": 33, "rows matched": len(phantom_store)}
    own = phantom_store.present[np.arange(len(phantom_store)), phantom_store.anatomy]
    assert (phantom_store.present >= 0).all() and own.all()
