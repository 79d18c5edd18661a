"""The published tables, read back against figures typed from the paper's pages."""

from mtkd_cache.data.dresden import ANATOMIES
from mtkd_cache.models.network import PAPER_ARCHITECTURES
from mtkd_cache.study.published import published


def test_the_eighteen_networks_in_the_papers_order():
    rows = published()
    assert len(rows) == 18
    assert all(key == (row.arch, row.layout, row.kd) for key, row in rows.items())
    for layout in ("separate", "shared"):
        assert tuple(arch for arch, of, kd in rows if of == layout and not kd) == PAPER_ARCHITECTURES
    assert [arch for arch, _, kd in rows if kd] == [
        "deeplabv3-efficientnet-b0",
        "deeplabv3-resnet18",
        "segformer-mit_b0",
        "mininetv2",
    ]


def test_table1():
    rows = published()
    teacher = rows["segformer-mit_b3", "separate", False]
    assert teacher.encoder == "mit_b3"
    assert (teacher.params_m, teacher.dice, teacher.ms, teacher.fps) == (519.5, 69.7, 548.0, 2.0)
    assert rows["mininetv2", "shared", True].dice == 60.5
    assert rows["mininetv2", "shared", False].dice == 36.1


def test_table2_is_by_anatomy_in_order():
    rows = published()
    teacher = rows["segformer-mit_b3", "separate", False].by_anatomy
    assert tuple(teacher) == ANATOMIES
    assert list(teacher.values()) == [91, 79, 58, 58, 83, 46, 89, 81, 75, 52, 55]
    assert rows["mininetv2", "shared", True].by_anatomy["ureter"] == 41


def test_the_means_of_table2_are_table1():
    """The paper's own rounding: all but two rows agree to 0.1, and those to 1."""
    gaps = [abs(sum(row.by_anatomy.values()) / len(ANATOMIES) - row.dice) for row in published().values()]
    assert max(gaps) < 1
    assert sum(gap > 0.1 for gap in gaps) == 2


def test_anatomies_are_eleven_in_alphabetical_order():
    assert len(ANATOMIES) == 11
    assert list(ANATOMIES) == sorted(ANATOMIES)
