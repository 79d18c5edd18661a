"""The bench commands on tiny images: they run, and their results hold what --json promises."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.bench.build import as_one_call, spread_out
from mtkd_cache.bench.table import lines
from mtkd_cache.bench.training import LiveTeachers
from mtkd_cache.cache.teacher_runner import TeacherRunner
from mtkd_cache.cli.bench import command
from mtkd_cache.data.augment import apply_views, draw_views
from mtkd_cache.losses import channelwise_kl, exclusive_cross_entropy
from mtkd_cache.models.network import create_network
from mtkd_cache.recipe import seed_for
from mtkd_cache.runtime.timing import interleaved, ratio
from mtkd_cache.study.report.timings import read_timings
from mtkd_cache.training.student import student_task

MEASUREMENTS = Path(__file__).parents[2] / "docs/measurements"
SMALL = ("--size", "64x64", "--rounds", "1", "--device", "cpu")


def bench(*arguments: str) -> dict:
    return run(*arguments, *SMALL)


def run(*arguments: str) -> dict:
    outcome = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout.splitlines()[-1])


def table(tmp_path: Path, result: dict) -> list[str]:
    """The rows of the table of measurements that holds one result."""
    (tmp_path / "result.json").write_text(json.dumps(result))
    return list(lines(tmp_path))[2:]


def test_the_measurements_in_the_documentation_are_a_table():
    shown = list(lines(MEASUREMENTS))
    for start in ("| logits of", "| a step of stage 2", "| a frame of"):
        assert [line for line in shown if line.startswith(start)], start


def test_stage2_with_smps_own_segformer_beside_ours(tmp_path):
    result = bench("stage2", "--teacher", "segformer-mit_b0", "--batch", "2")
    for key in ("none_s", "cached_s", "online_s", "kd_overhead", "online_over_cached", "online_smp_over_cached", "loader_share"):
        assert math.isfinite(result[key]) and result[key] >= 0, key
    assert result["loader_share"] <= 1
    assert set(result["peak_mb"]) == {"none", "cached", "online", "online_smp"}
    (row,) = table(tmp_path, result)
    assert "a step of stage 2, mininetv2 under segformer-mit_b0, 64x64, batch 2" in row and "smp's own" in row


def test_live_teachers_see_what_the_student_sees(organ_store, recipe, accelerator):
    networks = [spread_out(create_network("mininetv2", 1)) for _ in organ_store.anatomies]
    signal = LiveTeachers(TeacherRunner(networks, accelerator), recipe(), organ_store.size)
    task = student_task(organ_store, recipe(), accelerator, signal, "off")
    batch = next(task.batches(2))
    losses = task.losses(task.network.eval(), batch, 2)
    seed = seed_for(recipe().seed, "student")
    views = draw_views(recipe().augmentation, seed, organ_store.hashes[batch.rows], 3, organ_store.size)
    images, masks, valid = apply_views(batch.images, batch.masks, views)
    with torch.no_grad():
        student = task.network(images)
        teachers = torch.cat([network(images) for network in networks], dim=1)
    torch.testing.assert_close(losses["kl"], channelwise_kl(student, teachers, recipe().distillation.temperature, valid))
    torch.testing.assert_close(losses["cross_entropy"], exclusive_cross_entropy(student, masks, batch.anatomy, valid))


def test_cache(tmp_path):
    result = bench("cache", "--teacher", "mininetv2", "--batch", "2")
    for key in ("read_ms", "decode_limit_ms", "resident_ms", "copy_ms", "write_over_forward"):
        assert math.isfinite(result[key]) and result[key] > 0, key
    ours, *others = result["ways"]
    assert len(others) == 3
    assert all(ours["bytes_per_sample"] < other["bytes_per_sample"] for other in others)
    assert others[0]["bytes_per_sample"] > 11 * 64 * 64 * 2
    assert others[2]["bytes_per_sample"] > 11 * 64 * 64 * 4
    assert len(table(tmp_path, result)) == 1 + 4


def test_inference(tmp_path):
    result = bench("inference", "--arch", "mininetv2", "--heads", "2", "--form", "folded")
    separate, shared = result["rows"]
    assert (separate["layout"], shared["layout"]) == ("separate", "shared")
    assert separate["params_m"] > shared["params_m"]
    for row in result["rows"]:
        assert row["fps"] == pytest.approx(1000 / row["ms"])
    ((device, timing),) = read_timings(result)["mininetv2", "shared"].items()
    assert timing.ms == shared["ms"]
    assert re.search(r", \d+ threads?, 64\u00d764$", device)
    assert len(table(tmp_path, result)) == 2


def test_inference_with_smps_own_segformer_beside_ours(tmp_path):
    result = bench("inference", "--arch", "segformer-mit_b0", "--heads", "1", "--form", "folded")
    assert all(set(row["forms_ms"]) == {"plain", "folded", "smp"} and row["form"] != "smp" for row in result["rows"])
    assert all("smp's own" in row for row in table(tmp_path, result))


def test_build(tmp_path):
    result = run("build", "--teacher", "mininetv2", "--stacked", "--views", "2", *SMALL, "--size", "32x32")
    assert result["samples"] == 11 and result["teachers"] == 11
    for key in ("build_s", "bare_s", "stacked_s", "throughput", "loop_over_stacked"):
        assert math.isfinite(result[key]) and result[key] > 0, key
    (row,) = table(tmp_path, result)
    assert "a build of 11 samples in 2 views" in row


def test_one_batched_call_equals_the_loop_over_the_teachers(accelerator):
    networks = [spread_out(create_network("mininetv2", 1)) for _ in range(3)]
    images = torch.rand(2, 3, 32, 32)
    runner = TeacherRunner(networks, accelerator)
    looped = torch.stack([runner.native(anatomy, images) for anatomy in range(3)])
    stacked = as_one_call(networks, [images], accelerator)()[0][:, :, 0]
    torch.testing.assert_close(stacked, looped, atol=1e-3, rtol=1e-4)


def test_stage1(tmp_path):
    result = bench("stage1", "--arch", "mininetv2", "--batch", "2")
    assert 0 <= result["loader_share"] <= 1 and result["step_s"] > 0
    (row,) = table(tmp_path, result)
    assert "a teacher's step, mininetv2, 64x64, batch 2" in row


def test_ingest(tmp_path):
    result = run("ingest", "--source", "96x64", "--size", "64x64", "--samples", "11", "--rounds", "1")
    assert result["images"] == 33 and result["ingest_over_bare"] > 0
    (row,) = table(tmp_path, result)
    assert "ingest, one process, 96x64 to 64x64" in row


def test_scale(tmp_path):
    result = run("scale", "--samples", "11,33", "--size", "32x32")
    assert [row["samples"] for row in result["rows"]] == [11, 33]
    assert set(result["rows"][0]["peak_mb"]) == {"ingest", "build", "verify", "epoch"}
    assert result["growth"]["cache_bytes"] < 1.1
    assert len(table(tmp_path, result)) == 2


def test_other_files_have_no_row(tmp_path):
    assert table(tmp_path, {"data": "675 samples", "rows": []}) == []


@pytest.mark.parametrize("path", sorted(MEASUREMENTS.glob("cpu-*.json")), ids=lambda path: path.stem)
def test_measurements_of_earlier_versions_are_read(path, tmp_path):
    assert table(tmp_path, json.loads(path.read_text()))


def test_people_read_the_rows_of_the_table(tmp_path):
    outcome = CliRunner().invoke(command, ["stage1", "--arch", "mininetv2", "--batch", "2", *SMALL])
    assert outcome.stdout == "" and outcome.stderr.startswith("a teacher's step, mininetv2, 64x64, batch 2: ")


def test_a_malformed_size_is_wrong_usage():
    outcome = CliRunner().invoke(command, ["stage2", "--size", "640"])
    assert outcome.exit_code == 2
    assert "is not a size" in outcome.output


def test_a_ratio_is_the_median_over_rounds():
    assert ratio({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 2.0]}, "a", "b") == 2.0


def test_actions_are_interleaved():
    order: list[str] = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert ["".join(sorted(order[start : start + 3])) for start in (0, 3, 6)] == ["abc"] * 3
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2, "c": 2}
