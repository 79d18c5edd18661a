"""Where the teachers of a cache come from: folders of trained networks, students' runs, and code of the user's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtkd_cache.cache.layout import TeacherInfo
from mtkd_cache.cache.overlap import seen_by
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError, said
from mtkd_cache.models.checkpoints import WEIGHTS, check_present, file_sha256, load_heads, load_network
from mtkd_cache.models.network import Network
from mtkd_cache.models.own import find_factory, is_own, source_sha256
from mtkd_cache.models.records import Training, read_run, read_teacher
from mtkd_cache.models.seen import UNKNOWN, Seen

MEMBERS = ("anatomies", "stride", "fingerprint", "logits")
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class Teacher(Protocol):
    """A teacher of your own: an object with these members, of any class.

    A torch.nn.Module is moved to the device of the build, in eval mode; other objects get images that are there. One more member
    is optional: `license`, of its weights, for the records of the cache and of the students.

    Attributes:
        anatomies: of the channels of its logits, in order; each is one of the sample store's.
        stride: pixels of the image for each logit, along each axis.
        fingerprint: a text that changes whenever its logits may, such as the SHA-256 of its weights. A build
            then computes its maps again, and no others.
    """

    @property
    def anatomies(self) -> Sequence[str]: ...

    @property
    def stride(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def logits(self, images: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [0, 1] -> logits float (B, N, H // stride, W // stride), one channel an anatomy.

        Logits are before the sigmoid: positive where the anatomy is likelier than not. Students see them upsampled bilinearly
        with aligned corners.
        """
        ...


class OwnTeacher(nn.Module):
    """A `Teacher` in the place of a network; name: of its factory or class, for messages."""

    def __init__(self, name: str, teacher: Teacher):
        super().__init__()
        self.name, self.teacher, self.stride, self.heads = name, teacher, teacher.stride, len(teacher.anatomies)

    def native(self, images: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Logits (B, heads, h, w). Raises MtkdError where they are of another shape, and where the teacher's code fails."""
        try:
            logits = self.teacher.logits(images)
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # code that is not ours
            raise MtkdError(f"{self.name} fails on images {tuple(images.shape)}: {said(error)}.") from error
        check_logits(self.name, logits, images, self.heads, self.stride)
        return logits if heads is None else logits[:, list(heads)]


def check_logits(name: str, logits: Any, images: Tensor, heads: int, stride: int) -> None:
    """Raises MtkdError where native logits of images are not float (B, heads, H // stride, W // stride)."""
    expected = (len(images), heads, images.shape[2] // stride, images.shape[3] // stride)
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or tuple(logits.shape) != expected:
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise MtkdError(
            f"{name} maps images {tuple(images.shape)} to {found}. "
            f"Of {heads} anatomies at stride {stride} it must be float logits {expected}."
        )


@dataclass(frozen=True)
class Source:
    """One network and what it answers for.

    name: as the user named it. channels: {anatomy: channel of its logits}. seen: the samples it has seen in training.
    """

    name: str
    network: Any
    channels: dict[str, int]
    info: TeacherInfo
    seen: Seen = UNKNOWN


def teachers_of_folder(folder: Path, anatomies: Sequence[str], store: SampleStore) -> Iterator[Source]:
    """The teachers in ANATOMY/weights.safetensors. Raises MtkdError where one is missing, damaged or of another anatomy."""
    check_present(folder, anatomies)
    for anatomy in anatomies:
        network = load_network(folder / anatomy, anatomies=[anatomy])
        network.check_size(store.size)
        record = read_teacher(folder / anatomy)
        info = _recorded(network, folder / anatomy, record)
        yield Source(str(folder / anatomy), network, {anatomy: 0}, info, seen_by([record], store.size))


def _recorded(network: Network, folder: Path, record: Training | None) -> TeacherInfo:
    """What a cache records of a trained network."""
    info: TeacherInfo = {"arch": network.arch, "weights_sha256": file_sha256(folder / WEIGHTS)}
    if record and record.licenses:
        info["license"] = "; ".join(record.licenses)
    return info


def find_sources(named: str | Path | Teacher, store: SampleStore, arch: str | None = None) -> list[Source]:
    """What one --teacher names.

    Args:
        named: "package.module:factory", whose factory is called without arguments and returns a `Teacher`; the folder of a
            student's run or of one teacher, which answers for all of its anatomies that the store has; a folder of teachers; or a
            `Teacher` itself.
        store: whose anatomies they have to know, at the size of its images.
        arch: the code of a run's network, where it is the user's own.

    Raises:
        MtkdError: there is no such teacher, or it does not fit the store.
    """
    if not isinstance(named, str | Path):
        return [_own(f"{type(named).__module__}.{type(named).__qualname__}", named, store)]
    if is_own(str(named)) and not Path(named).exists():
        return [_of_factory(str(named), store)]
    folder = Path(named)
    if (folder / WEIGHTS).exists():
        return [_of_run(folder, store, arch)]
    present = [anatomy for anatomy in store.anatomies if (folder / anatomy / WEIGHTS).exists()]
    if not present:
        raise MtkdError(
            f"{folder} holds no {WEIGHTS}, nor does a folder in it that is named as an anatomy of {store.url}. "
            "Name a run, a folder of teachers, or package.module:factory."
        )
    return list(teachers_of_folder(folder, present, store))


def _of_run(folder: Path, store: SampleStore, arch: str | None) -> Source:
    """A trained network with any number of heads."""
    network, anatomies = load_heads(folder, arch=arch)
    channels = {anatomy: channel for channel, anatomy in enumerate(anatomies) if anatomy in store.anatomies}
    if not channels:
        raise MtkdError(f"{folder} knows {', '.join(anatomies)}, and none of {store.url}'s {', '.join(store.anatomies)}.")
    network.check_size(store.size)
    record = read_run(folder) or read_teacher(folder)
    info = _recorded(network, folder, record)
    if network.source_sha256:
        info["source_sha256"] = network.source_sha256
        _try_out(str(folder), network, store.size)
    return Source(str(folder), network, channels, info, seen_by([record], store.size))


def _of_factory(name: str, store: SampleStore) -> Source:
    factory = find_factory(name)
    try:
        teacher = factory()  # type: ignore[call-arg]
    except Exception as error:  # code that is not ours
        raise MtkdError(f"{name} failed: {said(error)}. It is called without arguments and returns the teacher.") from error
    return _own(name, teacher, store, source_sha256(name))


def _own(name: str, teacher: Any, store: SampleStore, source: str | None = None) -> Source:
    if lacking := [member for member in MEMBERS if not hasattr(teacher, member)]:
        raise MtkdError(f"{name} has no {', '.join(lacking)}. A teacher has {', '.join(MEMBERS[:-1])} and logits(images).")
    anatomies, stride, fingerprint = tuple(teacher.anatomies), teacher.stride, teacher.fingerprint
    if unknown := [anatomy for anatomy in anatomies if anatomy not in store.anatomies]:
        raise MtkdError(f"{name} answers for {', '.join(map(str, unknown))}; {store.url} has {', '.join(store.anatomies)}.")
    if not anatomies or len(set(anatomies)) < len(anatomies):
        raise MtkdError(f"{name} names the anatomies {anatomies}. Name at least one, and each once.")
    if type(stride) is not int or not 1 <= stride <= min(store.size):
        raise MtkdError(f"{name}: stride = {stride!r} is no number of pixels from 1 to {min(store.size)}.")
    if not isinstance(fingerprint, str) or not fingerprint:
        raise MtkdError(
            f"{name}: fingerprint = {fingerprint!r} is no text. Give one that changes with its weights: their SHA-256."
        )
    network = OwnTeacher(name, teacher).eval()
    _try_out(name, network, store.size)
    info: TeacherInfo = {"arch": name, "weights_sha256": fingerprint}
    if source:
        info["source_sha256"] = source
    if told := getattr(teacher, "license", None):
        info["license"] = str(told)
    return Source(name, network, {anatomy: channel for channel, anatomy in enumerate(anatomies)}, info)


def _try_out(name: str, network: Any, size: tuple[int, int]) -> None:
    """Raises MtkdError where the native logits of a gray image of size = (width, height) have another shape or are not finite."""
    parameter = next(network.parameters(), torch.empty(0))
    images = torch.full((1, 3, size[1], size[0]), 0.5, device=parameter.device)
    with torch.inference_mode():
        logits = network.native(images)
    check_logits(name, logits, images, network.heads, network.stride)
    if not logits.isfinite().all():
        raise MtkdError(f"{name} gives NaN or infinity on a gray image of {size[0]}x{size[1]} pixels. Check its weights.")
