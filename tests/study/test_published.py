"""The published tables, read back against figures typed from the paper's pages."""

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.models.network import PAPER_ARCHITECTURES
from mtkd_cache.study.published import table1, table2


def key(row):
    return row["arch"], row["layout"], row["kd"]


def test_both_tables_hold_the_same_eighteen_networks():
    rows = [key(row) for row in table1()]
    assert rows == [key(row) for row in table2()]
    assert len(set(rows)) == 18
    for layout in ("separate", "shared"):
        assert tuple(arch for arch, where, kd in rows if where == layout and not kd) == PAPER_ARCHITECTURES
    assert [arch for arch, _, kd in rows if kd] == [
        "deeplabv3-efficientnet-b0",
        "deeplabv3-resnet18",
        "segformer-mit_b0",
        "mininetv2",
    ]


def test_table1_rows_are_typed():
    rows = {key(row): row for row in table1()}
    assert rows["segformer-mit_b3", "separate", False] == {
        "arch": "segformer-mit_b3",
        "encoder": "mit_b3",
        "layout": "separate",
        "kd": False,
        "params_m": 519.5,
        "dice": 69.7,
        "ms": 548.0,
        "fps": 2.0,
    }
    assert rows["mininetv2", "shared", True]["dice"] == 60.5
    assert rows["mininetv2", "shared", False]["dice"] == 36.1


def test_table2_rows_are_by_anatomy_in_order():
    rows = {key(row): row for row in table2()}
    teacher = rows["segformer-mit_b3", "separate", False]["dice"]
    assert tuple(teacher) == ANATOMIES
    assert list(teacher.values()) == [91, 79, 58, 58, 83, 46, 89, 81, 75, 52, 55]
    assert rows["mininetv2", "shared", True]["dice"]["ureter"] == 41


def test_the_means_of_table2_are_table1():
    """The paper's own rounding: all but two rows agree to 0.1, and those to 1."""
    means = [sum(row["dice"].values()) / len(ANATOMIES) for row in table2()]
    gaps = [abs(mean - row["dice"]) for mean, row in zip(means, table1(), strict=True)]
    assert max(gaps) < 1
    assert sum(gap > 0.1 for gap in gaps) == 2


def test_anatomies_are_eleven_in_alphabetical_order():
    assert len(ANATOMIES) == 11
    assert list(ANATOMIES) == sorted(ANATOMIES)
