"""A teacher of your own, one network of two anatomies, whose weights are in two_organs.pt (torch.save of its state_dict):
PYTHONPATH=docs/examples mtkd-cache build --teacher own_teacher:two_organs"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn


class TwoOrgans(nn.Module):
    """Any network whose logits have a channel for each anatomy that it answers for."""

    anatomies = ("liver", "stomach")  # of the channels, in order; the store's names
    stride = 4  # pixels of the image for each logit, along each axis

    def __init__(self, weights: Path):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU(), nn.Conv2d(16, 2, 1))
        self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.fingerprint = hashlib.sha256(weights.read_bytes()).hexdigest()  # another one: its maps are computed again

    def logits(self, images: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [0, 1] -> logits (B, 2, H // 4, W // 4), before the sigmoid."""
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in ((0.5, 0.4, 0.4), (0.2, 0.2, 0.2)))
        return self.network((images - mean) / std)


def two_organs() -> TwoOrgans:
    return TwoOrgans(Path("two_organs.pt"))
