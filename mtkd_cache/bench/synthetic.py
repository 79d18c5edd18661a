"""Synthetic data to measure on, made in seconds: a dataset of smooth images with camera noise, its store, a logit cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from mtkd_cache.bench.machine import Size
from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.dresden import ANATOMIES, Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.recipe import Recipe

NOISE = 2.0  # of 255, standard deviation of the camera noise
SPLIT = Split(validation=(2,), test=(3,), surgeries=None)


def write_dataset(folder: Path, size: Size, train: int) -> None:
    """A dataset with at least `train` training samples of the eleven anatomies; size: (width, height) of the images."""
    width, height = size
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    for anatomy in ANATOMIES:
        for surgery, count in ((1, -(-train // len(ANATOMIES))), (2, 1), (3, 1)):
            target = folder / anatomy / f"{surgery:02d}"
            target.mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(random.integers(0, 255, (8, 10, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
                noisy = np.asarray(coarse) + random.normal(0, NOISE, (height, width, 3))
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target / f"image{number:02d}.png", compress_level=1)
                center = random.uniform(0.3, 0.7, 2) * (height, width)
                mask = np.hypot(y - center[0], x - center[1]) < height * random.uniform(0.1, 0.3)
                Image.fromarray(mask.astype(np.uint8) * 255).save(target / f"mask{number:02d}.png")


def make_store(folder: Path, size: Size, train: int) -> SampleStore:
    """The sample store of such a dataset, at the size of its images."""
    write_dataset(folder / "dataset", size, train)
    ingest(folder / "dataset", str(folder / "samples.zarr"), size=size, split=SPLIT)
    return SampleStore.open(str(folder / "samples.zarr"))


class SmoothTeacher(nn.Module):
    """Stands in for a teacher: random native logits as smooth as a trained teacher's, one coarse slope and fine noise."""

    def __init__(self, stride: int, seed: int):
        super().__init__()
        self.stride = stride
        self.random = torch.Generator().manual_seed(seed)

    def native(self, images: Tensor) -> Tensor:
        grid = [side // self.stride for side in images.shape[2:]]
        coarse = 6 * torch.randn(len(images), 1, 5, 6, generator=self.random) - 6
        smooth = F.interpolate(coarse, grid, mode="bicubic", align_corners=True)
        return (smooth + 0.2 * torch.randn(smooth.shape, generator=self.random)).to(images.device)


def as_teachers(networks: Sequence[Any], store: SampleStore) -> Teachers:
    """Networks that need not be trained, in the place of a store's teachers."""
    return Teachers(networks, {anatomy: {"arch": "synthetic", "weights_sha256": ""} for anatomy in store.anatomies})


def make_cache(folder: Path, store: SampleStore, recipe: Recipe, stride: int, accelerator: Accelerator) -> LogitCache:
    """A cache of the store's training samples with maps at a stride."""
    teachers = as_teachers([SmoothTeacher(stride, seed) for seed in range(len(store.anatomies))], store)
    spec, url = CacheSpec.of(store, stride, recipe, accelerator.mixed_precision), str(folder / "logits.zarr")
    build_cache(store, teachers, spec, url, accelerator, temperature=recipe.distillation.temperature)
    return LogitCache.open(url)
