"""Samples listed in a CSV or by a caller: what is read, how patients are split, and what is said of bad lists."""

import csv
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mtkd_cache.cli.main import main
from mtkd_cache.data import store_writer
from mtkd_cache.data.dresden import find_samples, with_split
from mtkd_cache.data.ingest import ingest_csv, ingest_samples
from mtkd_cache.data.sample_csv import read_csv
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.samples import SHARES, Sample, complete, split_by_patient, stored_patient
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, dump_checked_json, read_checked_json
from mtkd_cache.storage.folder import Folder

HEADER = ("image", "mask", "anatomy", "patient", "split", "frame")
SIZE = (32, 24)
VERSION_0_1 = "bed903c4223ec5ad90b1e8c376b45fa4af86470709332c22a2bf7414a10de335"  # the fingerprint that it gave organ_store


def write_csv(path: Path, rows: list, header=HEADER, **options) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def listed(samples: list[Sample], name=str) -> list[list]:
    """The rows of a CSV, shuffled, with the patients' names changed."""
    rows = [[s.image, s.mask, s.anatomy, name(s.patient), s.split, s.frame] for s in samples]
    random.Random(0).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def organs(organ_folder, organ_split) -> list[Sample]:
    """The 24 samples of the two organs, in their splits."""
    return with_split(find_samples(organ_folder)[0], organ_split)


@pytest.fixture
def lab(tmp_path) -> Path:
    """A folder as a lab has it: four patients, a JPEG and two masks of each, and a CSV without splits and frames."""
    rows = []
    random = np.random.default_rng(0)
    for patient in ("ana", "ben", "eva", "ida"):
        Image.fromarray(random.integers(0, 255, (24, 32, 3), np.uint8)).save(tmp_path / f"{patient}_0012.jpg")
        for number, anatomy in enumerate(("liver", "colon")):
            mask = np.zeros((24, 32), np.uint8)
            mask[8 * number : 8 * number + 4] = 255
            Image.fromarray(mask).save(tmp_path / f"{patient}_{anatomy}.tif")
            rows.append([f"{patient}_0012.jpg", f"{patient}_{anatomy}.tif", anatomy, patient])
    return write_csv(tmp_path / "samples.csv", rows, HEADER[:4])


def changed(file: Path, line: int, **cells: str) -> None:
    """Change cells of a line; the first line of a file is 1."""
    rows = list(csv.reader(file.open()))
    for name, cell in cells.items():
        rows[line - 1][rows[0].index(name)] = cell
    write_csv(file, rows[1:], rows[0])


# --- what is read


def test_a_csv_gives_the_store_of_the_folder(organs, organ_store, tmp_path):
    file = write_csv(tmp_path / "samples.csv", listed(organs))
    result = ingest_csv(file, str(tmp_path / "s.zarr"), size=(64, 64))
    assert result["fingerprint"] == organ_store.fingerprint == VERSION_0_1
    assert result["patients"] == {"train": ["30", "31"], "validation": ["40"], "test": ["50"]} and not result["assigned"]
    own, folders = (read_checked_json(Folder(url), MANIFEST) for url in (tmp_path / "s.zarr", organ_store.url))
    named = {"files", "name"}
    assert {key: own[key] for key in own.keys() - named} == {key: folders[key] for key in folders.keys() - named}
    assert {key: own["files"][key] for key in own["files"].keys() - {"zarr.json"}} == {
        key: folders["files"][key] for key in folders["files"].keys() - {"zarr.json"}
    }


def test_patients_have_any_name_and_the_pixels_stay(organs, organ_store, tmp_path):
    file = write_csv(tmp_path / "samples.csv", listed(organs, "Nr. {}/ä".format), delimiter=";")
    ingest_csv(file, str(tmp_path / "s.zarr"), size=(64, 64))
    store = SampleStore.open(str(tmp_path / "s.zarr"))
    assert store.fingerprint != organ_store.fingerprint
    assert store.patients.tolist() == [f"Nr. {patient}/ä" for patient in organ_store.patients]
    assert store.describe(0) == "kidney/Nr. 30/ä/image00"
    everything = np.arange(len(store))
    for own, folders in zip(store.read(everything), organ_store.read(everything), strict=True):
        assert np.array_equal(own, folders)
    assert read_checked_json(Folder(store.url), MANIFEST)["format"] == 2


def test_an_image_with_several_masks_is_read_once_and_gives_several_samples(lab, tmp_path, monkeypatch):
    reads, whole = [], store_writer.read_image
    monkeypatch.setattr(store_writer, "read_image", lambda path, size: (reads.append(path.name), whole(path, size))[1])
    result = ingest_csv(lab, str(tmp_path / "s.zarr"), size=SIZE)
    assert sorted(reads) == ["ana_0012.jpg", "ben_0012.jpg", "eva_0012.jpg", "ida_0012.jpg"]
    assert (result["samples"], result["by_anatomy"], result["assigned"]) == (8, {"colon": 4, "liver": 4}, True)
    assert list(result["by_split"]) == ["train", "validation", "test"]  # although the first patient, ana, is in test
    store = SampleStore.open(str(tmp_path / "s.zarr"))
    assert store.anatomies == ("colon", "liver") and len(set(store.hashes)) == 8 and set(store.frame) == {12}
    images, masks = store.read(np.arange(8))
    for row in range(8):
        anatomy, patient = store.anatomies[store.anatomy[row]], store.patients[row]
        assert np.array_equal(images[row], np.asarray(Image.open(lab.parent / f"{patient}_0012.jpg")))
        assert np.array_equal(masks[row], np.asarray(Image.open(lab.parent / f"{patient}_{anatomy}.tif")) > 0)


def test_a_change_in_the_csv_alone_is_noticed(lab, tmp_path):
    url = str(tmp_path / "s.zarr")
    first = ingest_csv(lab, url, size=SIZE)
    for line in (2, 3):
        changed(lab, line, patient="anb")
    assert ingest_csv(lab, url, size=SIZE, resplit=True)["fingerprint"] != first["fingerprint"]
    assert {"anb", "ben"} < set(SampleStore.open(url).patients)


def test_shards_of_version_0_1_are_written_again_to_the_same_fingerprint(organs, organ_store, copy_of):
    folder = Folder(copy_of(organ_store.url))
    record = read_checked_json(folder, "records/00000.json")
    for sample in record["samples"]:
        del sample["size"], sample["foreground"]
    folder.write("records/00000.json", dump_checked_json(record))
    result = ingest_samples(organs, folder.url, name="organs", size=(64, 64))
    assert (result["fingerprint"], result["uneven_sizes"]) == (organ_store.fingerprint, {})


def test_sizes_that_resizing_stretches_differently_are_told(lab, tmp_path):
    for name in ("ben_0012.jpg", "ben_liver.tif", "ben_colon.tif"):
        Image.open(lab.parent / name).resize((16, 24)).save(lab.parent / name)
    for name in ("eva_0012.jpg", "eva_liver.tif", "eva_colon.tif"):
        Image.open(lab.parent / name).resize((64, 49)).save(lab.parent / name)  # 2.0 % narrower
    uneven = ingest_csv(lab, str(tmp_path / "s.zarr"), size=SIZE, threshold=127)["uneven_sizes"]
    assert uneven.keys() == {"16x24", "64x49"}
    assert uneven["16x24"] == {"samples": 2, "first": "colon, patient ben, frame 12", "stretched": 1.0}
    assert uneven["64x49"]["stretched"] == 0.021


@pytest.mark.parametrize(
    ("names", "frames"),
    [
        (["a_7.png", "a_12.png"], [7, 12]),
        (["7/x.png", "8/x.png"], [0, 1]),
        (["cam1_3.png", "cam2_3.png"], [0, 1]),
        (["b.png", "a_9.png"], [1, 0]),
        (["99999999999.png", "1.png"], [1, 0]),
    ],
)
def test_frames_that_are_not_given(tmp_path, monkeypatch, names, frames):
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    samples = [Sample(image=Path(name), mask=Path("m"), anatomy="liver", patient="a", split="train") for name in names]
    others = [Sample(image=Path(f"{p}.png"), mask=Path("m"), anatomy="liver", patient=p, split=p) for p in ("validation", "test")]
    found = {sample.image: sample.frame for sample in complete(samples + others)}
    assert [found[Path(name)] for name in names] == frames


@pytest.mark.parametrize("patient", ["2147483648", "012", "-1", "1.0", "\u0663"])
def test_numbers_that_a_store_cannot_hold_are_names(patient):
    assert (stored_patient("2147483647"), stored_patient("0"), stored_patient(patient)) == (2147483647, 0, patient)


def test_a_caller_may_name_files_and_patients_as_it_has_them(organs, organ_store, tmp_path):
    given = (
        Sample(image=str(s.image), mask=str(s.mask), anatomy=s.anatomy, patient=int(s.patient), frame=s.frame, split=s.split)
        for s in reversed(organs)
    )
    result = ingest_samples(given, str(tmp_path / "s.zarr"), name="organs", size=(64, 64))
    assert result["fingerprint"] == organ_store.fingerprint


# --- the split that is made where none is given


def sample(patient: str, anatomy: str) -> Sample:
    return Sample(image=Path(patient), mask=Path(), anatomy=anatomy, patient=patient)


def test_patients_are_split_whole_and_the_same_way_in_any_order():
    samples = [sample(f"P{number}", anatomy) for number, anatomy in itertools.product(range(40), ("colon", "liver"))]
    split = split_by_patient(samples)
    assert split == split_by_patient(samples[::-1])
    parts = list(split.values())
    assert [parts.count(part) for part in ("train", "validation", "test")] == [26, 6, 8] and SHARES == {
        "validation": 0.15,
        "test": 0.2,
    }


@pytest.mark.parametrize("seed", range(20))
def test_each_split_has_every_anatomy_where_patients_allow(seed):
    random = np.random.default_rng(seed)
    anatomies = [f"a{number}" for number in range(6)]
    samples = [sample(f"P{number}", anatomy) for anatomy in anatomies for number in random.choice(12, 3, replace=False)]
    samples += [sample("only", "rare"), sample("P0", "pair"), sample("P1", "pair")]
    split = split_by_patient(samples)
    filled = {(entry.anatomy, split[entry.patient]) for entry in samples}
    assert split["only"] == "train"
    assert {(anatomy, "train") for anatomy in (*anatomies, "rare", "pair")} <= filled
    assert sum((anatomy, "validation") in filled for anatomy in anatomies) >= 5  # 3 patients need not be separable


def test_three_patients_are_one_for_each_split_and_two_are_refused():
    three = [sample(patient, "liver") for patient in "abc"]
    assert sorted(split_by_patient(three).values()) == ["test", "train", "validation"]
    with pytest.raises(MtkdError, match=r"are of 2 patient\(s\); training, validation and test need one each"):
        split_by_patient(three[:2])


# --- bad lists


@pytest.mark.parametrize(
    ("line", "cells", "message"),
    [
        (4, {"mask": "gone.png"}, "line 4: there is no file .*gone.png"),
        (4, {"anatomy": " "}, "line 4: anatomy is empty"),
        (4, {"patient": ""}, "line 4: patient is empty"),
        (4, {"anatomy": "a/b"}, "line 4: an anatomy cannot be named 'a/b'"),
        (4, {"split": "val"}, "line 4: there is no split 'val'. Name one of train, validation, test"),
        (4, {"split": ""}, "line 4: no split is given, but others have one"),
        (4, {"split": "test"}, r"patient 30 is in the split (test|train) here, and in (train|test) at .*line"),
        (4, {"frame": "1.0"}, "line 4: the frame '1.0' is not a whole number"),
        (4, {"frame": "2147483648"}, "line 4: frame 2147483648 is not a number from 0"),
        (3, {"frame": "0"}, r"line 3 and .*line 2 are both kidney, patient 30, frame 0"),
        (3, {"image": "kidney/30/image00.png", "patient": "31"}, r"line 3: .*image00.png is of patient 31 here, and of 30 at"),
        (3, {"image": "kidney/30/mask00.png", "mask": "small.png"}, r"line 3: .*small.png is 8x8, its image 64x64"),
        (3, {"image": "samples.csv"}, r"line 3: .*samples.csv cannot be read as an image"),
    ],
)
def test_a_bad_row_is_told_with_its_line(copy_of, organ_folder, organ_split, tmp_path, line, cells, message):
    root = copy_of(organ_folder)
    Image.new("L", (8, 8)).save(root / "small.png")
    samples = with_split(find_samples(root)[0], organ_split)
    rows = [[s.image.relative_to(root), s.mask.relative_to(root), s.anatomy, s.patient, s.split, s.frame] for s in samples]
    file = write_csv(root / "samples.csv", rows)
    changed(file, line, **cells)
    with pytest.raises(MtkdError, match=message) as caught:
        ingest_csv(file, str(tmp_path / "s.zarr"), size=SIZE)
    assert str(caught.value).count("\n") < 2 and len(str(caught.value)) < 600


def test_a_csv_that_is_not_there(tmp_path):
    with pytest.raises(MtkdError, match="there is no such file"):
        read_csv(tmp_path / "samples.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column image, mask, anatomy, patient; its first line names nothing"),
        ("image,mask,patient\n", "has no column anatomy; its first line names image, mask, patient"),
        ("image,mask,anatomy,patient,Mask\n", "line 1: there are two columns named mask"),
        ("image,mask,anatomy,patient\n\n", "lists no samples"),
        ("image,mask,anatomy,patient\na,b,liver\n", "line 2 has 3 cells, the first line 4"),
        ("image,mask,anatomy,patient\na,b,liv\xe9r,p\n", "cannot be read as a CSV"),
        (f'image,mask,anatomy,patient\na,b,liver,p\n"a,b{"x" * 2**17}', r"line 3: field larger .*\. Is a quote left open\?"),
        (f'"image,{"x" * 2**17}', r"line 1: field larger .*\. Is a quote left open\?"),
    ],
)
def test_a_file_that_is_no_list_of_samples(tmp_path, text, message):
    (tmp_path / "samples.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(MtkdError, match=message):
        read_csv(tmp_path / "samples.csv")


def test_an_anatomy_of_too_few_patients_is_named(lab, tmp_path):
    changed(lab, 2, anatomy="spleen")
    with pytest.raises(MtkdError, match=r"spleen has no sample in the validation split\. Add patients to it"):
        ingest_csv(lab, str(tmp_path / "s.zarr"), size=SIZE)


def test_the_command(lab, tmp_path):
    columns = [[*row, "60"] for row in csv.reader(lab.open())]
    write_csv(lab, columns[1:], ("Image", "MASK", "anatomy", " patient", "age"), dialect="excel-tab")
    said = CliRunner().invoke(main, ["ingest", "--csv", str(lab), "--store", str(tmp_path / "s.zarr"), "--size", "32x24"]).stderr
    assert "8 samples in" in said and "train (2 patients)" in said
    assert "no splits are given: each patient was assigned to one" in said and "skipped: 1 columns (age)" in said
    for arguments in ([], ["x", "--csv", "y"], ["--csv", "y", "--validation", "1", "--test", "2"]):
        assert CliRunner().invoke(main, ["ingest", *arguments]).exit_code == 2
