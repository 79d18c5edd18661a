"""The bench commands on tiny pictures: they run, and what they say obeys the contract of --json."""

import json
import math
import re

import pytest
from click.testing import CliRunner

from mtkd_cache.bench.machine import in_turn, ratio
from mtkd_cache.bench.table import lines
from mtkd_cache.cli.bench import command
from mtkd_cache.report.collect import read_timings

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
    found = bench("inference", "--arch", "mininetv2", "--heads", "2")
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


def test_a_size_that_is_none_is_wrong_usage():
    result = CliRunner().invoke(command, ["stage2", "--size", "640"])
    assert result.exit_code == 2
    assert "WIDTHxHEIGHT" in result.output


def test_ratios_are_taken_round_by_round():
    assert ratio({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 2.0]}, "a", "b") == 2.0


def test_all_take_their_turn():
    order: list[str] = []
    times = in_turn({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert "".join(order) == "abcabcabc"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2, "c": 2}
