"""A picture of what is in a logit cache: samples beside the probability maps of every teacher, lowest Dice first."""

import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.augment import identity_views
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.records import TEACHER, read_operating_points, read_teacher
from mtkd_cache.storage.folder import write_durably
from mtkd_cache.training.metrics import image_dice, summarize

DICE_SAMPLES = 24  # samples of each anatomy from which its teacher's Dice is estimated
AT_HALF = " at 0.5"
CELL = 1.5  # inches of one image
OUTLINE, OWN = "#ffe45c", "#d62728"  # of a mask; of the map of a sample's own anatomy


def contact_sheet(cache: LogitCache, store: SampleStore, out: Path, samples: int = 6, teachers: Path | None = None) -> list[str]:
    """Write a PNG with a row for each sample: its image with the mask outlined, then every teacher's probabilities.

    Args:
        cache: what is drawn.
        store: the samples it was built from.
        out: the PNG file.
        samples: number of rows; the anatomies take turns, that of the teacher with the lowest Dice first.
        teachers: folder whose records hold the teachers' validation Dice, at their operating points where all have one. None: the
            Dice at probability 0.5 of their cached maps of samples of their own anatomy.

    Returns:
        The anatomies in the order of the columns, lowest Dice first.

    Raises:
        MtkdError: the cache is of another store, or a teacher's record is missing.
    """
    cache.check_belongs(store, np.array([], int))
    dice, judged = _validation_dice(cache, teachers) if teachers else (_cached_dice(cache, store), AT_HALF)
    order = sorted(cache.anatomies, key=lambda anatomy: dice[anatomy])
    rows = _pick(cache, store, order, samples)
    probabilities = torch.sigmoid(_logits(cache, store, rows))[:, [cache.anatomies.index(anatomy) for anatomy in order]].numpy()
    width, height = store.size
    figure = Figure(figsize=(CELL * (len(order) + 1), CELL * height / width * len(rows) + 0.6), dpi=100)
    axes = figure.subplots(len(rows), len(order) + 1, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for line, row, maps in zip(axes, rows, probabilities, strict=True):
        _draw_sample(line, store, row, maps, order)
    axes[0, 0].set_title("sample and mask", fontsize=7)
    for axis, anatomy in zip(axes[0, 1:], order, strict=True):
        axis.set_title(f"{anatomy.replace('_', ' ')}\nDice {100 * dice[anatomy]:.1f} %{judged}", fontsize=7, parse_math=False)
    bar = figure.colorbar(axes[0, 1].images[0], ax=axes, fraction=0.012, pad=0.008)
    bar.ax.tick_params(labelsize=6)
    bar.set_label("the teacher's probability; red frame: the sample's own anatomy", fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, buffer.getvalue())
    return order


def _draw_sample(axes: Sequence[Axes], store: SampleStore, row: int, maps: np.ndarray, order: Sequence[str]) -> None:
    """Draw a sample's image and its probability maps (A, H, W), those of the anatomies in their order."""
    images, masks = store.read(np.array([row]))
    axes[0].imshow(images[0])
    if masks.any() and not masks.all():
        axes[0].contour(masks[0], levels=[0.5], colors=OUTLINE, linewidths=1)
    axes[0].set_ylabel(store.describe(row).replace("/", "\n", 1), fontsize=6, parse_math=False)
    for axis, values, anatomy in zip(axes[1:], maps, order, strict=True):
        axis.imshow(values, vmin=0, vmax=1, cmap="viridis")
        if anatomy == store.anatomies[store.anatomy[row]]:
            for spine in axis.spines.values():
                spine.set(color=OWN, linewidth=2)
    for axis in axes:
        axis.set(xticks=[], yticks=[])


def _logits(cache: LogitCache, store: SampleStore, rows: np.ndarray) -> Tensor:
    """Cached logits (n, A, H, W) of samples, upsampled to their size."""
    maps = [dequantize(torch.from_numpy(integers), cache.step) for integers in cache.read_arrays(store.hashes[rows])]
    return cache.warp(maps, identity_views(len(rows)).affine, (store.size[1], store.size[0]))


def _own_rows(cache: LogitCache, store: SampleStore, anatomy: str) -> np.ndarray:
    """The cached samples of an anatomy, in a random order that is always the same."""
    cached = np.array([sha256 in cache.row_of for sha256 in store.hashes])
    rows = np.flatnonzero(cached & (store.anatomy == store.anatomies.index(anatomy)))
    return np.random.default_rng(0).permutation(rows)


def _pick(cache: LogitCache, store: SampleStore, order: Sequence[str], samples: int) -> np.ndarray:
    """Rows of samples, one of each anatomy in turn."""
    turns = zip_longest(*(_own_rows(cache, store, anatomy) for anatomy in order))
    picked = [row for turn in turns for row in turn if row is not None]
    if not picked:
        raise MtkdError(f"{cache.url} holds no sample of {store.url}. Name the store it was built from.")
    return np.array(picked[:samples])


def _cached_dice(cache: LogitCache, store: SampleStore) -> dict[str, float]:
    """Mean Dice at probability 0.5 of each teacher's cached maps on samples of its own anatomy; 0 without such a sample."""
    dice = (
        (anatomy, image_dice(_logits(cache, store, row)[:, index] > 0, torch.from_numpy(store.read(row)[1]) > 0).tolist())
        for index, anatomy in enumerate(cache.anatomies)
        for row in _own_rows(cache, store, anatomy)[:DICE_SAMPLES, None]
    )
    means = summarize(dice)["dice"]
    return {anatomy: means.get(anatomy) or 0.0 for anatomy in cache.anatomies}


def _validation_dice(cache: LogitCache, teachers: Path) -> tuple[dict[str, float], str]:
    """Each teacher's validation Dice, and how it was judged."""
    records = {anatomy: read_teacher(teachers / anatomy) for anatomy in cache.anatomies}
    if absent := [anatomy for anatomy, record in records.items() if record is None]:
        raise MtkdError(f"{teachers} has no {TEACHER} of {', '.join(absent)}. Name the folder of the trained teachers.")
    known = {anatomy: record for anatomy, record in records.items() if record}
    files = {anatomy: read_operating_points(teachers / anatomy, record.weights_sha256 or "") for anatomy, record in known.items()}
    points = {anatomy: file.points[anatomy].dice for anatomy, file in files.items() if file}
    at_points = {anatomy: dice for anatomy, dice in points.items() if dice is not None}
    if at_points.keys() == known.keys():
        return at_points, ""
    return {anatomy: record.val_dice for anatomy, record in known.items()}, AT_HALF
