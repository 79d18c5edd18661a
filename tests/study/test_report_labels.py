"""Reports of any experiment: named runs of one architecture, losses by anatomy, and whose data stand beside the paper's."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from test_report import SHAPES, cells, level, markdown, student, teachers, with_pictures

from mtkd_cache.cli.main import main
from mtkd_cache.data.dresden import ANATOMIES, Split
from mtkd_cache.data.samples import SPLITS
from mtkd_cache.errors import MtkdError
from mtkd_cache.study.published import published
from mtkd_cache.study.report.collect import collect
from mtkd_cache.study.report.gains import anatomy_table, gain_table, gains, sentence
from mtkd_cache.study.report.header import holds_dresden
from mtkd_cache.study.report.scatter import arrows, points_of, scatter_figure
from mtkd_cache.study.report.tables import table1, table2
from mtkd_cache.study.report.write import write_report

UP, DOWN = "+", "\u2212"


def test_named_runs_of_one_architecture_are_rows_in_the_order_of_their_names(tmp_path):
    runs = [student(tmp_path / name, level(0.5, SHAPES)) for name in ("z", "a", "plain")]
    with pytest.raises(MtkdError, match=r"--label A=.*plain --label B=.*z"):
        collect([runs[2], runs[0]])
    again = student(tmp_path / "z1", level(0.7, SHAPES), seed=1)
    rows = collect([*runs, again], {runs[0]: "cosine", again: "cosine", runs[1]: "adamw"})
    assert [(row.label, row.seeds) for row in rows] == [("", (0,)), ("cosine", (0, 1)), ("adamw", (0,))]
    lines = cells(markdown(table1(rows, {}, {})))
    assert [line["Name"] for line in lines] == ["\u2013", "cosine", "adamw"]
    assert [line["Network"] for line in cells(markdown(table2(rows, SHAPES, {})))][1:] == [
        "MiniNetV2, cosine",
        "MiniNetV2, adamw",
    ]
    assert [gain.name for gain in gains(rows)] == ["MiniNetV2 cosine against unnamed", "MiniNetV2 adamw against unnamed"]
    table = gain_table(gains(rows), {})
    assert table.title == "Differences between runs of one architecture"
    assert [line["after"] for line in cells(markdown(table))] == ["cosine", "adamw"]


def test_each_distilled_run_is_compared_with_the_baseline_of_its_name_or_the_unnamed_one(tmp_path):
    masks, other_masks = (student(tmp_path / name, level(0.5, SHAPES)) for name in ("masks", "masks2"))
    kl, pearson, wide = (student(tmp_path / name, level(0.6, SHAPES), kd=True) for name in ("kl", "pearson", "wide"))
    joint = student(tmp_path / "joint", level(0.4, SHAPES), layout="joint")
    labels = {kl: "KL", pearson: "Pearson", wide: "long", other_masks: "long"}
    rows = collect([masks, other_masks, kl, pearson, wide, joint, teachers(tmp_path / "t", level(0.8, SHAPES))], labels)
    assert [gain.name for gain in gains(rows)] == [
        "MiniNetV2 long against unnamed",
        "MiniNetV2 KL with KD against without KD",
        "MiniNetV2 Pearson with KD against without KD",
        "MiniNetV2 long with KD against long without KD",
    ]
    points = points_of(rows)
    assert [(old.label, new.label) for old, new in arrows(points)] == [("", "KL"), ("", "Pearson"), ("long", "long")]
    texts = {text.get_text() for text in scatter_figure(points).axes[0].texts}
    assert {"KL +10.0", "Pearson +10.0", "long +10.0"} <= texts
    assert [line["Layout"] for line in cells(markdown(table1(rows, {}, {})))].count("◆ joint") == 1


def test_losses_are_told_by_anatomy_with_their_interval(tmp_path):
    masks = {"disc": {"A": 0.6, "B": 0.7, "C": 0.5}, "ring": {"A": 0.4, "B": 0.2, "C": 0.3}}
    distilled = {"disc": {"A": 0.5, "B": 0.6, "C": 0.5}, "ring": {"A": 0.7, "B": 0.5, "C": 0.6}}
    means = [{name: float(np.mean(list(dice.values()))) for name, dice in figures.items()} for figures in (masks, distilled)]
    runs = [
        with_pictures(student(tmp_path / "a", means[0]), masks),
        with_pictures(student(tmp_path / "b", means[1], kd=True), distilled),
    ]
    [gain] = gains(collect(runs))
    old, new, (low, high) = gain.by_anatomy["disc"]
    assert (old, new) == pytest.approx((0.6, 1.6 / 3))
    assert (low, high) == pytest.approx((-0.1, 0.0), abs=1e-9)
    assert gain.losses == ["disc"]
    told = f"disc (60.0 to 53.3, 95 % interval {DOWN}10.0 to 0.0)"
    assert sentence(gain) == f"MiniNetV2 with KD against without KD, at probability 0.5: Dice falls for 1 of 2 anatomies: {told}."
    line = cells(markdown(anatomy_table([gain], SHAPES)))[0]
    assert line["disc"] == f"{DOWN}6.7 [{DOWN}10.0 to 0.0]" and line["ring"] == f"{UP}30.0 [{UP}30.0 to {UP}30.0]"
    report = write_report(runs, tmp_path / "report")
    assert sentence(gain) in report["notes"]
    assert report["gains"][0]["by_anatomy"]["disc"]["interval"] == pytest.approx((-0.1, 0.0), abs=1e-9)
    assert "Gains and losses by anatomy" in (tmp_path / "report" / "report.html").read_text()


def test_without_figures_by_picture_a_loss_has_no_interval(tmp_path):
    runs = [student(tmp_path / "a", {"disc": 0.6, "ring": 0.5}), student(tmp_path / "b", {"disc": 0.5, "ring": 0.9}, kd=True)]
    [gain] = gains(collect(runs))
    assert sentence(gain).endswith("falls for 1 of 2 anatomies: disc (60.0 to 50.0).")


def test_only_the_whole_dresden_set_in_its_split_stands_beside_the_paper(organ_store):
    split = Split()
    surgeries = np.arange(13_195) % 32 + 1
    places = np.array([SPLITS.index(split.of(int(surgery))) for surgery in surgeries])
    dresden = replace(
        organ_store, anatomies=ANATOMIES, anatomy=np.zeros(13_195, int), patients=surgeries.astype(str), split=places
    )
    assert holds_dresden(dresden)
    assert not holds_dresden(replace(dresden, anatomies=ANATOMIES[:10]))
    assert not holds_dresden(replace(dresden, split=np.roll(places, 1)))
    assert not holds_dresden(replace(dresden, patients=np.array([f"P{surgery}" for surgery in surgeries])))
    fewer = {name: getattr(dresden, name)[:400] for name in ("anatomy", "patients", "split")}
    assert not holds_dresden(replace(dresden, **fewer))


def test_the_papers_rows_stand_once_beside_named_ones(tmp_path):
    runs = [student(tmp_path / "a", level(0.5), kd=True), student(tmp_path / "b", level(0.6), kd=True)]
    rows = collect(runs, {runs[0]: "one", runs[1]: "two"})
    lines = cells(markdown(table1(rows, published(), {})))
    assert len(lines) == 19
    ours = [line for line in lines if line["Name"] != "\u2013"]
    assert [(line["Mean Dice, %: paper"], line["Mean Dice, %: difference"]) for line in ours] == [
        ("60.5", f"{DOWN}10.5"),
        ("60.5", f"{DOWN}0.5"),
    ]


def test_the_command_takes_names(tmp_path):
    runs = [student(tmp_path / name, level(0.5, SHAPES)) for name in ("x=1", "y")]
    words = ["report", *(word for name, run in zip("AB", runs, strict=True) for word in ("--label", f"{name}={run}"))]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out"), "--json"])
    assert [row["label"] for row in json.loads(result.stdout)["rows"]] == ["A", "B"]
    wrong = CliRunner().invoke(main, ["report", "--label", str(runs[0]).replace("=", "")])
    assert wrong.exit_code == 2 and "NAME=" in wrong.stderr
