"""Trained networks as one function of images: a student's, or those of a folder of teachers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from mtkd_cache.cache.overlap import seen_by
from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.frames import Prediction, Upsampling, silenced, to_network
from mtkd_cache.models.checkpoints import WEIGHTS, check_present, file_sha256, load_heads, load_network
from mtkd_cache.models.fast import fastest
from mtkd_cache.models.network import Network
from mtkd_cache.models.records import RUN, OperatingPoint, OperatingPoints, Training, read_operating_points, read_training_records
from mtkd_cache.models.seen import Seen


@dataclass(frozen=True)
class Predictor:
    """Segments images: one logit map for each anatomy.

    Attributes:
        folder: where it was loaded from.
        device: where it computes.
        layout: "separate" for teachers, a network each; of a student that of its network, see `create_network`.
        heads: {anatomy: (network, number of its head)}.
        records: of the trainings, where they are recorded.
        weights_sha256: of the student's weights, or {anatomy: of its teacher's}.
        operating_points: those chosen for these weights, a record for each file of weights that has some.
        memory_format: of the images that the networks see.
    """

    folder: Path
    device: torch.device
    layout: str
    heads: dict[str, tuple[Network, int]]
    records: Sequence[Training]
    weights_sha256: str | dict[str, str]
    operating_points: Sequence[OperatingPoints] = ()
    memory_format: torch.memory_format = torch.contiguous_format

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: torch.device | str = "cpu",
        anatomies: Sequence[str] | None = None,
        arch: str | None = None,
    ) -> "Predictor":
        """The student in a run folder, or the teachers in a teachers folder, in eval mode.

        Args:
            folder: a run folder (weights.safetensors) or a teachers folder (ANATOMY/weights.safetensors).
            device: where to compute.
            anatomies: a student must know just these, in this order; of the teachers only these are loaded. None takes all.
            arch: the architecture, which has to be named where it is your own, see `load_network`.

        Raises:
            MtkdError: the folder holds neither, a network is missing or damaged, or it knows other anatomies.
        """
        folder, device = Path(folder), torch.device(device)
        weights: str | dict[str, str]
        if (folder / WEIGHTS).exists() or (folder / RUN).exists():
            network, known = load_heads(folder, anatomies, arch)
            heads = {anatomy: (network.to(device), head) for head, anatomy in enumerate(known)}
            layout, weights = network.layout, file_sha256(folder / WEIGHTS)
            points = [read_operating_points(folder, weights)]
        else:
            trained = [path.parent.name for path in sorted(folder.glob(f"*/{WEIGHTS}"))]
            if not trained:
                raise MtkdError(
                    f"{folder} holds neither a student's {WEIGHTS} nor teachers' ANATOMY/{WEIGHTS}. "
                    "Train first, or name another folder."
                )
            check_present(folder, anatomies or ())
            heads = {
                anatomy: (load_network(folder / anatomy, anatomies=[anatomy]).to(device), 0) for anatomy in anatomies or trained
            }
            layout, weights = "separate", {anatomy: file_sha256(folder / anatomy / WEIGHTS) for anatomy in heads}
            points = [read_operating_points(folder / anatomy, sha256) for anatomy, sha256 in weights.items()]
        records = read_training_records(folder)
        return cls(folder, device, layout, heads, records, weights, [each for each in points if each])

    @property
    def anatomies(self) -> tuple[str, ...]:
        """Of the maps, in order."""
        return tuple(self.heads)

    @property
    def arch(self) -> str:
        """The architecture, as `create_network` takes it."""
        return next(iter(self.heads.values()))[0].arch

    @property
    def _points(self) -> dict[str, OperatingPoint]:
        return {anatomy: point for each in self.operating_points for anatomy, point in each.points.items()}

    @property
    def thresholds(self) -> dict[str, float]:
        """{anatomy: logit above which its head claims a pixel}: its operating point, 0 (probability 0.5) where it has none."""
        points = self._points
        return {anatomy: points[anatomy].threshold if anatomy in points else 0.0 for anatomy in self.heads}

    @property
    def presence(self) -> dict[str, float]:
        """{anatomy: what its head's highest native logit in a frame must exceed for the head to claim anything there}.

        Only of the heads for which labels allowed to choose it, see `mtkd_cache.training.presence`.
        """
        points = self._points
        chosen = {anatomy: points[anatomy].presence for anatomy in self.heads if anatomy in points}
        return {anatomy: value for anatomy, value in chosen.items() if value is not None}

    def limits(self, anatomies: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Thresholds and presence thresholds of these heads in order, float (A, 1, 1) on the device; presence -inf for none."""
        thresholds, presence = self.thresholds, self.presence
        pairs = [(thresholds[name], presence.get(name, -torch.inf)) for name in self._named(anatomies)]
        first, second = torch.tensor(pairs, device=self.device)[..., None, None].unbind(1)
        return first, second

    def _named(self, anatomies: Sequence[str] | None) -> tuple[str, ...]:
        """These anatomies, or all for None. Raises MtkdError where there is no head of one, or none is named."""
        names = self.anatomies if anatomies is None else tuple(anatomies)
        unknown = [name for name in names if name not in self.heads]
        if unknown or not names:
            what = f"{self.folder} has no head of {', '.join(unknown)}" if unknown else "no anatomy is named"
            raise MtkdError(f"{what}. Name some of {', '.join(self.heads)}.")
        return names

    def thresholds_on(self, store: SampleStore) -> dict[str, float]:
        """The thresholds that were chosen on the validation split of this store, for the heads that have one."""
        own = [each for each in self.operating_points if each.store_fingerprint == store.fingerprint]
        return {anatomy: self.thresholds[anatomy] for each in own for anatomy in each.points if anatomy in self.heads}

    def seen(self, size: tuple[int, int]) -> Seen:
        """The samples of this size that the networks have seen, as far as they are recorded."""
        if isinstance(self.weights_sha256, str):
            return seen_by(self.records or [None], size)
        teachers = {getattr(record, "anatomy", ""): record for record in self.records}
        return seen_by((teachers.get(anatomy) for anatomy in self.heads), size)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the training images. Raises MtkdError where no record says it."""
        if not self.records:
            raise MtkdError(f"{self.folder} does not record the size of its training images. Finish the training first.")
        return self.records[0].size

    def fastest(self) -> "Predictor":
        """The same, with its networks in the form that is fastest here for images of the training size, found by timing each.

        Logits are the same up to rounding. The forms are folded batch norms, and those compiled, which takes a minute or two for
        each network and needs a C++ compiler; without one it is left out.
        """
        example = torch.zeros(1, 3, *self.size[::-1], device=self.device)
        networks = {id(network): network for network, _ in self.heads.values()}
        forms = {key: fastest(network, example) for key, network in networks.items()}
        heads = {anatomy: (forms[id(network)].network, head) for anatomy, (network, head) in self.heads.items()}
        return replace(self, heads=heads, memory_format=next(iter(forms.values())).layout)

    @overload
    def __call__(self, images: np.ndarray, anatomies: Sequence[str] | None = None) -> Prediction: ...
    @overload
    def __call__(self, images: Tensor, anatomies: Sequence[str] | None = None) -> Tensor: ...
    def __call__(self, images: np.ndarray | Tensor, anatomies: Sequence[str] | None = None) -> Prediction | Tensor:
        """Segment a frame, or a batch of images.

        Args:
            images: a frame as it was decoded, an array uint8 (H, W, 3), RGB, of any size; or a tensor float (B, 3, H, W), RGB in
                [0, 1], of images at the size that the network is to see.
            anatomies: run only these heads, in this order.

        Returns:
            of a frame its `Prediction`: masks (A, H, W) at the operating points, probabilities and labels at the frame's size;
            of a tensor the logits float (B, A, H, W), on the device: positive where an anatomy is more likely than not.

        Raises:
            MtkdError: another kind of array, an anatomy without a head; for a frame also a folder that does not record the size
                of its training images.
        """
        if isinstance(images, np.ndarray):
            return next(self.sequence([images], anatomies=anatomies))
        maps, upsampling = self.maps(images.to(self.device), anatomies)
        with torch.inference_mode():
            return upsampling(maps)

    def logits(self, images: Tensor, anatomies: Sequence[str] | None = None) -> Tensor:
        """Logits float (B, A, H, W), on the device, of a sample store's pictures, uint8 (B, H, W, 3), which keep their size."""
        return self(to_float(images.to(self.device)), anatomies)

    def maps(
        self, images: Tensor, anatomies: Sequence[str] | None = None, frame: tuple[int, int] | None = None
    ) -> tuple[Tensor, Upsampling]:
        """Logits before any upsampling, float (B, A, h, w), and what upsamples them.

        Args:
            images: float (B, 3, H, W), RGB in [0, 1], on the device.
            anatomies: run only these heads, in this order.
            frame: (height, width) of the frame that they were made of, by default their own.
        """
        names = self._named(anatomies)
        chosen = [self.heads[name] for name in names]
        size = (images.shape[2], images.shape[3])
        with torch.inference_mode():
            if self.layout == "separate":
                images = images.contiguous(memory_format=self.memory_format)
                return torch.cat([network(images) for network, _ in chosen], dim=1), Upsampling(size, size, frame or size)
            network = chosen[0][0]
            images = network.padded(images).contiguous(memory_format=self.memory_format)
            maps = network.native(images, None if names == self.anatomies else [head for _, head in chosen])
            if maps.is_cuda:
                maps = maps.clone()  # of a compiled network the next call reuses the memory
            return maps, Upsampling((images.shape[2], images.shape[3]), size, frame or size)

    def sequence(
        self, frames: Iterable[np.ndarray], smooth: float = 0, anatomies: Sequence[str] | None = None
    ) -> Iterator[Prediction]:
        """Segment consecutive frames, one after the other as they come.

        Args:
            frames: each as `__call__` takes it.
            smooth: 0 takes each frame for itself. Otherwise an exponential mean of the logits so far is thresholded, in which the
                newest frame has the weight 1 / (1 + smooth): what is shown lags `smooth` frames behind on average.
            anatomies: run only these heads, in this order.

        Returns:
            an iterator over the frames' predictions.
        """
        if not 0 <= smooth < math.inf:
            raise MtkdError(f"smooth = {smooth} is no number of frames to lag behind. Give 0 or more.")
        names = self._named(anatomies)
        thresholds, presence = self.limits(names)
        mean: Tensor | None = None
        for frame in frames:
            with torch.inference_mode():
                images = to_network(frame, self.size, self.device)
                maps, upsampling = self.maps(images, names, (frame.shape[0], frame.shape[1]))
                mean = maps[0].float() if mean is None or not smooth else mean.lerp(maps[0].float(), 1 / (1 + smooth))
            yield Prediction(names, mean, silenced(thresholds, mean, presence), upsampling)

    def description(self) -> dict[str, Any]:
        """What an evaluation records of the networks."""
        content = self.records[0].to_json() if self.records else {}
        if self.layout != "separate":
            own = {"kind": "student", **{key: content.get(key) for key in ("seed", "kd", "cache_fingerprint")}}
        else:
            own = {"kind": "teachers", "seed": content.get("seed"), "kd": False}
        return {**own, "layout": self.layout, "arch": self.arch, "weights_sha256": self.weights_sha256}
