"""Cached or online: the arms differ in what the student is shown alone, and the result is what the definitions say."""

import json
import statistics
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from scipy import stats
from support import build

from mtkd_cache.bench.parity import ARMS, ParityStudy, first_views, paired_views, plan
from mtkd_cache.bench.parity_report import differences, draw_differences, figure_of, grouped, markdown, seeds_needed, write_parity
from mtkd_cache.cache.loader import BatchReader
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cli.main import main
from mtkd_cache.data.augment import apply_views, identity_views, warp
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import load_network
from mtkd_cache.models.records import read_run
from mtkd_cache.study.gain.results import Result

EPOCHS = 3


@pytest.fixture(scope="module")
def study(organ_store, organ_teachers, recipe, accelerator, tmp_path_factory) -> ParityStudy:
    out = tmp_path_factory.mktemp("parity")
    settings = recipe(f"student.epochs={EPOCHS}", f"cache.views={EPOCHS}", "augmentation.affine_p=1.0", "augmentation.rgb_p=1.0")
    build(organ_store, organ_teachers, str(out / "views.zarr"), settings, accelerator)
    teachers = Teachers.load(organ_teachers, organ_store)
    return ParityStudy(out, organ_store, settings, "off", recipe_of=lambda _: settings, load=lambda: teachers, views=EPOCHS)


def test_every_arm_is_shown_what_it_is_said_to_be(study, organ_store, organ_teachers, accelerator):
    """In each epoch, from the definitions; live answers and recorded ones of a view differ by the quantization alone."""
    recipe, cache, size = study.recipe, LogitCache.open(str(study.out / "views.zarr")), (64, 64)
    rows = organ_store.rows("train")[:3]
    hashes, networks = organ_store.hashes[rows], [load_network(organ_teachers / organ) for organ in organ_store.anatomies]
    batch = BatchReader(organ_store).read(rows)

    def live(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([network(images) for network in networks], 1)

    for epoch in range(EPOCHS):
        view = cache.draw_views(hashes, epoch)
        pictures = apply_views(batch.images, batch.masks, view)[0]
        uncolored = apply_views(batch.images, batch.masks, identity_views(3)._replace(affine=view.affine))[0]
        plain = dequantize(torch.from_numpy(cache.read(hashes, 0)), cache.step)
        answers = {
            "masks": None,
            "cached": warp(plain, view.affine, size),
            "online": live(pictures),
            "online-clean": live(uncolored),
        }
        for arm in ARMS:
            signal = study._signal(recipe, arm, cache, accelerator)
            views = signal.views(hashes, epoch)
            source = BatchReader(organ_store, signal.cache)
            shown = source.read(rows, epoch % source.views)
            seen = apply_views(batch.images, batch.masks, views)[0]
            logits = signal.logits(shown, seen, views)
            count = {"views-1": 1, "views-2": 2}.get(arm, EPOCHS)
            assert torch.equal(seen, apply_views(batch.images, batch.masks, cache.draw_views(hashes, epoch % count))[0])
            if arm == "masks":
                assert logits is None
            elif arm in answers:
                torch.testing.assert_close(logits, answers[arm], atol=2e-3, rtol=0)
            else:
                assert (logits - live(seen)).abs().max() <= cache.step / 2 + 2e-3


def test_views_of_no_seed_and_of_the_cache_are_those_of_all_arms(study, organ_store):
    cache, hashes = LogitCache.open(str(study.out / "views.zarr")), organ_store.hashes[:2]
    for epoch in range(2 * EPOCHS):
        drawn = paired_views(study.recipe, organ_store.size, hashes, epoch)
        assert torch.equal(drawn.affine, cache.draw_views(hashes, epoch % EPOCHS).affine)
    assert [first_views(cache, count).views for count in (1, 2, 9)] == [1, 2, EPOCHS]


def test_jobs_follow_what_they_need():
    jobs = plan(list(ARMS), ["long", "short"], "mininetv2", [0, 1], "test")
    before: set[str] = set()
    for job in jobs:
        assert before.issuperset(job.needs)
        before.add(job.name)
    assert len(before) == len(jobs) == 1 + 2 * 2 * 2 * len(ARMS)
    assert jobs[1].folder == "mininetv2/short/masks/seed0" and jobs[-1].folder == "mininetv2/long/online-clean/seed1"
    with pytest.raises(MtkdError, match=r"arm 'offline': .* masks, cached, views-1, "):
        plan(["offline"], ["short"], "mininetv2", [0], "test")
    joint = plan(["cached"], ["short"], "mininetv2", [0], "test", "joint")
    assert joint[1].folder == "mininetv2-joint/short/cached/seed0"


def result(arm: str, seed: int, dice: float) -> Result:
    group = {"study": "a", "split": "test", "arch": "mininetv2", "length": "short"}
    figures = {"dice": dice / 2, "dice_at_operating_point": dice, "average_precision": 0.5}
    return Result(**group, arm=arm, seed=seed, epochs=3, minutes=1.0, **figures, thresholds=(0.0,), environment={})


def test_differences_are_paired_by_seed_with_their_t_interval():
    values = {"cached": [0.50, 0.53, 0.58], "online": [0.52, 0.54, 0.57], "views-2": [0.51, 0.55]}
    [arms] = grouped([result(arm, seed, dice) for arm, each in values.items() for seed, dice in enumerate(each)]).values()
    assert list(arms) == ["cached", "views-2", "online"]
    [(over, figure, half), (_, _, chosen)] = differences("cached", arms)
    assert (over, figure, half.mean) == ("online", "dice", pytest.approx(chosen.mean / 2))
    pairs = [-2.0, -1.0, 1.0]
    expected = stats.t.interval(0.95, 2, statistics.mean(pairs), stats.sem(pairs))
    assert chosen.interval == pytest.approx(expected, abs=1e-2)
    assert [each.seeds for over, _, each in differences("views-2", arms) if over == "online"] == [(0, 1), (0, 1)]


def test_the_number_of_seeds_that_an_interval_needs():
    values = [1.0, -0.5, 0.3, 2.0]
    needed = seeds_needed(values)
    for count, enough in ((needed, True), (needed - 1, False)):
        half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5
        assert (half <= 0.5) == enough
    assert seeds_needed([1.0]) is None and seeds_needed([1.0, 1.0]) == 2


def test_the_figure_shows_what_arms_have_over_a_recorded_view_an_epoch(tmp_path):
    values = {"masks": [0.1, 0.2], "cached": [0.53, 0.55], "views-1": [0.52, 0.51], "views-epochs": [0.50, 0.54, 0.9]}
    groups = grouped([result(arm, seed, dice) for arm, each in values.items() for seed, dice in enumerate(each)])
    [arms] = groups.values()
    axes = Figure().subplots()
    draw_differences(axes, arms, "dice_at_operating_point")
    cached, recorded = axes.lines[:2]
    assert list(cached.get_ydata()) == pytest.approx([2.0, 2.0])  # of the seeds that both have
    assert (list(recorded.get_xdata()), list(recorded.get_ydata())) == ([1, 3], pytest.approx([-0.5, 0.0]))
    assert [path.name for path in figure_of(groups, tmp_path / "figure")] == ["figure.png", "figure.svg"]
    alone = grouped([result("cached", 0, 0.5)])
    assert figure_of(alone, tmp_path / "none") == []


def test_the_table():
    arms = {"cached": (0.50, 0.53), "online": (0.52, 0.54)}
    groups = grouped([result(arm, seed, dice) for arm, each in arms.items() for seed, dice in enumerate(each)])
    lines = markdown(groups, {"a": {"liver": {"recipe": 0.02}, "colon": {"recipe": 0.04}}}).splitlines()
    assert lines[0] == "**a, test: MiniNetV2, short (3 epochs)**"
    cached, online = (line.split(" | ") for line in lines[4:6])
    assert cached[:4] == ["| cached", "2", "25.8 ± 1.1", "51.5 ± 2.1"]
    assert cached[7].startswith("\N{MINUS SIGN}1.5 [") and online[6].startswith("+1.5 [") and online[8] == "5, 11 |"
    assert any(line.endswith("in nats: recipe 0.03.") for line in lines)


def test_a_tiny_study_from_the_command_line_is_resumed(organ_store, organ_teachers, copy_of, tmp_path):
    teachers, out = copy_of(organ_teachers), tmp_path / "parity"
    options = ["--store", organ_store.url, "--teachers", str(teachers), "--out", str(out), "--seeds", "1"]
    options += ["--set", "student.epochs=2", "--set", "student.weights=none"]
    options += ["--layout", "joint", "--arm", "views-epochs", "--arm", "online", "--json"]
    printed = CliRunner().invoke(main, ["bench", "parity", *options])
    assert printed.exit_code == 0, printed.stderr
    report = json.loads(printed.stdout.splitlines()[-1])
    group = "parity/test/mininetv2-joint/short"
    assert report["arms"].keys() == {"views-epochs", "online"} and report["made"] != []
    assert report["arms"]["online"][group]["dice"].keys() == {"1"}
    assert {(each["arm"], each["over"]) for each in report["differences"]} == {
        ("views-epochs", "online"),
        ("online", "views-epochs"),
    }
    assert report["view_gap_kl_nats"]["parity"]["tongue"].keys() == {"quantization", "geometry", "color", "recipe"}
    assert {path.name for path in out.glob("parity.*")} == {"parity.json", "parity.md", "parity.png", "parity.svg"}
    records = [read_run(out / "mininetv2-joint" / "short" / arm / "seed1") for arm in ("views-epochs", "online")]
    assert [record.extra["arm"] for record in records] == ["views-epochs", "online"]
    losses = [record.history[0]["kl"] for record in records]  # the first epoch sees equal pictures and weights
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    (out / "mininetv2-joint" / "short" / "online" / "seed1" / "evaluation-test.json").unlink()
    again = CliRunner().invoke(main, ["bench", "parity", *options])
    assert json.loads(again.stdout.splitlines()[-1])["made"] == ["evaluation mininetv2-joint/short/online/seed1"]


def test_a_folder_without_results_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MtkdError, match=r"gone holds no results of a parity study\. Name its folder"):
        write_parity([tmp_path / "gone"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_a_student_imports_no_live_teachers():
    code = "import sys, mtkd_cache.training.student; print(*sys.modules, sep='\\n')"
    imported = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "mtkd_cache.training.signal" in imported
    assert not [name for name in imported if "teacher_runner" in name or "mtkd_cache.bench" in name]
