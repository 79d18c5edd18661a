"""The teachers of a cache, and their forward passes: all are on the device where they fit its memory, else one at a time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.cache.layout import TeacherInfo
from mtkd_cache.cache.teacher_sources import Source, Teacher, find_sources, teachers_of_folder
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.fast import compile_parts
from mtkd_cache.models.network import Network
from mtkd_cache.models.seen import NOTHING, UNKNOWN, Seen
from mtkd_cache.storage.checked_json import digest

SHARE = 0.5  # of a GPU's free memory that the teachers' weights take at most


@dataclass(frozen=True)
class Teachers:
    """The teachers whose logits a cache holds: for each of the store's anatomies at least one.

    Attributes:
        networks: anything with `stride` and `native(images) -> native logits`, as what `create_network` returns; each runs once
            an image.
        info: by anatomy, in the store's order, what the cache records of its teacher ("arch", "weights_sha256"); where it
            differs, maps are rebuilt.
        seen: the samples that they have seen in training.
        channels: of each network, the channel of every anatomy it answers for; empty: one network an anatomy. An anatomy that
            several answer for gets the mean of their logits.
    """

    networks: Sequence[Any]
    info: dict[str, TeacherInfo]
    seen: Seen = UNKNOWN
    channels: Sequence[Mapping[str, int]] = ()

    @classmethod
    def load(cls, folder: Path, store: SampleStore) -> "Teachers":
        """Load the teacher of each of a store's anatomies.

        Args:
            folder: holds ANATOMY/weights.safetensors.
            store: whose anatomies they have to know, at the size of its images.

        Raises:
            MtkdError: a teacher is missing, damaged, of another anatomy, or has no native logits at that size.
        """
        return cls.gather((), store, folder)

    @classmethod
    def gather(
        cls, named: Sequence[str | Path | Teacher], store: SampleStore, rest: Path | None = None, arch: str | None = None
    ) -> "Teachers":
        """Teachers of any kind, side by side.

        Args:
            named: each is a `Teacher`, "package.module:factory" (called without arguments, it returns a `Teacher`), the folder of
                a student's run or of one teacher, or a folder of teachers. An anatomy that several of them answer for gets the
                mean of their logits, at the finest of their strides.
            store: whose anatomies they have to know, at the size of its images.
            rest: folder of the teachers of anatomies that none of them answers for.
            arch: the code of a run's network, where that is your own: imported only where you name it.

        Raises:
            MtkdError: a teacher does not exist or does not fit the store, one is named twice, or an anatomy has none.
        """
        sources = [source for one in named for source in find_sources(one, store, arch)]
        names = [str(one) for one in named if isinstance(one, str | Path)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise MtkdError(f"{', '.join(sorted(twice))} is named twice. Name each teacher once.")
        answered = {anatomy for source in sources for anatomy in source.channels}
        left = [anatomy for anatomy in store.anatomies if anatomy not in answered]
        if left and rest is None:
            raise MtkdError(f"no teacher answers for {', '.join(left)}. Name one more.")
        if left and rest is not None:
            sources += teachers_of_folder(rest, left, store)
        return cls._of(sources, store)

    @classmethod
    def _of(cls, sources: Sequence[Source], store: SampleStore) -> "Teachers":
        info = {a: _info([source.info for source in sources if a in source.channels]) for a in store.anatomies}
        seen = NOTHING
        for source in sources:
            seen |= source.seen
        return cls([source.network for source in sources], info, seen, [source.channels for source in sources])

    @property
    def heads(self) -> list[Mapping[str, int]]:
        """Of each network, the channel of every anatomy it answers for."""
        return list(self.channels) or [{anatomy: 0} for anatomy in self.info]

    @property
    def strides(self) -> dict[str, int]:
        """By anatomy, pixels of the image for each native logit, along each axis; of several teachers the finest."""
        pairs = list(zip(self.networks, self.heads, strict=True))
        return {anatomy: min(network.stride for network, heads in pairs if anatomy in heads) for anatomy in self.info}

    @property
    def stride(self) -> int | dict[str, int]:
        """The stride that all maps have; where they differ, by anatomy."""
        strides = self.strides
        return next(iter(strides.values())) if len(set(strides.values())) == 1 else strides


def _info(members: list[TeacherInfo]) -> TeacherInfo:
    """What is recorded of the teachers that answer for one anatomy together."""
    if len(members) == 1:
        return members[0]
    weights = digest([[member["arch"], member["weights_sha256"]] for member in members])
    names = " and ".join(member["arch"] for member in members)
    return {"arch": f"mean of {names}", "weights_sha256": weights, "members": members}


class TeacherRunner:
    """Runs one teacher at a time on batches of images, channels-last, in the accelerator's precision.

    compiled: compile the networks, but not the user's own; one compilation, at the first call, serves all of one architecture.
    """

    def __init__(self, networks: Sequence[Any], accelerator: Accelerator, compiled: bool = False):
        self.networks, self.accelerator, self.device = networks, accelerator, accelerator.device
        for network in networks if compiled else ():
            if isinstance(network, Network):
                compile_parts(network)
        self.all_fit = True
        if self.device.type == "cuda":
            needed = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())
            self.all_fit = needed <= SHARE * torch.cuda.mem_get_info(self.device)[0]
        self._on_device: set[int] = set()
        self._host_seconds = 0.0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """The time that the forward passes have taken; on a GPU this waits for those under way."""
        if self._marks:
            torch.cuda.synchronize(self.device)
        milliseconds: float = sum(start.elapsed_time(end) for start, end in self._marks)
        return self._host_seconds + milliseconds / 1e3

    def native(self, number: int, images: Tensor) -> Tensor:
        """Native logits float32 (B, h, w) of a network with one head, see `logits`."""
        return self.logits(number, images, [0])[:, 0]

    def logits(self, number: int, images: Tensor, channels: Sequence[int]) -> Tensor:
        """Images float (B, 3, H, W) in [0, 1] -> native logits float32 (B, channels, h, w) of one network.

        On a GPU it does not wait.
        """
        network = self._move_to_device(number)
        images = images.contiguous(memory_format=torch.channels_last)
        with self._timed(), torch.inference_mode(), self.accelerator.autocast():
            one = getattr(network, "heads", 1) == 1
            native: Tensor = network.native(images) if one else network.native(images, channels)
            return native.float()

    def _move_to_device(self, number: int) -> Any:
        if number not in self._on_device:
            if not self.all_fit:
                for other in self._on_device:
                    self.networks[other].to("cpu")
                self._on_device.clear()
            layout = {"memory_format": torch.channels_last} if isinstance(self.networks[number], Network) else {}
            self.networks[number].to(self.device, **layout).eval()
            self._on_device.add(number)
        return self.networks[number]

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
