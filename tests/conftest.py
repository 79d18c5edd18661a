"""What the tests share: tiny datasets, their sample stores, untrained teachers, a built cache. Nothing here is written twice."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import build

from mtkd_cache.bench.build import spread_out
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.dresden import Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.checkpoints import WEIGHTS, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.phantom.dataset import write_phantom
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runtime.accelerator import make_accelerator

SIZE = (64, 64)
ORGANS = ("kidney", "tongue")
ORGAN_SPLIT = Split(validation=(40,), test=(50,), surgeries=None)
TINY = (
    "teacher.arch=mininetv2",
    "teacher.weights=none",
    "teacher.epochs=2",
    "teacher.batch=4",
    "student.weights=none",
    "student.epochs=2",
    "student.batch=4",
)


@pytest.fixture(scope="session", autouse=True)
def _frozen_imports() -> None:
    """Garbage collection, which every training asks for at its end, passes over what was imported: it took half of some tests."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Trainings draw no curves.png, which takes longer than training does here; tests/training/test_history.py draws one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtkd_cache.training.run_folder.draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def small_shards(request) -> Iterator[None]:
    """Shard files of as many samples as the test module's BLOCK says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtkd_cache.cache.layout.BLOCK", request.module.BLOCK)
        yield


@pytest.fixture(scope="session")
def accelerator():
    return make_accelerator("cpu")


@pytest.fixture(scope="session")
def recipe():
    """The paper's recipe, shortened: recipe("student.epochs=3") overrides some of it."""
    return lambda *overrides: load_recipe("paper", (*TINY, *overrides))


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory) -> Path:
    """All eleven anatomies, a surgery for each part of the reference split. Read only."""
    root = tmp_path_factory.mktemp("phantom") / "phantom"
    write_phantom(root, size=SIZE, images_per_surgery=1, surgeries=(1, 3, 2))
    return root


@pytest.fixture(scope="session")
def phantom_store(phantom_folder, tmp_path_factory) -> SampleStore:
    url = str(tmp_path_factory.mktemp("phantom_store") / "samples.zarr")
    ingest(phantom_folder, url, size=SIZE)
    return SampleStore.open(url)


def _write_organs(
    root: Path, images: int = 3, size: tuple[int, int] = SIZE, surgeries: tuple[int, ...] = (30, 31, 40, 50)
) -> Path:
    """Two organs that are not of the Dresden set: a disc to be found, in pictures that are told apart by their noise."""
    random = np.random.default_rng(0)
    width, height = size
    y, x = np.mgrid[:height, :width]
    for organ in ORGANS:
        for surgery in surgeries:
            folder = root / organ / f"{surgery:02d}"
            folder.mkdir(parents=True)
            for number in range(images):
                centre = random.uniform(0.3, 0.7, 2) * (height, width)
                mask = np.hypot(y - centre[0], x - centre[1]) < height / 5
                picture = random.integers(0, 90, (height, width, 3)) + 120 * mask[..., None] * (1, organ == "kidney", 0)
                Image.fromarray(picture.astype(np.uint8)).save(folder / f"image{number:02d}.png")
                Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"mask{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def write_organs():
    """write_organs(root, images=3, size=SIZE, surgeries=(30, 31, 40, 50)) writes a dataset of two organs and returns its root."""
    return _write_organs


@pytest.fixture(scope="session")
def organ_folder(tmp_path_factory) -> Path:
    """24 samples of two organs. Read only; copy it to break it."""
    return _write_organs(tmp_path_factory.mktemp("organs") / "organs")


@pytest.fixture(scope="session")
def organ_store(organ_folder, tmp_path_factory) -> SampleStore:
    """The two organs' sample store: 6 samples of each for training, 3 for validation, 3 for test. Read only."""
    url = str(tmp_path_factory.mktemp("organ_store") / "samples.zarr")
    ingest(organ_folder, url, size=SIZE, split=ORGAN_SPLIT)
    return SampleStore.open(url)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> SampleStore:
    """The two organs at 32x32, for caches that are built, damaged or killed many times. Read only."""
    root = tmp_path_factory.mktemp("store")
    ingest(_write_organs(root / "organs", size=(32, 32)), str(root / "samples.zarr"), size=(32, 32), split=ORGAN_SPLIT)
    return SampleStore.open(str(root / "samples.zarr"))


@pytest.fixture(scope="session")
def organ_split() -> Split:
    return ORGAN_SPLIT


def _untrained_teacher(folder: Path, anatomy: str, arch: str = "mininetv2", seed: int = 0) -> None:
    torch.manual_seed(seed)
    network = spread_out(create_network(arch, 1))
    save_network(folder / anatomy / WEIGHTS, network, [anatomy])


@pytest.fixture(scope="session")
def untrained_teacher():
    """untrained_teacher(folder, anatomy, arch, seed) writes random weights whose logits spread over some +-10."""
    return _untrained_teacher


@pytest.fixture(scope="session")
def organ_teachers(tmp_path_factory) -> Path:
    """Untrained teachers of the two organs, stride 2. Read only."""
    folder = tmp_path_factory.mktemp("organ_teachers")
    for seed, organ in enumerate(ORGANS):
        _untrained_teacher(folder, organ, seed=seed)
    return folder


@pytest.fixture(scope="session")
def organ_cache(organ_store, organ_teachers, recipe, accelerator, tmp_path_factory) -> LogitCache:
    """The cache of the two organs' training samples. Read only."""
    url = str(tmp_path_factory.mktemp("organ_cache") / "logits.zarr")
    build(organ_store, organ_teachers, url, recipe(), accelerator)
    return LogitCache.open(url)


@pytest.fixture
def copy_of(tmp_path):
    """copy_of(folder) copies a folder to where a test may change it."""

    def copy(folder: Path | str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copies" / str(len(list(tmp_path.glob("copies/*")))) / Path(folder).name))

    return copy
