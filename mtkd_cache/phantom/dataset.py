"""A synthetic dataset in the layout of the Dresden Surgical Anatomy Dataset, for the demo and the tests.

Surgeries differ in light, camera and tissue color, so that a network must generalize from some to others. Every image shows
several anatomies, of which only the one of its subset is annotated. Results on it say nothing about real surgery.
"""

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtkd_cache.data.dresden import ANATOMIES, MULTILABEL, REFERENCE_SURGERIES, REFERENCE_TEST, REFERENCE_VALIDATION
from mtkd_cache.errors import MtkdError
from mtkd_cache.phantom.scene import render, rng_for
from mtkd_cache.phantom.shapes import Array
from mtkd_cache.runtime.processes import run_in_processes
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.storage.record import differences

NUMBERS = 10_000  # multilabel images of a surgery that are numbered for each anatomy, where all subsets have some
MULTILABEL_ANATOMIES = ("abdominal_wall", "colon", "liver", "pancreas", "small_intestine", "spleen", "stomach")
FREQUENCY = dict(zip(ANATOMIES, (1.0, 1.15, 0.85, 0.95, 1.0, 0.8, 1.1, 1.0, 1.2, 0.8, 0.7), strict=True))
RATERS = ("anno_1", "anno_2", "anno_3", "merged")
SMALLEST = 32
SETTINGS, UNFINISHED = ".phantom.json", ".unfinished"  # in the dataset's folder
WEAK_LABELS = "weak_labels.csv"  # the last file of a surgery's folder
SURGERIES, IMAGES = 1001, 1002  # second number of the `rng_for` keys that draw no image; above any surgery's number


def write_phantom(
    out: Path,
    *,
    size: tuple[int, int] = (320, 256),
    images_per_surgery: int = 4,
    seed: int = 0,
    surgeries: Sequence[int] | None = None,
    workers: int = 1,
    all_multilabel: bool = False,
) -> dict[str, Any]:
    """Write a synthetic dataset folder, or resume an interrupted call with the same settings.

    Args:
        out: the folder: absent, empty or written by a call with the same settings.
        size: (width, height) of every image in pixels, at least 32 each.
        images_per_surgery: the approximate number of images in a surgery's folder of an anatomy: 0.5 to 1.5 times it, times
            the anatomy's `FREQUENCY`.
        seed: the same seed gives the same pixels, whatever `workers` and `surgeries` are.
        surgeries: write these for every anatomy. None takes 20 to 23 of the 32 for each anatomy, with some of training,
            validation and test among them.
        workers: processes that draw.
        all_multilabel: the multilabel subset has the images of all anatomies, with all their masks: number `NUMBERS` * n + i is
            image i of anatomy n. False: those of the stomach with the masks of `MULTILABEL_ANATOMIES`, as in the Dresden set.

    Returns:
        {"images", "by_anatomy": {anatomy: images}, "surgeries": [number], "size": [width, height], "seed", "bytes"};
        the copies in `multilabel` count in bytes alone.

    Raises:
        MtkdError: `out` is a file, holds something else, is being written by another process or cannot be written, or a number
            is out of range.
    """
    _check(size, images_per_surgery, seed, surgeries, workers)
    chosen = None if surgeries is None else sorted(set(surgeries))
    numbers = {anatomy: chosen or _surgeries_of(seed, anatomy) for anatomy in ANATOMIES}
    folders = [(anatomy, surgery, surgery == numbers[anatomy][0]) for anatomy in ANATOMIES for surgery in numbers[anatomy]]
    settings = {"size": list(size), "images_per_surgery": images_per_surgery, "seed": seed, "surgeries": chosen}
    settings |= {"all_multilabel": True} if all_multilabel else {}
    _check_folder(out, settings)
    try:
        with locked(Folder(out)):
            Folder(out).write(SETTINGS, json.dumps(settings).encode())
            write = partial(_write_folder, out, images_per_surgery, seed, size, all_multilabel)
            written = list(run_in_processes(write, folders, workers))
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    except OSError as error:
        raise MtkdError(f"{out} cannot be written ({error}). Free some space and run the same command again.") from error
    by_anatomy: Counter[str] = Counter()
    for (anatomy, *_), (images, _) in zip(folders, written, strict=True):
        by_anatomy[anatomy] += images
    return {
        "images": by_anatomy.total(),
        "by_anatomy": dict(by_anatomy),
        "surgeries": sorted(set().union(*numbers.values())),
        "size": list(size),
        "seed": seed,
        "bytes": sum(size_on_disk for _, size_on_disk in written),
    }


def _check(size: tuple[int, int], images_per_surgery: int, seed: int, surgeries: Sequence[int] | None, workers: int) -> None:
    if min(size) < SMALLEST:
        raise MtkdError(f"Image size {tuple(size)} is too small. Give {SMALLEST} pixels or more each way.")
    if images_per_surgery < 1 or workers < 1:
        raise MtkdError(f"images_per_surgery is {images_per_surgery}, workers {workers}. Give 1 or more of each.")
    if seed < 0:
        raise MtkdError(f"seed is {seed}. Give 0 or more.")
    if surgeries is not None and not (surgeries and set(surgeries) <= set(REFERENCE_SURGERIES)):
        raise MtkdError(f"Surgeries {list(surgeries)}: name some of 1 to {max(REFERENCE_SURGERIES)}.")


def _check_folder(out: Path, settings: dict[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise MtkdError(f"{out} is a file. Name a folder for the synthetic dataset.")
    if (out / SETTINGS).exists():
        earlier = json.loads((out / SETTINGS).read_bytes())
        if earlier != settings:
            told = ", ".join(differences(earlier, settings))
            raise MtkdError(f"{out} was started with other settings: {told}. Name another folder or delete it.")
    elif any(Folder(out).keys()):
        raise MtkdError(f"{out} is not empty. Name another folder or delete it.")


def _surgeries_of(seed: int, anatomy: str) -> list[int]:
    """20 to 23 surgeries of an anatomy: 2 or 3 for validation, 5 or 6 for test, the others for training."""
    rng = rng_for(seed, SURGERIES, ANATOMIES.index(anatomy))
    training = sorted(set(REFERENCE_SURGERIES) - set(REFERENCE_VALIDATION) - set(REFERENCE_TEST))
    total, validation, test = rng.integers(20, 24), rng.integers(2, 4), rng.integers(5, 7)
    parts = ((REFERENCE_VALIDATION, validation), (REFERENCE_TEST, test), (training, total - validation - test))
    return sorted(int(number) for part, count in parts for number in rng.choice(part, count, replace=False))


def _write_folder(
    out: Path, images_per_surgery: int, seed: int, size: tuple[int, int], all_multilabel: bool, folder: tuple[str, int, bool]
) -> tuple[int, int]:
    """Write a surgery's folder of an anatomy unless it is complete, with its multilabel copy where it has one: (images, bytes).

    folder: the anatomy, the surgery, and whether the masks of several raters are written too.
    """
    anatomy, surgery, with_raters = folder
    target, multilabel = (out / top / f"{surgery:02d}" for top in (anatomy, MULTILABEL))
    copied = ANATOMIES if all_multilabel else MULTILABEL_ANATOMIES if anatomy == "stomach" else ()
    first = NUMBERS * ANATOMIES.index(anatomy) if all_multilabel else 0
    if not (target / WEAK_LABELS).exists():
        unfinished = out / UNFINISHED / f"{anatomy}-{surgery:02d}-{os.getpid()}"
        spread = rng_for(seed, IMAGES, surgery, ANATOMIES.index(anatomy)).uniform(0.5, 1.5)
        images = max(1, round(images_per_surgery * FREQUENCY[anatomy] * spread))
        scenes = (render(seed, surgery, anatomy, index, size) for index in range(images))
        _draw_folder(scenes, anatomy, with_raters, unfinished / anatomy, unfinished / MULTILABEL, copied, first)
        for path in (unfinished / MULTILABEL).glob("*"):  # first, so that an existing `target` means that both are complete
            multilabel.mkdir(parents=True, exist_ok=True)
            path.replace(multilabel / path.name)
        _move(unfinished / anatomy, target)
    images = len(list(target.glob("image*.png")))
    copies = [path for n in range(first, first + images if copied else 0) for path in _multilabel_files(multilabel, n, copied)]
    return images, sum(path.stat().st_size for path in (*target.rglob("*.*"), *copies))


def _multilabel_files(folder: Path, number: int, anatomies: Sequence[str]) -> list[Path]:
    """The image of a number, and its masks."""
    return [folder / f"image{number:02d}.png", *(folder / f"mask{number:02d}_{anatomy}.png" for anatomy in anatomies)]


def _move(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


def _draw_folder(
    scenes: Iterable[tuple[Array, dict[str, Array]]],
    anatomy: str,
    with_raters: bool,
    target: Path,
    multilabel: Path,
    copied: Sequence[str],
    first: int,
) -> None:
    """Draw a surgery's folder, and its multilabel copy with the masks of `copied` anatomies, if any, numbered from `first`."""
    raters = RATERS if with_raters else ()
    for path in (target, multilabel, *(target / rater for rater in raters)):
        path.mkdir(parents=True, exist_ok=True)
    visible = []
    for index, (image, masks) in enumerate(scenes):
        name, mask = f"image{index:02d}.png", f"mask{index:02d}"
        save(image, target / name)
        save(masks[anatomy], target / f"{mask}.png")
        visible.append([name, *(int(masks[other].any()) for other in ANATOMIES)])
        if copied:
            copies = _multilabel_files(multilabel, first + index, copied)
            for pixels, path in zip((image, *(masks[other] for other in copied)), copies, strict=True):
                save(pixels, path)
        for shift, rater in enumerate(raters, start=-1):
            save(np.roll(masks[anatomy], shift, axis=1), target / rater / f"{mask}.png")
    with (target / WEAK_LABELS).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["image", *ANATOMIES], *visible])


def save(pixels: np.ndarray, path: Path) -> None:
    """Write an RGB image, or a mask as 0 and 255."""
    Image.fromarray(pixels * np.uint8(255) if pixels.dtype == bool else pixels).save(path, compress_level=1)
