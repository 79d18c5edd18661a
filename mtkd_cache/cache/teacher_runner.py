"""The teachers of a cache, and their forward passes: all are on the device where they fit its memory, else one at a time."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.cache.layout import TeacherInfo
from mtkd_cache.cache.overlap import seen_by
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.checkpoints import WEIGHTS, check_present, file_sha256, load_network
from mtkd_cache.models.fast import compile_parts
from mtkd_cache.models.network import Network
from mtkd_cache.models.records import read_teacher
from mtkd_cache.models.seen import UNKNOWN, Seen

SHARE = 0.5  # of a GPU's free memory that the teachers' weights take at most


@dataclass(frozen=True)
class Teachers:
    """The teachers whose logits a cache holds, one for each of the store's anatomies, in its order.

    Attributes:
        networks: anything with `stride` and `native(images) -> native logits`, as what `create_network` returns.
        info: by anatomy, what the cache records of its teacher ("arch", "weights_sha256"); where it differs, maps are rebuilt.
        seen: the samples that they have seen in training.
    """

    networks: Sequence[Network]
    info: dict[str, TeacherInfo]
    seen: Seen = UNKNOWN

    @classmethod
    def load(cls, folder: Path, store: SampleStore) -> "Teachers":
        """Load the teacher of each of a store's anatomies.

        Args:
            folder: holds ANATOMY/weights.safetensors.
            store: whose anatomies they have to know, at the size of its images.

        Raises:
            MtkdError: a teacher is missing, damaged, of another anatomy, or has no native logits at that size.
        """
        check_present(folder, store.anatomies)
        networks: list[Network] = []
        info: dict[str, TeacherInfo] = {}
        for anatomy in store.anatomies:
            network = load_network(folder / anatomy, anatomies=[anatomy])
            network.check_size(store.size)
            networks.append(network)
            info[anatomy] = {"arch": network.arch, "weights_sha256": file_sha256(folder / anatomy / WEIGHTS)}
        return cls(networks, info, seen_by((read_teacher(folder / anatomy) for anatomy in store.anatomies), store.size))

    @property
    def strides(self) -> dict[str, int]:
        """By anatomy, pixels of the image for each native logit, along each axis."""
        return {anatomy: network.stride for anatomy, network in zip(self.info, self.networks, strict=True)}

    @property
    def stride(self) -> int | dict[str, int]:
        """The stride that all teachers have; where they differ, by anatomy."""
        strides = self.strides
        return next(iter(strides.values())) if len(set(strides.values())) == 1 else strides


class TeacherRunner:
    """Runs one teacher at a time on batches of images, channels-last, in the accelerator's precision.

    compiled: compile the networks; one compilation, at the first call, serves all networks of one architecture.
    """

    def __init__(self, networks: Sequence[Network], accelerator: Accelerator, compiled: bool = False):
        self.networks, self.accelerator, self.device = networks, accelerator, accelerator.device
        for network in networks if compiled else ():
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

    def native(self, anatomy: int, images: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [0, 1] -> native logits float32 (B, h, w) of one teacher. On a GPU it does not wait."""
        network = self._move_to_device(anatomy)
        with self._timed(), torch.inference_mode(), self.accelerator.autocast():
            return network.native(images.contiguous(memory_format=torch.channels_last))[:, 0].float()

    def _move_to_device(self, anatomy: int) -> Network:
        if anatomy not in self._on_device:
            if not self.all_fit:
                for other in self._on_device:
                    self.networks[other].to("cpu")
                self._on_device.clear()
            self.networks[anatomy].to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            self._on_device.add(anatomy)
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
