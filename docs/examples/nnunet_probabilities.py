"""A logit cache from what nnU-Net v2 says: its ensemble becomes the teacher of a small student.

python docs/examples/nnunet_probabilities.py images data/samples.zarr nnunet/images
nnUNetv2_predict -d 42 -c 2d -f 0 1 2 3 4 -i nnunet/images -o nnunet/predictions --save_probabilities
python docs/examples/nnunet_probabilities.py cache data/samples.zarr nnunet/predictions data/nnunet.zarr \\
    --source "nnU-Net 2.5 2d, five folds, of the training split" --license "CC BY 4.0"
mtkd-cache train-student --store data/samples.zarr --cache data/nnunet.zarr

Read of each case: CASE.npz, `probabilities` (channels, 1, height, width) or (channels, height, width), and dataset.json, which
nnUNetv2_predict writes beside them. CASE.pkl, which it also writes, is never opened: unpickling runs whatever the file says.
Written for that layout (nnunetv2/inference/export_prediction.py and utilities/label_handling of MIC-DKFZ/nnUNet) and tested on
files made in it; not run with nnU-Net itself.
"""

import argparse
import json
import zipfile
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import mtkd_cache as mc

EPSILON = 1e-6  # probabilities are clipped to EPSILON and 1 - EPSILON: logits of -13.8 and 13.8


def write_images(store_url: str, out: Path, splits: tuple[str, ...] = ("train",)) -> int:
    """Write the samples' images as nnU-Net's cases, OUT/CASE_0000.png, and return their number."""
    store = mc.SampleStore.open(store_url)
    rows = np.concatenate([store.rows(split) for split in splits])
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.fromarray(store.read(np.array([row]))[0][0]).save(out / f"{case_of(store, row)}_0000.png")
    return len(rows)


def case_of(store: mc.SampleStore, row: int) -> str:
    """The name of a sample's case, as liver-03-image12. Change it where your cases have other names."""
    return store.describe(int(row)).replace("/", "-")


def write_cache(
    store_url: str,
    predictions: Path,
    cache_url: str,
    *,
    source: str,
    license: str,
    stride: int = 1,
    splits: tuple[str, ...] = ("train",),
    epsilon: float = EPSILON,
) -> dict[str, int]:
    """Write a cache of nnU-Net's probabilities as logits; one that is not finished is resumed.

    Args:
        store_url: the sample store, whose anatomies are names in nnU-Net's `labels`.
        predictions: folder that nnUNetv2_predict wrote.
        cache_url: the cache.
        source, license: see `mtkd_cache.CacheWriter`; the clipping is added to the source.
        stride: of the cache's logits, 1 for all that nnU-Net gives. Other sizes are resampled bilinearly, corners aligned.
        splits: whose samples the cache holds.
        epsilon: where probabilities are clipped.

    Returns:
        maps: written now; zeros, ones: their pixels with a probability of exactly 0 or 1; near: other pixels that were clipped.

    Raises:
        MtkdError: a case or label is missing, or a case does not hold probabilities of these labels.
    """
    store, counts = mc.SampleStore.open(store_url), Counter({"maps": 0, "zeros": 0, "ones": 0, "near": 0})
    channels, softmax = read_channels(predictions / "dataset.json", store.anatomies)
    size = (store.size[1] // stride, store.size[0] // stride)
    source = f"{source}; probabilities p as log(p) - log(1 - p), clipped at {epsilon:g}"
    with mc.CacheWriter(cache_url, store, source=source, license=license, stride=stride, splits=splits) as writer:
        for row, maps in groupby(writer.missing(), key=lambda each: each[0]):
            path = predictions / f"{case_of(store, row)}.npz"
            probabilities = read_probabilities(path, len(channels), softmax, wide=store.size[0] >= store.size[1])
            for _, anatomy, view in maps:
                logits = to_logits(probabilities[channels[anatomy]], epsilon, counts)
                writer.add(row, anatomy, resample(logits, size), view)
                counts["maps"] += 1
    return dict(counts)


def read_channels(path: Path, anatomies: tuple[str, ...]) -> tuple[dict[str, int], bool]:
    """By name the channel of each label or region, and whether the channels are a softmax (else sigmoids, of regions).

    nnU-Net's channels are all labels in ascending order, the background first; in region-based training, where a label is a list
    of several values, the regions in the order of the file, without the background.
    """
    try:
        labels: dict[str, Any] = {
            name: value for name, value in json.loads(path.read_bytes())["labels"].items() if name != "ignore"
        }
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise mc.MtkdError(
            f"{path} cannot be read as nnU-Net's ({error!r}). Name the folder that nnUNetv2_predict wrote."
        ) from error
    softmax = not any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    if softmax:
        value_of = {name: value[0] if isinstance(value, list) else value for name, value in labels.items()}
        channels = {name: channel for channel, name in enumerate(sorted(value_of, key=lambda name: int(value_of[name])))}
    else:
        channels = {name: channel for channel, name in enumerate(name for name, value in labels.items() if value not in (0, [0]))}
    if absent := [anatomy for anatomy in anatomies if anatomy not in channels]:
        raise mc.MtkdError(
            f"{path} has no label {', '.join(absent)} but {', '.join(channels)}. Name its labels as the anatomies."
        )
    return channels, softmax


def read_probabilities(path: Path, channels: int, softmax: bool, wide: bool) -> np.ndarray:
    """The probabilities of a case, float (channels, height, width). wide: the images are at least as wide as high."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values: np.ndarray = file["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise mc.MtkdError(
            f"{path} has no readable probabilities ({error!r}). Run nnUNetv2_predict --save_probabilities."
        ) from error
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3 or values.shape[0] != channels or not np.issubdtype(values.dtype, np.floating):
        raise mc.MtkdError(f"{path}: {values.dtype} {values.shape}, not probabilities of {channels} channels of a 2-D image.")
    if not (values.min() >= 0 and values.max() <= 1 + 1e-3):  # also where one is NaN; half precision rounds above 1
        raise mc.MtkdError(f"{path}: values from {values.min():g} to {values.max():g} are no probabilities.")
    if softmax and np.abs(values.sum(0, dtype=np.float64) - 1).max() > 0.02:
        raise mc.MtkdError(f"{path}: the channels do not add up to 1, as dataset.json, which names no regions, would have it.")
    if (values.shape[2] >= values.shape[1]) != wide:
        raise mc.MtkdError(f"{path}: {values.shape[2]}x{values.shape[1]}, but the store's images are turned the other way.")
    return values


def to_logits(probabilities: np.ndarray, epsilon: float, counts: Counter[str]) -> np.ndarray:
    """log(p) - log(1 - p) of probabilities clipped to [epsilon, 1 - epsilon], float64 of the same shape; counts what it clips."""
    exact = probabilities.astype(np.float64)
    zeros, ones = exact == 0, exact >= 1
    clipped = exact.clip(epsilon, 1 - epsilon)
    counts.update(zeros=int(zeros.sum()), ones=int(ones.sum()), near=int(((clipped != exact) & ~zeros & ~ones).sum()))
    return np.log(clipped) - np.log1p(-clipped)


def resample(logits: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Logits (height, width) on another grid, unchanged on the same."""
    values = torch.from_numpy(logits)
    return values if logits.shape == size else F.interpolate(values[None, None], size, mode="bilinear", align_corners=True)[0, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images", help="write the samples' images as nnU-Net's cases")
    images.add_argument("store")
    images.add_argument("out", type=Path)
    cache = commands.add_parser("cache", help="write nnU-Net's probabilities as a logit cache")
    for name, kind in (("store", str), ("predictions", Path), ("cache", str)):
        cache.add_argument(name, type=kind)
    cache.add_argument("--source", required=True, help="who computed the logits, for people")
    cache.add_argument("--license", required=True, help="of the logits")
    cache.add_argument("--stride", type=int, default=1)
    options = parser.parse_args()
    try:
        if options.command == "images":
            print(f"{write_images(options.store, options.out)} images")
        else:
            stated = {"source": options.source, "license": options.license, "stride": options.stride}
            print(write_cache(options.store, options.predictions, options.cache, **stated))
    except mc.MtkdError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
