"""The report's figures at the operating points: beside those at probability 0.5, never mixed with them."""

import json

import pytest
from test_report import cells, markdown, student

from mtkd_cache.study.report.collect import collect
from mtkd_cache.study.report.gains import gain_table, gains
from mtkd_cache.study.report.tables import AT_HALF, AT_POINT, table1, table2
from mtkd_cache.study.report.write import write_report

SHAPES = ("disc", "ring")


def run(folder, half: float, point: float | None, **more):
    """A run folder with Dice at probability 0.5 and, unless it is None, at the operating points."""
    path = student(folder, dict.fromkeys(SHAPES, half), **more)
    if point is not None:
        file = path / "evaluation-test.json"
        dice = {"disc": point + 0.1, "ring": point - 0.1}
        added = {
            "thresholds": dict.fromkeys(SHAPES, -2.0),
            "dice_at_operating_point": dice,
            "mean_dice_at_operating_point": point,
        }
        file.write_text(json.dumps({**json.loads(file.read_text()), **added}))
    return path


@pytest.fixture
def runs(tmp_path):
    """Two seeds of both arms."""
    figures = {False: ((0.4, 0.6), (0.5, 0.7)), True: ((0.6, 0.65), (0.6, 0.71))}
    return [run(tmp_path / f"{kd}{seed}", *figures[kd][seed], kd=kd, seed=seed) for kd in (False, True) for seed in (0, 1)]


def test_the_gain_is_told_at_both(runs):
    rows = collect(runs)
    half, point = gains(rows)
    assert half.differences == pytest.approx({0: 0.2, 1: 0.1})
    assert point.differences == pytest.approx({0: 0.05, 1: 0.01})
    first, second = cells(markdown(gain_table([half, point], {})))
    assert (first["judged"], second["judged"]) == (AT_HALF, AT_POINT)
    assert (first["Mean Dice, %: without KD"], first["Mean Dice, %: with KD"]) == ("45.0", "60.0")
    assert (second["Mean Dice, %: without KD"], second["Mean Dice, %: with KD"]) == ("65.0", "68.0")


def test_tables_say_the_points_beside_the_papers_figures(runs):
    rows = collect(runs)
    first = cells(markdown(table1(rows, {}, {})))[0]
    assert (first["Mean Dice, %: ours"], first["Mean Dice, %: at operating points"]) == ("45.0", "65.0 ± 7.1")
    assert [row["disc"] for row in cells(markdown(table2(rows, SHAPES, {})))] == ["45.0", "60.0"]
    assert [row["disc"] for row in cells(markdown(table2(rows, SHAPES, {}, at_point=True)))] == ["75.0", "78.0"]


def test_the_report_has_both(runs, tmp_path):
    said = write_report(runs, tmp_path / "report")
    [gain] = said["gains"]
    assert gain["differences"] == pytest.approx([0.2, 0.1])
    assert gain["at_operating_point"]["differences"] == pytest.approx([0.05, 0.01])
    assert gain["at_operating_point"]["by_anatomy"]["disc"]["difference"] == pytest.approx(0.03)
    assert said["rows"][0]["mean_dice_at_operating_point"] == pytest.approx(0.65)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Table 3. Dice by anatomy at operating points" in text
    assert "a threshold gains without a teacher" in text


def test_a_seed_without_points_leaves_its_row_without(tmp_path):
    runs = [run(tmp_path / "a", 0.4, 0.6), run(tmp_path / "b", 0.4, None, seed=1), run(tmp_path / "c", 0.5, 0.6, kd=True)]
    rows = collect(runs)
    assert [gain.at_point for gain in gains(rows)] == [False]
    assert [row.means_at_point for row in rows] == [[], [0.6]]
    said = write_report(runs, tmp_path / "report")
    assert "at_operating_point" not in said["gains"][0]
    assert said["rows"][0]["mean_dice_at_operating_point"] is None
