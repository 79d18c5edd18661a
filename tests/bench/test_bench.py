"""The bench commands on tiny pictures: they run, and what they say obeys the contract of --json."""

import json
import math
import re

import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.bench.build import as_one_call, spread_out
from mtkd_cache.bench.table import lines
from mtkd_cache.cache.teacher_runner import TeacherRunner
from mtkd_cache.cli.bench import command
from mtkd_cache.models.network import create_network
from mtkd_cache.runtime.timing import interleaved, ratio
from mtkd_cache.study.report.collect import read_timings

SMALL = ("--size", "64x64", "--rounds", "1", "--device", "cpu", "--json")


def bench(*arguments: str) -> dict:
    result = CliRunner().invoke(command, [*arguments, *SMALL], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_stage2(tmp_path):
    found = bench("stage2", "--teacher", "mininetv2", "--batch", "2")
    for key in ("none_s", "cached_s", "online_s", "kd_overhead", "online_over_cached", "loader_share"):
        assert math.isfinite(found[key]) and found[key] >= 0, key
    assert found["loader_share"] <= 1
    assert set(found["peak_mb"]) == {"none", "cached", "online"}
    (tmp_path / "stage2.json").write_text(json.dumps(found))
    assert "a step of stage 2, mininetv2 under mininetv2, 64x64, batch 2" in "\n".join(lines(tmp_path))


def test_cache(tmp_path):
    found = bench("cache", "--teacher", "mininetv2", "--batch", "2")
    for key in ("read_ms", "decode_limit_ms", "resident_ms", "copy_ms", "write_over_forward"):
        assert math.isfinite(found[key]) and found[key] > 0, key
    ours, *others = found["ways"]
    assert len(others) == 3
    assert all(ours["bytes_per_sample"] < other["bytes_per_sample"] for other in others)
    assert others[0]["bytes_per_sample"] > 11 * 64 * 64 * 2
    assert others[2]["bytes_per_sample"] > 11 * 64 * 64 * 4
    (tmp_path / "cache.json").write_text(json.dumps(found))
    assert len(list(lines(tmp_path))) == 2 + 1 + 4


def test_inference(tmp_path):
    found = bench("inference", "--arch", "mininetv2", "--heads", "2", "--form", "folded")
    separate, shared = found["rows"]
    assert (separate["layout"], shared["layout"]) == ("separate", "shared")
    assert separate["params_m"] > shared["params_m"]
    for row in found["rows"]:
        assert row["fps"] == pytest.approx(1000 / row["ms"])
    (timing,) = read_timings(found)["mininetv2", "shared"].values()
    assert (timing.ms, timing.size) == (shared["ms"], (64, 64))
    assert re.search(r", \d+ threads?, 64\u00d764$", timing.where)
    (tmp_path / "inference.json").write_text(json.dumps(found))
    assert len(list(lines(tmp_path))) == 2 + 2


def test_smps_own_segformer_is_measured_beside_ours(tmp_path):
    found = bench("inference", "--arch", "segformer-mit_b0", "--heads", "1", "--form", "folded")
    assert all(set(row["forms_ms"]) == {"plain", "folded", "smp"} and row["form"] != "smp" for row in found["rows"])
    (tmp_path / "inference.json").write_text(json.dumps(found))
    found = bench("stage2", "--teacher", "segformer-mit_b0", "--batch", "2")
    assert found["online_smp_over_cached"] > 0
    (tmp_path / "stage2.json").write_text(json.dumps(found))
    assert "smp's own" in list(lines(tmp_path))[2] and "smp's own" in list(lines(tmp_path))[4]


def test_build(tmp_path):
    found = bench("build", "--teacher", "mininetv2", "--stacked")
    assert found["samples"] == 11 and found["teachers"] == 11
    for key in ("build_s", "bare_s", "stacked_s", "throughput", "loop_over_stacked"):
        assert math.isfinite(found[key]) and found[key] > 0, key
    (tmp_path / "build.json").write_text(json.dumps(found))
    assert "a build of 11 samples" in "\n".join(lines(tmp_path))


def test_one_batched_call_says_what_the_loop_says(accelerator):
    """All teachers stacked are the teachers one by one."""
    networks = [spread_out(create_network("mininetv2", 1)) for _ in range(3)]
    pictures = [torch.rand(2, 3, 32, 32)]
    ensemble = TeacherRunner(networks, accelerator)
    one_by_one = torch.stack([ensemble.native(number, pictures[0]) for number in range(3)])
    together = as_one_call(networks, pictures, accelerator)()[0][:, :, 0]
    torch.testing.assert_close(together, one_by_one, atol=1e-3, rtol=1e-4)


def test_stage1(tmp_path):
    found = bench("stage1", "--arch", "mininetv2", "--batch", "2")
    assert 0 <= found["loader_share"] <= 1 and found["step_s"] > 0
    (tmp_path / "stage1.json").write_text(json.dumps(found))
    assert "a teacher's step, mininetv2, 64x64, batch 2" in "\n".join(lines(tmp_path))


def test_ingest(tmp_path):
    arguments = ["ingest", "--source", "96x64", "--size", "64x64", "--samples", "11", "--rounds", "1", "--json"]
    found = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout.splitlines()[-1])
    assert found["images"] == 33 and found["ingest_over_bare"] > 0
    (tmp_path / "ingest.json").write_text(json.dumps(found))
    assert "ingest, one process, 96x64 to 64x64" in "\n".join(lines(tmp_path))


def test_scale(tmp_path):
    arguments = ["scale", "--samples", "11,33", "--size", "32x32", "--json"]
    found = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout.splitlines()[-1])
    assert [row["samples"] for row in found["rows"]] == [11, 33]
    assert set(found["rows"][0]["peak_mb"]) == {"ingest", "build", "verify", "epoch"}
    assert found["growth"]["cache_bytes"] < 1.1
    (tmp_path / "scale.json").write_text(json.dumps(found))
    assert len(list(lines(tmp_path))) == 2 + 2


def test_other_files_have_no_row(tmp_path):
    (tmp_path / "photographs.json").write_text(json.dumps({"data": "675 samples", "rows": []}))
    assert len(list(lines(tmp_path))) == 2


def test_a_size_that_is_none_is_wrong_usage():
    result = CliRunner().invoke(command, ["stage2", "--size", "640"])
    assert result.exit_code == 2
    assert "WIDTHxHEIGHT" in result.output


def test_ratios_are_taken_round_by_round():
    assert ratio({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 2.0]}, "a", "b") == 2.0


def test_all_take_their_turn():
    order: list[str] = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert ["".join(sorted(order[start : start + 3])) for start in (0, 3, 6)] == ["abc"] * 3
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2, "c": 2}
