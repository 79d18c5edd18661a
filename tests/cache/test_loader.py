"""The order in which a training gets its samples, and how they are read ahead."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from mtkd_cache.cache.loader import BatchReader, epoch_batches, prefetch, prefetch_batches
from mtkd_cache.errors import MtkdError

ROWS = np.arange(100, 121)


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own():
    met = [np.concatenate(epoch_batches(ROWS, 7, seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in met:
        assert sorted(order) == sorted(ROWS)
        assert not np.array_equal(order, ROWS)
    assert not np.array_equal(met[0], met[1])
    assert not np.array_equal(met[0], met[2])
    assert np.array_equal(met[0], np.concatenate(epoch_batches(ROWS, 7, 0, 0)))


@pytest.mark.parametrize(("batch", "sizes"), [(8, [8, 8]), (7, [7, 7, 7]), (21, [21]), (99, [21]), (1, [1] * 21)])
def test_a_last_batch_that_is_not_full_is_left_out_unless_it_is_the_only_one(batch, sizes):
    assert [len(rows) for rows in epoch_batches(ROWS, batch, 0, 0)] == sizes


def test_processes_share_the_batches_of_one():
    alone = epoch_batches(ROWS, 8, 3, 2)
    shared = [epoch_batches(ROWS, 8, 3, 2, rank, 4) for rank in range(4)]
    for number, rows in enumerate(alone):
        assert sorted(np.concatenate([one[number] for one in shared])) == sorted(rows)
        assert all(len(one[number]) == 2 for one in shared)


def test_a_batch_smaller_than_the_processes_is_refused():
    for rows, batch in ((ROWS, 2), (ROWS[:2], 8)):
        with pytest.raises(MtkdError, match="a batch of 2 samples cannot be shared by 3 processes"):
            epoch_batches(rows, batch, 0, 0, 0, 3)


def test_batches_are_pinned_where_they_are_read(organ_store, monkeypatch):
    """For a CUDA device, in the reading thread: page-locking takes the training thread's time."""
    threads = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (threads.append(threading.current_thread()), tensor)[1])
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    reader, rows = BatchReader(organ_store), organ_store.rows("train")[:4]
    for device, pinned in (("cpu", 0), ("cuda", 3)):
        (batch,) = prefetch_batches([(rows,)], reader, torch.device(device))
        assert torch.equal(batch.images, reader.read(rows).images)
        assert len(threads) == pinned and threading.main_thread() not in threads


def test_what_is_read_ahead_comes_in_order_and_fails_where_it_was_asked_for():
    def read(number: int) -> int:
        if number == 4:
            raise ValueError("no 4")
        return number

    came = []
    with pytest.raises(ValueError, match="no 4"):
        came.extend(prefetch(((number,) for number in range(9)), read))
    assert came == [0, 1, 2, 3]
