"""A sample store and a logit cache to measure on, made in seconds: smooth pictures with a camera's grain, smooth logits."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from mtkd_cache.cache.build import update
from mtkd_cache.cache.builder import BATCH
from mtkd_cache.cache.layout import cache_settings
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.dresden import ANATOMIES, Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.recipe import Recipe
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked

GRAIN = 2.0  # of 255, the standard deviation from pixel to pixel


SPLIT = Split(validation=(2,), test=(3,), surgeries=None)


def write_dataset(folder: Path, size: tuple[int, int], train: int) -> None:
    """A dataset with at least `train` training samples of the eleven anatomies, pictures of size = (width, height)."""
    width, height = size
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    each = -(-train // len(ANATOMIES))
    for anatomy in ANATOMIES:
        for surgery, count in ((1, each), (2, 1), (3, 1)):
            place = folder / anatomy / f"{surgery:02d}"
            place.mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(random.integers(0, 255, (8, 10, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
                grainy = np.asarray(coarse) + random.normal(0, GRAIN, (height, width, 3))
                Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(place / f"image{number:02d}.png", compress_level=1)
                centre = random.uniform(0.3, 0.7, 2) * (height, width)
                mask = np.hypot(y - centre[0], x - centre[1]) < height * random.uniform(0.1, 0.3)
                Image.fromarray(mask.astype(np.uint8) * 255).save(place / f"mask{number:02d}.png")


def make_store(folder: Path, size: tuple[int, int], train: int) -> SampleStore:
    """The sample store of such a dataset, at the pictures' own size."""
    write_dataset(folder / "dataset", size, train)
    ingest(folder / "dataset", str(folder / "samples.zarr"), size=size, split=SPLIT)
    return SampleStore.open(str(folder / "samples.zarr"))


class SmoothTeacher(nn.Module):
    """In a teacher's place: native logits that vary as a trained teacher's do, with one wide slope and some fine unrest."""

    def __init__(self, stride: int, seed: int):
        super().__init__()
        self.stride = stride
        self.random = torch.Generator().manual_seed(seed)

    def native(self, images: Tensor) -> Tensor:
        grid = [side // self.stride for side in images.shape[2:]]
        coarse = 6 * torch.randn(len(images), 1, 5, 6, generator=self.random) - 6
        smooth = F.interpolate(coarse, grid, mode="bicubic", align_corners=True)
        return (smooth + 0.2 * torch.randn(smooth.shape, generator=self.random)).to(images.device)


def make_cache(folder: Path, store: SampleStore, recipe: Recipe, stride: int, accelerator: Accelerator) -> LogitCache:
    """A finished cache of the store's training samples with maps at a stride, written by the code that builds real ones."""
    smooth = [SmoothTeacher(stride, seed) for seed in range(len(store.anatomies))]
    write_cache(folder / "logits.zarr", store, smooth, recipe, accelerator)
    return LogitCache.open(str(folder / "logits.zarr"))


def write_cache(
    target: Path,
    store: SampleStore,
    networks: list,
    recipe: Recipe,
    accelerator: Accelerator,
    batch: int = BATCH,
    compiled: bool = False,
) -> None:
    """What `mtkd-cache build` does, with networks that need not be trained."""
    teachers = Teachers(networks, {anatomy: {"arch": "synthetic", "weights_sha256": ""} for anatomy in store.anatomies})
    settings = cache_settings(store, teachers, recipe, accelerator.mixed_precision)
    folder = Folder(target)
    with locked(folder):
        wanted = [str(sha256) for sha256 in store.hashes[store.rows("train")]]
        update(folder, store, teachers, settings, recipe.distillation.temperature, wanted, accelerator, batch, compiled)
