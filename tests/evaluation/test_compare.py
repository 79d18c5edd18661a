"""Figures by picture as CSV, their summary, and the comparison of two evaluations."""

import csv
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.compare import compare
from mtkd_cache.evaluation.pictures import Picture
from mtkd_cache.evaluation.tables import PICTURES, figure_intervals, read_pictures, totals_of, write_pictures, write_summary
from mtkd_cache.models.records import EVALUATION, write_json
from mtkd_cache.training.metrics import summarize

NAN = math.nan


def picture(number: int, patient: str, anatomy: str, at_point: float, dice: float) -> Picture:
    figures = {"iou": 0.5, "precision": 0.25, "recall": 1 / 3, "average_precision": 0.125}
    return Picture(
        patient=patient,
        frame=number,
        anatomy=anatomy,
        sha256=f"{number:064x}",
        dice_at_operating_point=at_point,
        dice=dice,
        **figures,
    )


PICTURES_A = [
    picture(0, "Anna", "liver", 0.7, 0.5),
    picture(1, "Anna", "ureter", 0.2, 0.1),
    picture(2, "Berta, jr.", "liver", 1 / 3, 0.0),
    picture(3, "Carl", "liver", 0.9, 0.8),
    picture(4, "Carl", "ureter", NAN, NAN),
]
PICTURES_B = [
    replace(one, dice_at_operating_point=one.dice_at_operating_point + 0.1 * one.frame, dice=one.dice / 2) for one in PICTURES_A
]


def evaluated(folder: Path, pictures: list[Picture], split: str = "test", store: str = "aa") -> Path:
    """A folder with an evaluation of these pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    means = summarize((one.anatomy, [one.dice]) for one in pictures)
    write_json(folder / EVALUATION.format(split), {"split": split, "store_fingerprint": store, **means})
    write_pictures(folder / PICTURES.format(split), pictures)
    return folder


def test_pictures_are_read_as_they_were_written(tmp_path):
    write_pictures(tmp_path / "pictures.csv", PICTURES_A)
    lines = list(csv.DictReader((tmp_path / "pictures.csv").open()))
    assert lines[2]["patient"] == "Berta, jr."
    assert (lines[4]["dice_at_operating_point"], lines[4]["recall"]) == ("", "0.3333333")
    read = read_pictures(tmp_path / "pictures.csv")
    assert [repr(one) for one in read] == [repr(one) for one in rounded(PICTURES_A)]


def rounded(pictures: list[Picture]) -> list[Picture]:
    figures = {field.name for field in fields(Picture)} - {"patient", "frame", "anatomy", "sha256"}
    return [replace(one, **{figure: round(getattr(one, figure), 7) for figure in figures}) for one in pictures]


def test_a_figure_that_counts_for_no_picture_has_no_column(tmp_path):
    write_pictures(tmp_path / "pictures.csv", [replace(one, dice_at_operating_point=NAN) for one in PICTURES_A])
    assert "dice_at_operating_point" not in next(csv.reader((tmp_path / "pictures.csv").open()))
    assert math.isnan(read_pictures(tmp_path / "pictures.csv")[0].dice_at_operating_point)
    assert read_pictures(tmp_path / "absent.csv") is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"patient,frame,anatomy\nAnna,one,liver\n", "KeyError: 'sha256'"),
        (b"patient,frame,anatomy,sha256\nAnna,one,liver," + b"0" * 64, "ValueError: invalid literal"),
        (b"PK\x03\x04\xd0\xff\n" * 9, "UnicodeDecodeError: 'utf-8' codec can't decode"),
        (b"patient,frame\n" + b"x" * 200_000, "Error: field larger than field limit"),
    ],
    ids=["column", "number", "bytes", "field"],
)
def test_a_damaged_file_is_explained(content, says, tmp_path):
    (tmp_path / "pictures.csv").write_bytes(content)
    with pytest.raises(MtkdError, match=rf"pictures\.csv is damaged \({says}.* evaluate again") as caught:
        read_pictures(tmp_path / "pictures.csv")
    assert len(str(caught.value)) < 300 and "PK" not in str(caught.value)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (lambda text: "", "0 of 5 pictures"),
        (lambda text: text.splitlines()[0], "0 of 5 pictures"),
        (lambda text: "".join(text.splitlines(True)[:4]), "3 of 5 pictures"),
        (lambda text: text[:-9], "a row is cut off"),
        (lambda text: text[:-99], "a row is cut off"),
    ],
    ids=["empty", "head", "rows", "hash", "cells"],
)
def test_a_file_that_is_cut_off_is_no_evaluation_on_other_pictures(kept, says, tmp_path):
    first, second = evaluated(tmp_path / "a", PICTURES_A), evaluated(tmp_path / "b", PICTURES_B)
    path = second / PICTURES.format("test")
    path.write_text(kept(path.read_text()))
    with pytest.raises(MtkdError, match=rf"b/evaluation-test\.csv is damaged \(ValueError: {says}\)\. .* evaluate again"):
        compare(first, second)


def test_the_summary_is_by_anatomy_and_by_patient(tmp_path):
    write_summary(tmp_path / "summary.csv", PICTURES_A, figure_intervals(PICTURES_A))
    lines = {
        (line["group"], line["name"]): line
        for line in csv.DictReader((tmp_path / "summary.csv").open())
        if line["figure"] == "dice_at_operating_point"
    }
    assert list(lines) == [
        ("mean", ""),
        ("anatomy", "liver"),
        ("anatomy", "ureter"),
        ("patient", "Anna"),
        ("patient", "Berta, jr."),
        ("patient", "Carl"),
    ]
    expected = summarize((one.anatomy, [one.dice_at_operating_point]) for one in PICTURES_A)
    assert float(lines["mean", ""]["value"]) == pytest.approx(expected["mean_dice"], abs=1e-6)
    assert float(lines["anatomy", "liver"]["value"]) == pytest.approx(expected["dice"]["liver"], abs=1e-6)
    assert float(lines["patient", "Anna"]["value"]) == pytest.approx((0.7 + 0.2) / 2)
    assert [(line["pictures"], line["patients"]) for line in lines.values()] == [
        ("4", "3"),
        ("3", "3"),
        ("1", "1"),
        ("2", "1"),
        ("1", "1"),
        ("1", "1"),
    ]
    low, high = figure_intervals(PICTURES_A)["dice_at_operating_point"]["by_anatomy"]["liver"]
    assert (float(lines["anatomy", "liver"]["low"]), float(lines["anatomy", "liver"]["high"])) == pytest.approx(
        (low, high), abs=1e-6
    )
    assert lines["anatomy", "ureter"]["low"] == ""


def test_two_evaluations_are_compared_picture_by_picture(tmp_path):
    first, second = evaluated(tmp_path / "a", PICTURES_A), evaluated(tmp_path / "b", PICTURES_B[::-1])
    done = CliRunner().invoke(main, ["compare", str(first), str(second), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["figure"], said["split"], said["images"], said["patients"]) == ("dice_at_operating_point", "test", 5, 3)
    assert said["by_anatomy"]["liver"]["difference"] == pytest.approx((0.0 + 0.2 + 0.3) / 3, abs=1e-6)
    assert said["by_anatomy"]["ureter"]["difference"] == pytest.approx(0.1)
    assert said["mean"]["difference"] == pytest.approx((0.5 / 3 + 0.1) / 2, abs=1e-6)
    assert (said["mean"]["p"], said["mean"]["higher"], said["mean"]["lower"]) == (2 / 8, 3, 0)
    assert said["by_anatomy"]["ureter"]["interval"] is None
    assert done.stderr.startswith("Dice at operating point (%) on test, 5 pictures of 3 patients\n") and "liver" in done.stderr
    assert "+16.7" in done.stderr


def test_dice_at_probability_half_where_an_evaluation_has_no_operating_points(tmp_path):
    first = evaluated(tmp_path / "a", [replace(one, dice_at_operating_point=NAN) for one in PICTURES_A])
    second = evaluated(tmp_path / "b", PICTURES_B)
    assert compare(first, second).figure == "dice"
    assert compare(first, second).differences["liver"].difference == pytest.approx(-(0.5 + 0.8) / 6)
    assert compare(first, second, figure="iou").differences["mean"].difference == 0
    with pytest.raises(
        MtkdError, match=r"a/evaluation-test\.csv has no dice_at_operating_point\. It has average_precision, dice,"
    ):
        compare(first, second, figure="dice_at_operating_point")


def test_what_cannot_be_compared_is_explained(tmp_path):
    first = evaluated(tmp_path / "a", PICTURES_A)
    foreign = evaluated(tmp_path / "b", [*PICTURES_A[:4], picture(9, "Carl", "ureter", 0.5, 0.5)], store="bb")
    with pytest.raises(MtkdError, match=r"another sample store or split than .*: they share 4 of 6 pictures"):
        compare(first, foreign)
    part = evaluated(tmp_path / "part", PICTURES_A[:1])
    with pytest.raises(MtkdError, match="other anatomies"):
        compare(first, part)
    with pytest.raises(MtkdError, match=r"evaluate --run .*a --split validation first"):
        compare(first, first, split="validation")
    (first / PICTURES.format("test")).unlink()
    with pytest.raises(MtkdError, match="has no figures by picture"):
        compare(first, part)


def test_totals_keep_the_order_of_the_anatomies():
    assert totals_of(PICTURES_A, "iou").anatomies == ("liver", "ureter")
