"""A synthetic dataset in the layout of the Dresden Surgical Anatomy Dataset, for the demo and the tests.

Its surgeries differ in light, camera and tissue colour, so that what is learnt on some must carry over to others; in
every image several anatomies are in sight, of which the subset's own is annotated. It says nothing about patients:
results on it are no evidence.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from mtkd_cache.dataset import MULTILABEL, REFERENCE_SURGERIES, REFERENCE_TEST, REFERENCE_VALIDATION
from mtkd_cache.errors import MtkdError
from mtkd_cache.phantom.scene import render, rng_for
from mtkd_cache.phantom.tissue import ANATOMIES

__all__ = ["ANATOMIES", "MULTILABEL_ANATOMIES", "render", "write_phantom"]

MULTILABEL_ANATOMIES = ("abdominal_wall", "colon", "liver", "pancreas", "small_intestine", "spleen", "stomach")
FREQUENCY = dict(zip(ANATOMIES, (1.0, 1.15, 0.85, 0.95, 1.0, 0.8, 1.1, 1.0, 1.2, 0.8, 0.7), strict=True))
RATERS = ("anno_1", "anno_2", "anno_3", "merged")
SMALLEST = 32
SURGERIES, IMAGES = 1001, 1002  # what a key of `rng_for` draws, told apart from the pictures' keys


def write_phantom(
    out: Path,
    *,
    size: tuple[int, int] = (320, 256),
    images_per_surgery: int = 4,
    seed: int = 0,
    surgeries: Sequence[int] | None = None,
    workers: int = 1,
) -> dict:
    """Write a synthetic dataset folder.

    Args:
        out: the folder, absent or empty.
        size: (width, height) of every image in pixels, at least 32 each.
        images_per_surgery: about how many images a surgery's folder of an anatomy holds: half of it to half as many
            again, times the anatomy's `FREQUENCY`.
        seed: the same seed gives the same pixels, whatever `workers` is and whichever surgeries are asked for.
        surgeries: write these for every anatomy. None takes 20 to 23 of the 32 for each anatomy, with some of training,
            validation and test among them.
        workers: processes that draw.

    Returns:
        {"images", "by_anatomy": {anatomy: images}, "surgeries": [number], "size": [width, height], "seed", "bytes"};
        the `multilabel` copies of the stomach images count in bytes alone.

    Raises:
        MtkdError: `out` is a file, is not empty or cannot be written, or a number is out of range.
    """
    chosen = _check(size, images_per_surgery, seed, surgeries, workers)
    _make_empty(out)
    folders = []
    for anatomy in ANATOMIES:
        numbers = _surgeries_of(seed, anatomy) if chosen is None else chosen
        folders += [_Folder(out, anatomy, n, images_per_surgery, seed, tuple(size), n == numbers[0]) for n in numbers]
    try:
        if workers == 1:
            written = [_write_folder(folder) for folder in folders]
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                written = list(pool.map(_write_folder, folders, chunksize=4))
    except OSError as error:
        raise MtkdError(
            f"{out} cannot be written ({error}). Free some space or name another folder, and delete this one."
        ) from error
    by_anatomy: Counter[str] = Counter()
    for folder, (images, _) in zip(folders, written, strict=True):
        by_anatomy[folder.anatomy] += images
    return {
        "images": by_anatomy.total(),
        "by_anatomy": dict(by_anatomy),
        "surgeries": sorted({folder.surgery for folder in folders}),
        "size": list(size),
        "seed": seed,
        "bytes": sum(size_on_disk for _, size_on_disk in written),
    }


@dataclass(frozen=True)
class _Folder:
    """One surgery's folder of one anatomy, as a worker is told of it."""

    out: Path
    anatomy: str
    surgery: int
    images_per_surgery: int
    seed: int
    size: tuple[int, int]
    raters: bool


def _check(
    size: tuple[int, int], images_per_surgery: int, seed: int, surgeries: Sequence[int] | None, workers: int
) -> list[int] | None:
    """The surgeries asked for, in order and once each; raises MtkdError where a number is out of range."""
    if len(size) != 2 or min(size) < SMALLEST:
        raise MtkdError(f"Image size {tuple(size)} is too small. Give {SMALLEST} pixels or more each way.")
    if images_per_surgery < 1 or workers < 1:
        raise MtkdError(f"images_per_surgery is {images_per_surgery}, workers {workers}. Give 1 or more of each.")
    if seed < 0:
        raise MtkdError(f"seed is {seed}. Give 0 or more.")
    if surgeries is None:
        return None
    if not surgeries or not set(surgeries) <= set(REFERENCE_SURGERIES):
        raise MtkdError(f"Surgeries {list(surgeries)}: name some of 1 to {max(REFERENCE_SURGERIES)}.")
    return sorted(set(surgeries))


def _make_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise MtkdError(f"{out} is a file. Name a folder for the synthetic dataset.")
    if out.exists() and any(out.iterdir()):
        raise MtkdError(f"{out} is not empty. Name another folder or delete it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtkdError(f"{out} cannot be made ({error.strerror}). Name another folder.") from error


def _surgeries_of(seed: int, anatomy: str) -> list[int]:
    """20 to 23 surgeries of an anatomy: 2 or 3 of validation, 5 or 6 of test, the rest of training."""
    rng = rng_for(seed, SURGERIES, ANATOMIES.index(anatomy))
    training = sorted(set(REFERENCE_SURGERIES) - set(REFERENCE_VALIDATION) - set(REFERENCE_TEST))
    total, validation, test = rng.integers(20, 24), rng.integers(2, 4), rng.integers(5, 7)
    parts = ((REFERENCE_VALIDATION, validation), (REFERENCE_TEST, test), (training, total - validation - test))
    return sorted(int(number) for part, count in parts for number in rng.choice(part, count, replace=False))


def _write_folder(folder: _Folder) -> tuple[int, int]:
    """Write a surgery's folder, and its multilabel copy for the stomach: (images, bytes)."""
    anatomy, surgery = folder.anatomy, folder.surgery
    spread = rng_for(folder.seed, IMAGES, surgery, ANATOMIES.index(anatomy)).uniform(0.5, 1.5)
    images = max(1, round(folder.images_per_surgery * FREQUENCY[anatomy] * spread))
    here = folder.out / anatomy / f"{surgery:02d}"
    here.mkdir(parents=True)
    multilabel = folder.out / MULTILABEL / f"{surgery:02d}" if anatomy == "stomach" else None
    if multilabel:
        multilabel.mkdir(parents=True)
    if folder.raters:
        for rater in RATERS:
            (here / rater).mkdir()
    size_on_disk = 0
    visible = []
    for index in range(images):
        image, masks = render(folder.seed, surgery, anatomy, index, folder.size)
        size_on_disk += _save(image, here / f"image{index:02d}.png")
        size_on_disk += _save(masks[anatomy], here / f"mask{index:02d}.png")
        visible.append([f"image{index:02d}.png", *(int(masks[name].any()) for name in ANATOMIES)])
        if multilabel:
            size_on_disk += _save(image, multilabel / f"image{index:02d}.png")
            size_on_disk += sum(_save(masks[name], multilabel / f"mask{index:02d}_{name}.png") for name in MULTILABEL_ANATOMIES)
        if folder.raters:
            for shift, rater in enumerate(RATERS, start=-1):
                size_on_disk += _save(np.roll(masks[anatomy], shift, axis=1), here / rater / f"mask{index:02d}.png")
    size_on_disk += _save_table(visible, here / "weak_labels.csv")
    return images, size_on_disk


def _save(pixels: np.ndarray, path: Path) -> int:
    """Write an RGB image, or a mask as 0 and 255; its bytes on disk."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    Image.fromarray(pixels).save(path, compress_level=1)
    return path.stat().st_size


def _save_table(rows: list[list], path: Path) -> int:
    """Write which anatomies are in sight in which image; its bytes on disk."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["image", *ANATOMIES], *rows])
    return path.stat().st_size
