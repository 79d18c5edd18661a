"""Records are read from JSON and written back with every key, known or not."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import Manifest
from mtkd_cache.storage.record import JsonRecord


@dataclass(frozen=True, kw_only=True)
class Views(JsonRecord):
    count: int
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Spec(JsonRecord):
    grid: tuple[int, ...]
    rows: tuple[dict[str, Any], ...] = ()
    views: Views
    precision: str | None = None
    weights: str | dict[str, str] | None = None
    step: float = 1.0


FULL = {
    "grid": [3, 4],
    "rows": [{"kl": [0.5, 0.25]}, {"kl": []}],
    "views": {"count": 2, "seed": 7, "drawn": "sobol"},
    "precision": "bf16",
    "step": 0.5,
    "licence": {"name": "CC", "of": ["a", ["b"]]},
}


def test_a_record_is_written_as_it_was_read():
    record = Spec.from_json(json.loads(json.dumps(FULL)), "spec.json")
    assert (record.grid, record.views.count, record.views.seed, record.precision) == ((3, 4), 2, 7, "bf16")
    assert record.rows[0]["kl"] == [0.5, 0.25]
    assert record.extra == {"licence": FULL["licence"]} and record.views.extra == {"drawn": "sobol"}
    assert record.to_json() == FULL
    assert Spec.from_json(record.to_json(), "again") == record


def test_what_may_be_absent_stays_absent():
    few = {"grid": [1], "rows": [], "views": {"count": 1}, "step": 2}
    record = Spec.from_json(few, "spec.json")
    assert record.precision is None and record.views.seed is None
    assert record.to_json() == few


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"spec\.json has no grid, views\. Run the command that wrote it again"),
        ({"grid": [1], "views": {"seed": 3}}, r"spec\.json has no count"),
        ({"grid": [1], "views": [2]}, r"spec\.json is damaged \(no JSON object\)"),
        ([1], r"spec\.json is damaged \(no JSON object\)"),
    ],
)
def test_missing_keys_are_named(content, message):
    with pytest.raises(MtkdError, match=message):
        Spec.from_json(content, "spec.json")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid": None}, "grid = None"),
        ({"grid": {"a": 1}}, r"grid = \{'a': 1\}"),
        ({"rows": "x" * 99}, "rows = 'x{39}"),
        ({"views": {"count": "2"}}, "count = '2'"),
        ({"precision": 16}, "precision = 16"),
        ({"weights": ["a"]}, r"weights = \['a'\]"),
        ({"step": "0.5"}, "step = '0.5'"),
    ],
)
def test_a_value_of_another_type_is_named(changes, told):
    with pytest.raises(MtkdError, match=rf"^spec\.json is damaged \({told} is of the wrong type\)\. Run the command"):
        Spec.from_json({**FULL, **changes}, "spec.json")


@pytest.mark.parametrize("weights", [None, "w", {"liver": "w"}])
def test_a_value_of_any_of_a_fields_types_is_read(weights):
    assert Spec.from_json({**FULL, "weights": weights}, "spec.json").weights == weights


def test_a_manifest_whose_format_is_no_number_is_refused():
    with pytest.raises(MtkdError, match="it is of a  of format new; a  of format 0 is needed"):
        Manifest.from_json({"format": "new", "fingerprint": "", "files": {}}, "it")
