"""Samples held in the memory of the device or the host, so that an epoch touches no file."""

import re
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from mtkd_cache.errors import MtkdError
from mtkd_cache.feed import Batch, Stream
from mtkd_cache.samples import SHARD

MODES = ("auto", "device", "host", "off")
SHARE = 0.5  # of the free memory that "auto" takes at most


class Resident:
    """Holds all of a stream's samples (and their maps of every recorded view) in memory, on a device or the host."""

    def __init__(self, stream: Stream, rows: np.ndarray, device: torch.device):
        self.place = {int(row): index for index, row in enumerate(rows)}
        views = stream.cache.views if stream.cache else 1
        self.held: list[Batch] = []
        progress = tqdm(total=len(rows) * views, desc=f"load to {device.type}", unit="sample", disable=None, leave=False)
        for view in range(views):
            parts = []
            for start in range(0, len(rows), SHARD):
                parts.append(stream.read(rows[start : start + SHARD], view))
                progress.update(len(parts[-1].rows))
            if view:
                first = self.held[0]
                self.held.append(Batch(rows, first.images, first.masks, first.anatomy, _join(parts, "logits").to(device)))
            else:
                joined = [_join(parts, name) for name in ("images", "masks", "anatomy", "logits")]
                self.held.append(Batch(rows, *(None if t is None else t.to(device) for t in joined)))
        progress.close()

    def read(self, rows: np.ndarray, view: int = 0) -> Batch:
        held = self.held[view]
        at = torch.tensor([self.place[int(row)] for row in rows], device=held.images.device)
        tensors = (held.images, held.masks, held.anatomy, held.logits)
        return Batch(rows, *(None if t is None else t.index_select(0, at) for t in tensors))


def _join(parts: list[Batch], name: str) -> Tensor | None:
    tensors = [getattr(part, name) for part in parts]
    return None if tensors[0] is None else torch.cat(tensors)


def hold(stream: Stream, rows: np.ndarray, device: torch.device, mode: str = "auto") -> Stream | Resident:
    """The stream itself, or its samples in memory.

    mode: "device", "host", "off" (stream), or "auto": the device where they take at most half its free memory, else the host
    where they take at most half of its, else streaming.
    """
    if mode not in MODES:
        raise MtkdError(f"resident {mode!r}: choose one of {', '.join(MODES)}.")
    if mode == "auto":
        needed = stream.bytes_per_sample() * len(rows)
        mode = "host" if needed <= SHARE * _free_host() else "off"
        if device.type == "cuda" and needed <= SHARE * torch.cuda.mem_get_info(device)[0]:
            mode = "device"
    if mode == "off":
        return stream
    return Resident(stream, rows, device if mode == "device" else torch.device("cpu"))


def _free_host(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that are available, and no more than a job's or a container's limit (control groups, version 2)."""
    free = psutil.virtual_memory().available
    group = re.search(r"^0::/(.*)$", mine.read_text() if mine.exists() else "", re.MULTILINE)
    for folder in (groups / group[1], *(groups / group[1]).parents) if group else ():
        limit = folder / "memory.max"
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
    return free
