"""The report: rows from run folders, numbers in the tables, figures that cover nothing, files that stay the same."""

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.pictures import Picture
from mtkd_cache.evaluation.tables import write_pictures
from mtkd_cache.models.checkpoints import WEIGHTS, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.study.published import published
from mtkd_cache.study.report.collect import collect, mean, spread
from mtkd_cache.study.report.formats import DASH, display_name, full_name, signed
from mtkd_cache.study.report.gains import gain_table, gains
from mtkd_cache.study.report.header import Data, remarks
from mtkd_cache.study.report.markup import Cell, Column, Table
from mtkd_cache.study.report.page import render
from mtkd_cache.study.report.panels import TEACHER, median_sample, panels
from mtkd_cache.study.report.qualitative import Panel, qualitative_figure
from mtkd_cache.study.report.scatter import arrows, paper_points, points_of, scatter_figure
from mtkd_cache.study.report.style import save
from mtkd_cache.study.report.tables import table1, table2
from mtkd_cache.study.report.timings import find_timings, read_timings
from mtkd_cache.study.report.write import teachers_shown, write_report

SHAPES = ("disc", "ring")
TRAINED = {"best_epoch": 0, "val_dice": 0.5}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def student(folder: Path, scores: dict, *, kd=False, seed=0, arch="mininetv2", params=1.52, **more) -> Path:
    """A run folder of a student with Dice `scores` by anatomy."""
    run = {"kind": "student", "arch": arch, "layout": "shared", "kd": kd, "seed": seed, "anatomies": list(scores)}
    run |= {
        "size": [640, 512],
        "params_m": params,
        "store_fingerprint": "aa",
        "cache_fingerprint": "cc" if kd else None,
        **TRAINED,
    }
    write(folder / "run.json", {**run, "recipe": {"student": {"epochs": 60}}, **more})
    return evaluated(folder, scores)


def teachers(folder: Path, scores: dict, *, arch="segformer-mit_b3", params=47.0, present=None) -> Path:
    """A teachers folder with Dice `scores` by anatomy."""
    for anatomy in present or scores:
        teacher = {"kind": "teacher", "arch": arch, "seed": 0, "anatomies": list(scores), "anatomy": anatomy}
        teacher |= {"size": [640, 512], "params_m": params, "store_fingerprint": "aa", **TRAINED}
        write(folder / anatomy / "teacher.json", teacher)
    return evaluated(folder, scores)


def evaluated(folder: Path, scores: dict, **more) -> Path:
    known = [score for score in scores.values() if score is not None]
    mean_dice = sum(known) / len(known) if known else 0.0
    evaluation = {"dice": scores, "mean_dice": mean_dice, "images": 126, "split": "test", "dataset": "phantom"}
    write(folder / "evaluation-test.json", {**evaluation, "store_fingerprint": "aa", **more})
    return folder


def bench(size: list[int], ms: float, **machine) -> dict:
    """What `mtkd-cache bench inference --json` prints of one network."""
    row = {"arch": "mininetv2", "layout": "shared", "size": size, "ms": ms, "fps": 1000 / ms, "plain_ms": 2 * ms}
    return {"rows": [row], "machine": {"device": "cuda: GPU", "threads": 8, **machine}}


def level(score: float, anatomies=ANATOMIES) -> dict:
    return dict.fromkeys(anatomies, score)


def markdown(table: Table) -> str:
    """A report of nothing but the table."""
    return render("report.md", "", [], [], [table])


def cells(text: str) -> list[dict]:
    """The rows of a Markdown table as {column: text}."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


# ---- rows


def with_pictures(run: Path, dice: dict[str, dict[str, float]]) -> Path:
    """A run with an evaluation-test.csv of one picture for each of {anatomy: {patient: Dice}}."""
    rows = [
        Picture(patient=patient, frame=0, anatomy=anatomy, sha256=f"{(patient + anatomy).encode().hex():0>64}", dice=value)
        for anatomy, by_patient in dice.items()
        for patient, value in by_patient.items()
    ]
    write_pictures(run / "evaluation-test.csv", rows)
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    write(run / "evaluation-test.json", {**evaluation, "images": len(rows)})
    return run


def test_intervals_are_of_all_seeds_over_patients(tmp_path):
    by_seed = [
        {"disc": {"A": 0.2, "B": 0.6}, "ring": {"A": 0.5, "C": 0.7}},
        {"disc": {"A": 0.4, "B": 0.8}, "ring": {"A": 0.7, "C": 0.9}},
    ]
    runs = [
        with_pictures(student(tmp_path / f"{seed}", {"disc": 0.4 + 0.2 * seed, "ring": 0.6 + 0.2 * seed}, seed=seed), dice)
        for seed, dice in enumerate(by_seed)
    ]
    old = student(tmp_path / "old", {"disc": 0.5, "ring": 0.6}, kd=True)
    rows = collect([*runs, old])
    mean, each = rows[0].intervals()
    assert each == {"disc": (pytest.approx(0.3), pytest.approx(0.7)), "ring": (pytest.approx(0.6), pytest.approx(0.8))}
    assert mean[0] < rows[0].mean_dice < mean[1]
    assert rows[1].intervals() == (None, {})
    table = cells(markdown(table1(rows, {}, {})))
    assert [row["Mean Dice, %: 95 % interval"] for row in table] == [f"{100 * mean[0]:.1f}{DASH}{100 * mean[1]:.1f}", DASH]
    assert [row["disc"] for row in cells(markdown(table2(rows, SHAPES, {})))] == [f"50.0 [30{DASH}70]", "50.0"]


def test_one_patient_gives_no_interval_and_no_note_of_one(tmp_path):
    alone = with_pictures(student(tmp_path / "a", {"disc": 0.4, "ring": 0.6}), {"disc": {"A": 0.4}, "ring": {"A": 0.6}})
    rows = collect([alone])
    assert rows[0].pictures
    for table in (table1(rows, {}, {}), table2(rows, SHAPES, {})):
        assert "95 %" not in markdown(table)


def test_figures_by_picture_that_are_lost_are_not_passed_over(tmp_path):
    run = with_pictures(student(tmp_path / "a", {"disc": 0.4}), {"disc": {"A": 0.3, "B": 0.5}})
    (run / "evaluation-test.csv").write_text("")
    with pytest.raises(MtkdError, match=r"evaluation-test\.csv is damaged \(ValueError: 0 of 2 pictures\)"):
        write_report([run], tmp_path / "out")


def test_seeds_of_one_arm_become_one_row_with_mean_and_sample_deviation(tmp_path):
    runs = [student(tmp_path / f"{seed}", level(score), seed=seed) for seed, score in ((2, 0.67), (0, 0.60), (1, 0.62))]
    runs += [student(tmp_path / "kd", level(0.7), kd=True), teachers(tmp_path / "teachers", level(0.8))]
    rows = collect(runs)
    assert [row.key for row in rows] == [
        ("segformer-mit_b3", "separate", False, ""),
        ("mininetv2", "shared", False, ""),
        ("mininetv2", "shared", True, ""),
    ]
    assert rows[1].seeds == (0, 1, 2)
    assert rows[1].mean_dice == pytest.approx(0.63)
    assert rows[1].spread == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert rows[2].spread is None


def test_mean_and_spread_leave_out_what_is_absent():
    assert mean([0.2, None, 0.4]) == pytest.approx(0.3)
    assert mean([None]) is None
    assert spread([0.2, None]) is None
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_teachers_count_all_their_parameters_and_none_when_some_are_missing(tmp_path):
    whole = teachers(tmp_path / "whole", level(0.8), params=47.0)
    part = teachers(tmp_path / "part", level(0.8), present=ANATOMIES[:3])
    assert collect([whole])[0].params_m == pytest.approx(11 * 47.0)
    assert collect([part])[0].params_m is None


def test_an_anatomy_without_images_is_no_zero(tmp_path):
    row = collect([student(tmp_path / "a", {"disc": 0.5, "ring": None})])[0]
    assert row.dice("ring") is None
    assert row.mean_dice == 0.5
    assert collect([student(tmp_path / "b", {"disc": None, "ring": None})])[0].mean_dice is None


def test_a_run_without_evaluation_names_the_command(tmp_path):
    run = student(tmp_path / "runs" / "a", level(0.5))
    (run / "evaluation-test.json").unlink()
    with pytest.raises(MtkdError, match=re.escape(f"mtkd-cache evaluate --run {run} --split test")):
        collect([run])
    folder = teachers(tmp_path / "teachers", level(0.5))
    (folder / "evaluation-test.json").unlink()
    with pytest.raises(MtkdError, match=re.escape(f"mtkd-cache evaluate --teachers {folder}")):
        collect([folder])


def test_what_cannot_be_reported_is_explained(tmp_path):
    (tmp_path / "empty").mkdir()
    one, same = student(tmp_path / "one", level(0.5)), student(tmp_path / "same", level(0.6))
    foreign = evaluated(student(tmp_path / "foreign", level(0.6), seed=1), level(0.6), store_fingerprint="bb")
    broken = student(tmp_path / "broken", level(0.5), seed=2)
    (broken / "run.json").write_text("{")
    lacking = student(tmp_path / "lacking", level(0.5), seed=3)
    write(lacking / "evaluation-test.json", {"dice": {}, "split": "test"})
    mixed = teachers(tmp_path / "mixed", level(0.5, SHAPES))
    record = json.loads((mixed / "disc" / "teacher.json").read_text())
    write(mixed / "disc" / "teacher.json", {**record, "arch": "mininetv2"})
    for runs, message in (
        ([], "No run is named"),
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path / "empty"], "neither run.json nor"),
        ([one, same], "one and .*same are both mininetv2 shared, kd False, seed 0"),
        ([one, foreign], "different sample stores"),
        ([broken], "run.json is damaged"),
        ([lacking], "evaluation-test.json has no images, mean_dice"),
        ([mixed], "several architectures"),
    ):
        with pytest.raises(MtkdError, match=message):
            collect(runs)


@pytest.mark.parametrize("option", ["--run", "--teachers"])
def test_an_evaluation_of_other_weights_is_refused(option, tmp_path):
    scores, old, new = level(0.5, SHAPES), dict.fromkeys(SHAPES, "0" * 64), {"disc": "0" * 64, "ring": "1" * 64}
    if option == "--run":
        old, new = old["disc"], new["ring"]
        folder = student(tmp_path / "a", scores, weights_sha256=new)
    else:
        folder = teachers(tmp_path / "a", scores)
        for shape in SHAPES:
            path = folder / shape / "teacher.json"
            write(path, {**json.loads(path.read_text()), "weights_sha256": new[shape]})
    assert collect([folder])  # an earlier version's evaluation names no weights
    collect([evaluated(folder, scores, weights_sha256=new)])
    evaluated(folder, scores, weights_sha256=old)
    command = re.escape(f"Run mtkd-cache evaluate {option} {folder} --split test")
    with pytest.raises(MtkdError, match=f"was trained again since it was evaluated. {command}"):
        collect([folder])


# ---- tables


def test_table1_has_hand_computed_numbers_beside_the_papers(tmp_path):
    runs = [student(tmp_path / f"{seed}", level(0.6 + 0.02 * seed), seed=seed, kd=True) for seed in (0, 1, 2)]
    runs.append(teachers(tmp_path / "t", level(0.7), params=519.46 / 11))
    timings = read_timings(bench([1280, 720], 4.25))
    lines = cells(markdown(table1(collect(runs), published(), timings)))
    assert len(lines) == 18
    ours = next(row for row in lines if row["Encoder"] == "MiniNetV2 †" and row["KD"] == "yes")
    assert ours == {
        "Architecture": "MiniNetV2",
        "Encoder": "MiniNetV2 †",
        "Layout": "★ shared",
        "KD": "yes",
        "Parameters, M: ours": "1.52",
        "Parameters, M: paper": "1.1",
        "Mean Dice, %: ours": "62.0",
        "Mean Dice, %: ± sd": "2.0",
        "Mean Dice, %: seeds": "3",
        "Mean Dice, %: paper": "60.5",
        "Mean Dice, %: difference": "+1.5",
        "ours: GPU: ms": "4.2",
        "ours: GPU: FPS": "235",
        "paper: RTX 3090 ‡: ms": "26",
        "paper: RTX 3090 ‡: FPS": "38",
    }
    teacher = next(row for row in lines if row["Encoder"] == "MiT-B3" and row["Layout"] == "■ separate")
    assert (teacher["Mean Dice, %: ± sd"], teacher["Mean Dice, %: difference"]) == (DASH, "+0.3")
    absent = next(row for row in lines if row["Encoder"] == "ResNet50" and row["Layout"] == "★ shared")
    assert (absent["Mean Dice, %: ours"], absent["Mean Dice, %: paper"]) == (DASH, "59.8")


def test_other_data_get_no_difference_and_no_rows_of_the_papers(tmp_path):
    table = table1(collect([student(tmp_path / "a", level(0.6))]), {}, {})
    lines = cells(markdown(table))
    assert len(lines) == 1
    assert "Mean Dice, %: difference" not in lines[0]
    assert "Mean Dice, %: ± sd" not in lines[0]
    assert not any("ms" in column for column in lines[0])
    assert not any("paper" in text for text in (*lines[0], *table.notes))


def test_table2_stands_beside_the_paper_only_where_it_is_given(tmp_path):
    rows = collect([student(tmp_path / "a", {**level(0.5), "liver": 0.6149, "ureter": None}, kd=True)])
    beside = cells(markdown(table2(rows, ANATOMIES, published())))[0]
    assert (beside["liver"], beside["ureter"], beside["Layout"]) == ("61.5 / 72 (\u221210.5)", f"{DASH} / 41", "★ shared + KD")
    assert cells(markdown(table2(rows, ANATOMIES, {})))[0]["liver"] == "61.5"


def test_table2_row_that_the_paper_does_not_have(tmp_path):
    rows = collect([student(tmp_path / "a", level(0.5), arch="fpn-resnet18")])
    assert cells(markdown(table2(rows, ANATOMIES, published())))[0]["liver"] == f"50.0 / {DASH}"


def test_gain_is_over_the_common_seeds(tmp_path):
    runs = [student(tmp_path / f"a{seed}", level(score), seed=seed) for seed, score in ((0, 0.30), (1, 0.34), (7, 0.9))]
    runs += [student(tmp_path / f"b{seed}", level(score), seed=seed, kd=True) for seed, score in ((0, 0.5), (1, 0.6))]
    runs.append(student(tmp_path / "alone", level(0.5), arch="segformer-mit_b0", kd=True))
    gained = gains(collect(runs))
    assert [gain.name for gain in gained] == ["MiniNetV2 with KD against without KD"]
    assert gained[0].differences == pytest.approx({0: 0.20, 1: 0.26})
    row = cells(markdown(gain_table(gained, published())))[0]
    assert row["Mean Dice, %: without KD"] == "32.0"
    assert row["Mean Dice, %: with KD"] == "55.0"
    assert row["Mean Dice, %: difference"] == "+23.0 ± 4.2"  # the deviation of 20 and 26 is 6 / sqrt(2)
    assert row["each seed's difference"] == "seed 0: +20.0, seed 1: +26.0"
    assert row["paper's difference"] == "+24.4"


def test_arms_without_a_common_seed_show_no_gain(tmp_path):
    runs = [student(tmp_path / "a", level(0.3), seed=0), student(tmp_path / "b", level(0.5), seed=1, kd=True)]
    row = cells(markdown(gain_table(gains(collect(runs)), {})))[0]
    assert (row["Mean Dice, %: difference"], row["each seed's difference"]) == (DASH, "no seed in common")


def test_signs_and_names():
    assert [signed(value) for value in (1.26, -1.26, 0.04, -0.04, None)] == ["+1.3", "\u22121.3", "0.0", "0.0", ""]
    assert display_name("deeplabv3-efficientnet-b0") == ("DeepLabV3", "EfficientNet-B0")
    assert display_name("segformer-mit_b3") == ("SegFormer", "MiT-B3")
    assert display_name("mininetv2") == ("MiniNetV2", "MiniNetV2")
    assert (full_name("pidnet-s"), full_name("unetplusplus-mit_b0")) == ("PIDNet-S", "U-Net++ MiT-B0")
    assert full_name("own_student:small") == "own_student:small"
    assert display_name("unet-timm-x") == ("U-Net", "timm-x")


def test_references_are_the_papers_two_tables():
    paper = published()
    assert len(paper) == 18
    for row in paper.values():
        assert sum(row.by_anatomy.values()) / 11 == pytest.approx(row.dice, abs=1.5)


def test_timings_beside_the_runs_are_found(tmp_path):
    run = student(tmp_path / "runs" / "a", level(0.5))
    assert find_timings([run]) == {}
    write(tmp_path / "runs" / "bench-inference.json", bench([640, 512], 9.0, device="cpu: x86", threads=2))
    timings = find_timings([run])["mininetv2", "shared"]
    assert {where: time.ms for where, time in timings.items()} == {"x86, 2 threads, 640\u00d7512": 9.0}
    for other, what in (
        ([], "TypeError: list indices"),
        ({"rows": []}, r"KeyError: 'machine'\)"),
        ({"rows": [{"arch": "mininetv2"}], "machine": {"device": "cuda: GPU"}}, r"KeyError: 'size'\)"),
    ):
        with pytest.raises(MtkdError, match=rf"not the output of mtkd-cache bench inference --json \({what}"):
            read_timings(other)


def test_a_report_tells_the_times_or_how_to_take_them(tmp_path):
    run = student(tmp_path / "runs" / "a", level(0.5))
    notes = write_report([run], tmp_path / "out")["notes"]
    assert any("what mtkd-cache bench inference --json prints" in note for note in notes)
    write(tmp_path / "runs" / "bench-inference.json", bench([1280, 720], 4.25))
    assert not any("bench inference" in note for note in write_report([run], tmp_path / "out")["notes"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "ours: GPU: ms" in text and "another machine" not in text


def test_markup_escapes_and_every_row_is_as_wide_as_the_head():
    columns = (Column("a"), Column("b", "pair", True), Column("c", "pair", True), Column("d<"))
    rows = [[Cell("<i>|'", "x"), Cell("1", 1.5, below=""), Cell(""), Cell("d")]]
    table = Table("t", "T & T", columns, [rows, rows], ["n<"])
    text = render("report.html", "T", [("a<", "b>")], ["it's"], [table])
    assert "<dt>a&lt;</dt><dd>b&gt;</dd>" in text and "<p>it\u2019s</p>" in text
    text = text[text.index("<section") :]
    assert "<i>" not in text and "&lt;i&gt;|\u2019" in text and "T &amp; T" in text
    assert re.findall(r'data-column="(\d)"', text) == ["0", "3", "1", "2"]
    assert 'data-value="1.5">1<span class="below">\u2013</span>' in text
    assert "| &lt;i>\\|' | 1 / \u2013 | \u2013 | d |" in markdown(table)
    assert "\nn&lt;\n" in markdown(table)

    class Widths(HTMLParser):
        widths: list[int] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            if tag == "tr":
                self.widths.append(0)
            elif tag in ("td", "th"):
                self.widths[-1] += int(dict(attrs).get("colspan", 1))

    parser = Widths()
    parser.feed(text)
    assert parser.widths == [4, 2, 4, 4]  # the second line of the head lacks the two columns that span both


# ---- what the header says


def test_remarks_tell_which_data_and_which_settings(tmp_path):
    same = student(tmp_path / "a", level(0.5), seed=0)
    other = student(tmp_path / "b", {**level(0.5), "liver": None}, seed=1, recipe={"student": {"epochs": 20}})
    rows = collect([same, other])
    dresden = Data("DSAD", ANATOMIES, (640, 512), "aa", 13195, is_papers=True)
    notes = remarks(dresden, rows)
    assert notes == [
        "MiniNetV2 shared (seed 1) has no Dice for liver; its mean is over the others.",
        "Of 2 of 2 results it is unknown whether the networks saw test samples in training.",
        "MiniNetV2 shared: not all runs have the same settings: student.epochs is 60, 20.",
    ]
    named_alike = remarks(Data("phantom", ANATOMIES, (640, 512), "aa", 400), rows)[0]
    assert named_alike.startswith("The paper's figures are left out: these 400 samples are not the whole Dresden")
    assert "without --store it is not known" in remarks(Data("x", ANATOMIES, (640, 512), "aa"), rows)[0]
    assert not any("Dresden" in note for note in remarks(Data("x", SHAPES, (640, 512), "aa", 400), rows))


# ---- figures


def overlap(left: tuple, right: tuple) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    return width * height if width > 0 and height > 0 else 0.0


def test_figure1_of_the_papers_own_rows_covers_nothing():
    points = paper_points(published())
    pairs = arrows(points)
    assert sorted((old.arch, round(new.dice - old.dice, 1)) for old, new in pairs) == [
        ("deeplabv3-efficientnet-b0", 4.2),
        ("deeplabv3-resnet18", 5.7),
        ("mininetv2", 24.4),
        ("segformer-mit_b0", 4.4),
    ]
    figure = scatter_figure(points)
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    boxes = [tuple(text.get_window_extent(renderer).extents) for text in axes.texts]
    assert len(boxes) == 18
    assert {"+24.4", "MiniNetV2", "EfficientNet-B3"} <= {text.get_text() for text in axes.texts}
    markers = [axes.transData.transform((point.params_m, point.dice)) for point in points]
    reach = 3 * figure.dpi / 72
    for index, box in enumerate(boxes):
        assert not any(overlap(box, other) for other in boxes[:index])
        assert not any(overlap(box, (x - reach, y - reach, x + reach, y + reach)) for x, y in markers)
        assert overlap(box, tuple(axes.bbox.extents)) == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))


def test_points_leave_out_rows_without_numbers(tmp_path):
    runs = [student(tmp_path / "a", level(0.5)), student(tmp_path / "b", level(None), kd=True)]
    runs.append(teachers(tmp_path / "t", level(0.5), present=ANATOMIES[:2]))
    assert [point.dice for point in points_of(collect(runs))] == [50.0]


def test_figure3_has_a_panel_for_everything_and_says_each_dice():
    draw = np.random.default_rng(0)
    image = draw.integers(0, 255, (48, 400, 3), np.uint8)
    truth = np.zeros((48, 400), np.uint8)
    truth[:, :200] = 1
    half = np.zeros_like(truth)
    half[:24, :200] = 1
    empty, full = np.zeros_like(truth), np.ones_like(truth)
    rows = [
        Panel("disc", image, truth, {"A": half, "B": full}),
        Panel("inferior_mesenteric_artery", image, empty, {"A": empty, "B": full}),
    ]
    figure = qualitative_figure(rows)
    assert len(figure.axes) == 2 * 4
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert labels == ["66.7", "66.7", "both empty", "0.0"]
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["Image", "Truth", "A", "B"]
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == ["disc", "inferior\nmesenteric artery"]


def test_the_same_figure_gives_the_same_bytes_and_leaves_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        for file in save(scatter_figure(paper_points(published())[:3]), tmp_path / name):
            assert file.stat().st_size > 1000
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()
    assert dict(matplotlib.rcParams) == before


# ---- a small whole


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A real store of two anatomies, untrained networks, and their run folders."""
    root = tmp_path_factory.mktemp("small")
    for anatomy in SHAPES:
        for surgery in (1, 2, 3):
            for frame, width in enumerate((0, 30, 6, 14, 22)):
                folder = root / "phantom" / anatomy / f"{surgery:02d}"
                folder.mkdir(parents=True, exist_ok=True)
                mask = np.zeros((48, 64), np.uint8)
                mask[10:20, :width] = 255
                Image.fromarray(np.stack([mask, 255 - mask, mask // 2], -1)).save(folder / f"image{frame:02d}.png")
                Image.fromarray(mask).save(folder / f"mask{frame:02d}.png")
    ingest(root / "phantom", str(root / "samples.zarr"), size=(64, 48))
    store = SampleStore.open(str(root / "samples.zarr"))
    more = {"store_fingerprint": store.fingerprint}
    scores = {"disc": 0.5, "ring": 0.7}
    runs = []
    for kd in (False, True):
        torch.manual_seed(kd)
        run = evaluated(student(root / "runs" / f"kd{kd}", scores, kd=kd, **more), scores, **more)
        save_network(run / WEIGHTS, create_network("mininetv2", 2), SHAPES)
        runs.append(run)
    folder = evaluated(teachers(root / "teachers", scores, arch="mininetv2", params=0.5067), scores, **more)
    for anatomy in SHAPES:
        save_network(folder / anatomy / WEIGHTS, create_network("mininetv2", 1), [anatomy])
    return store, [*runs, folder]


def test_the_sample_shown_has_the_median_area(small):
    store, _ = small
    row = median_sample(store, "ring")
    assert store.describe(row).startswith("ring/02/")
    assert store.read(np.array([row]))[1].sum() == 10 * 14  # of 6, 14, 22, 30 columns; the empty one aside


def test_panels_show_what_the_networks_say(small):
    store, (_, distilled, folder) = small
    drawn = panels(store, {TEACHER: folder, "Student": distilled})
    assert [panel.anatomy for panel in drawn] == list(SHAPES)
    assert list(drawn[0].predictions) == [TEACHER, "Student"]
    from mtkd_cache.models.checkpoints import load_network

    image = torch.from_numpy(drawn[1].image.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = torch.sigmoid(load_network(distilled)(image))[0, 1] > 0.5
        teacher = torch.sigmoid(load_network(folder / "ring")(image))[0, 0] > 0.5
    assert (drawn[1].predictions["Student"] == expected.numpy()).all()
    assert (drawn[1].predictions[TEACHER] == teacher.numpy()).all()


def test_the_teachers_shown_are_those_the_student_learnt_from(small, tmp_path):
    _, (baseline, distilled, folder) = small
    own, others = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("own", "others"))
    for made, arch in ((own, "mininetv2"), (others, "segformer-mit_b0")):
        for path in made.glob("*/teacher.json"):
            write(path, {**json.loads(path.read_text()), "arch": arch, "weights_sha256": f"{arch} {path.parent.name}"})
    rows = collect([baseline, distilled, own, others])
    student = rows[-1].results[0]
    assert teachers_shown(rows, student) is None  # of two, and nothing says which
    assert teachers_shown(collect([baseline, distilled, others]), student).path == others
    for made, arch in ((own, "mininetv2"), (others, "segformer-mit_b0")):
        learnt = replace(student, teachers={anatomy: f"{arch} {anatomy}" for anatomy in SHAPES})
        assert teachers_shown(rows, learnt).path == made
    assert teachers_shown(rows, replace(student, teachers={"disc": "0", "ring": "0"})) is None


def test_the_whole_report(small, tmp_path):
    store, runs = small
    report = write_report(runs, tmp_path / "out", store=store.url)
    names = {Path(file).name for file in report["files"]}
    figures = {f"figure{number}.{kind}" for number in (1, 3) for kind in ("png", "svg")}
    assert names == {"report.md", "report.html"} | figures
    assert all(Path(file).stat().st_size for file in report["files"])
    assert json.loads(json.dumps(report))["rows"][0]["layout"] == "separate"
    [gain] = report["gains"]
    assert (gain["arch"], gain["before"]["kd"], gain["after"]["kd"]) == ("mininetv2", False, True)
    assert (gain["seeds"], gain["differences"]) == ([0], [0.0])
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"phantom, 30 samples, 64\u00d748 pixels, fingerprint {store.fingerprint[:16]}" in text
    assert "Teachers: MiniNetV2, one an anatomy, mean Dice 60.0 %\n" in text
    assert "paper" not in text.lower() and "Dresden" not in text
    assert "median area" in text and "(figure3.png)" in text
    page = (tmp_path / "out" / "report.html").read_text()
    outside = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", page)
    assert len(outside) < len(page) - 10_000
    assert "://" not in outside and "src=" in outside and "@import" not in outside
    again = write_report(runs, tmp_path / "again", store=store.url)
    for one, other in zip(report["files"], again["files"], strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_a_report_without_store_says_what_is_left_out(small, tmp_path):
    _, runs = small
    report = write_report(runs, tmp_path)
    assert not (tmp_path / "figure3.png").exists()
    assert any("Figure 3" in note and "--store" in note for note in report["notes"])
    lone = write_report([student(tmp_path / "a", level(0.5, SHAPES))], tmp_path / "lone")
    assert any("a student with weights" in note for note in lone["notes"])
    assert lone["gains"] == []


def test_markup_in_what_was_recorded_is_shown_as_it_is(small, tmp_path):
    evil = "<svg onload=alert(1)>"
    store, (baseline, distilled, _) = small
    runs = [Path(shutil.copytree(run, tmp_path / run.name)) for run in (baseline, distilled)]
    for run in runs:
        for path in run.glob("*.json"):
            record = json.loads(path.read_text())
            write(path, {**record, **({"arch": evil} if "arch" in record else {"dataset": evil})})
    write_report(runs, tmp_path / "out", store=store.url)
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "onload" in text
        assert "<svg onload" not in text


def test_a_foreign_store_is_refused(small, tmp_path):
    store, _ = small
    with pytest.raises(MtkdError, match="another sample store"):
        write_report([student(tmp_path / "a", level(0.5))], tmp_path / "out", store=store.url)


def test_an_unwritable_folder_is_explained(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtkdError, match="--out"):
        write_report(small[1], tmp_path / "file")
