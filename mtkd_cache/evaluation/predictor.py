"""Trained networks as one function of images: a student's, or those of a folder of teachers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, load_heads, load_network
from mtkd_cache.models.network import Network
from mtkd_cache.models.records import RUN, Training, read_training_records


@dataclass(frozen=True)
class Predictor:
    """Segments images: one logit map for each anatomy.

    Attributes:
        folder: where it was loaded from.
        device: where it computes.
        layout: "shared" for a student, one network with a head for each anatomy, or "separate" for teachers, a network each.
        heads: {anatomy: (network, number of its head)}.
        records: of the trainings, where they are recorded.
        weights_sha256: of the student's weights, or {anatomy: of its teacher's}.
    """

    folder: Path
    device: torch.device
    layout: str
    heads: dict[str, tuple[Network, int]]
    records: Sequence[Training]
    weights_sha256: str | dict[str, str]

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu", anatomies: Sequence[str] | None = None) -> "Predictor":
        """The student in a run folder, or the teachers in a teachers folder, in eval mode.

        Args:
            folder: a run folder (weights.safetensors) or a teachers folder (ANATOMY/weights.safetensors).
            device: where to compute.
            anatomies: a student must know just these, in this order; of the teachers only these are loaded. None takes all.

        Raises:
            MtkdError: the folder holds neither, a network is missing or damaged, or it knows other anatomies.
        """
        folder, device = Path(folder), torch.device(device)
        weights: str | dict[str, str]
        if (folder / WEIGHTS).exists() or (folder / RUN).exists():
            network, known = load_heads(folder, anatomies)
            heads = {anatomy: (network.to(device), head) for head, anatomy in enumerate(known)}
            layout, weights = "shared", file_sha256(folder / WEIGHTS)
        else:
            trained = [path.parent.name for path in sorted(folder.glob(f"*/{WEIGHTS}"))]
            if not trained:
                raise MtkdError(
                    f"{folder} holds neither a student's {WEIGHTS} nor teachers' ANATOMY/{WEIGHTS}. "
                    "Train first, or name another folder."
                )
            heads = {
                anatomy: (load_network(folder / anatomy, anatomies=[anatomy]).to(device), 0) for anatomy in anatomies or trained
            }
            layout, weights = "separate", {anatomy: file_sha256(folder / anatomy / WEIGHTS) for anatomy in heads}
        return cls(folder, device, layout, heads, read_training_records(folder), weights)

    @property
    def anatomies(self) -> tuple[str, ...]:
        """Of the maps, in order."""
        return tuple(self.heads)

    @property
    def arch(self) -> str:
        """The architecture, as `create_network` takes it."""
        return next(iter(self.heads.values()))[0].arch

    def __call__(self, images: Tensor, anatomies: Sequence[str] | None = None) -> Tensor:
        """Segment images.

        Args:
            images: float (B, 3, H, W), RGB in [0, 1], of any size.
            anatomies: run only these heads, in this order.

        Returns:
            logits float (B, A, H, W), on the device; positive where an anatomy is more likely than not.
        """
        chosen = [self.heads[anatomy] for anatomy in anatomies or self.heads]
        images = images.to(self.device)
        with torch.inference_mode():
            if self.layout == "shared":
                logits: Tensor = chosen[0][0](images, [head for _, head in chosen])
                return logits
            return torch.cat([network(images) for network, _ in chosen], dim=1)

    def description(self) -> dict[str, Any]:
        """What an evaluation records of the networks."""
        content = self.records[0].to_json() if self.records else {}
        if self.layout == "shared":
            own = {"kind": "student", **{key: content.get(key) for key in ("seed", "kd", "cache_fingerprint")}}
        else:
            own = {"kind": "teachers", "seed": content.get("seed"), "kd": False}
        return {**own, "layout": self.layout, "arch": self.arch, "weights_sha256": self.weights_sha256}
