"""The teachers at work on a device: all of them there at once where they fit its memory, else the one that speaks."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.models import Network
from mtkd_cache.models.fast import compile_parts

SHARE = 0.5  # of a GPU's free memory that the teachers' weights take at most


class Ensemble:
    """Runs one teacher at a time on batches of pictures, channels-last, in the accelerator's precision.

    compiled: the networks are; one compilation, at the first call, serves all of one architecture.
    """

    def __init__(self, networks: Sequence[Network], accelerator: Accelerator, compiled: bool = False):
        self.networks, self.accelerator, self.device = networks, accelerator, accelerator.device
        for network in networks if compiled else ():
            compile_parts(network)
        self.all_fit = True
        if self.device.type == "cuda":
            needed = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())
            self.all_fit = needed <= SHARE * torch.cuda.mem_get_info(self.device)[0]
        self._there: set[int] = set()
        self._host_seconds = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """The time the forward passes have taken; on a GPU it waits for those under way."""
        if self._marks:
            torch.cuda.synchronize(self.device)
        return self._host_seconds + sum(start.elapsed_time(end) for start, end in self._marks) / 1e3

    def native(self, anatomy: int, images: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [0, 1] -> native logits float32 (B, h, w) of one teacher. On a GPU it does not wait."""
        network = self._seat(anatomy)
        with self._timed(), torch.inference_mode(), self.accelerator.autocast():
            return network.native(images.contiguous(memory_format=torch.channels_last))[:, 0].float()

    def _seat(self, anatomy: int) -> Network:
        if anatomy not in self._there:
            if not self.all_fit:
                for other in self._there:
                    self.networks[other].to("cpu")
                self._there.clear()
            self.networks[anatomy].to(self.device, memory_format=torch.channels_last).eval()
            self._there.add(anatomy)
        return self.networks[anatomy]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._marks.append((start, end))
        else:
            before = time.perf_counter()
            yield
            self._host_seconds += time.perf_counter() - before
