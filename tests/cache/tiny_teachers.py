"""Teachers of a single layer, of several strides, for what does not depend on the networks."""

import torch
from torch import Tensor, nn

from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.sample_store import SampleStore

STRIDES = (4, 2, 8)  # of the anatomies in turn


class Tiny(nn.Module):
    """A network of one convolution; calls: the numbers of images it was run on."""

    def __init__(self, stride: int, seed: int, heads: int = 1):
        super().__init__()
        torch.manual_seed(seed)
        self.stride, self.heads = stride, heads
        self.layer = nn.Conv2d(3, heads, stride, stride)
        with torch.no_grad():
            self.layer.weight.mul_(20)
        self.calls: list[int] = []

    def native(self, images: Tensor, heads=None) -> Tensor:
        self.calls.append(len(images))
        logits = self.layer(images.contiguous())
        return logits if heads is None else logits[:, list(heads)]


def tiny_teachers(store: SampleStore, retrained: str = "", strides: tuple[int, ...] = STRIDES) -> Teachers:
    """One for each anatomy; retrained: the anatomy of one with other weights."""
    seeds = {anatomy: number + 100 * (anatomy == retrained) for number, anatomy in enumerate(store.anatomies)}
    networks = [Tiny(strides[number % len(strides)], seeds[anatomy]) for number, anatomy in enumerate(store.anatomies)]
    return Teachers(networks, {anatomy: {"arch": "tiny", "weights_sha256": f"{seed:064x}"} for anatomy, seed in seeds.items()})
