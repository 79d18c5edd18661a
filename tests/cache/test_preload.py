"""Samples in memory: the same batches as from the disk, held where they fit."""

import numpy as np
import psutil
import pytest
import torch
from support import build

from mtkd_cache.cache import loader as resident
from mtkd_cache.cache.loader import BatchReader, InMemorySource, preload
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.errors import MtkdError

CPU = torch.device("cpu")


def test_batches_from_memory_are_those_from_the_disk(organ_store, organ_cache):
    stream = BatchReader(organ_store, organ_cache)
    rows = organ_store.rows("train")
    held = preload(stream, rows, CPU, "host")
    chosen = rows[[4, 0, 4, 7]]
    ours, theirs = held.read(chosen), stream.read(chosen)
    assert np.array_equal(ours.rows, theirs.rows)
    for name in ("images", "masks", "anatomy"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert len(ours.logits) == len(theirs.logits) == 1 and torch.equal(ours.logits[0], theirs.logits[0])


def test_each_recorded_view_has_its_own_maps(organ_store, organ_teachers, recipe, accelerator, tmp_path):
    build(organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe("cache.views=3"), accelerator)
    stream, rows = BatchReader(organ_store, LogitCache.open(str(tmp_path / "c.zarr"))), organ_store.rows("train")
    held = preload(stream, rows, CPU, "host")
    maps = [held.read(rows[::-1], view).logits[0] for view in range(3)]
    assert all(torch.equal(maps[view], stream.read(rows[::-1], view).logits[0]) for view in range(3))
    assert not torch.equal(maps[0], maps[1]) and not torch.equal(maps[1], maps[2])


def test_auto_holds_what_takes_half_the_free_memory_at_most(organ_store, monkeypatch):
    stream, rows = BatchReader(organ_store), organ_store.rows("train")
    needed = len(rows) * 4 * 64 * 64
    monkeypatch.setattr(resident, "_free_host", lambda: 2 * needed)
    assert isinstance(preload(stream, rows, CPU, "auto"), InMemorySource)
    monkeypatch.setattr(resident, "_free_host", lambda: 2 * needed - 2)
    assert preload(stream, rows, CPU, "auto") is stream
    assert preload(stream, rows, CPU, "off") is stream
    with pytest.raises(MtkdError, match="resident 'everywhere': choose one of auto, device, host, off"):
        preload(stream, rows, CPU, "everywhere")


def test_a_jobs_limit_is_no_more_than_what_is_free(tmp_path):
    job = tmp_path / "groups" / "slurm" / "job7"
    (job / "step0").mkdir(parents=True)
    mine = tmp_path / "cgroup"
    mine.write_text("4:memory:/other\n0::/slurm/job7/step0\n")
    (job / "step0" / "memory.max").write_text("max\n")
    free = psutil.virtual_memory().available
    assert abs(resident._free_host(tmp_path / "groups", mine) - free) < 0.5 * free
    (job / "memory.max").write_text("123456789\n")
    assert resident._free_host(tmp_path / "groups", mine) == 123456789
    assert resident._free_host(tmp_path / "groups", tmp_path / "absent") > 123456789
