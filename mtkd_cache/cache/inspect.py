"""What is in a logit cache: figures, and a contact sheet to look at."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mtkd_cache.cache.layout import PLAN, CacheManifest, CachePlan, ShardRecord
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.network import upsample
from mtkd_cache.models.records import TEACHER, read_teacher
from mtkd_cache.storage.checked_json import MANIFEST, if_intact, read_record
from mtkd_cache.storage.folder import Folder, write_durably

JUDGED = 24  # samples an anatomy from which a teacher's Dice is estimated
CELL = 1.5  # inches of one picture of the contact sheet


def inspect_cache(url: str) -> dict[str, Any]:
    """The manifest of a cache with the sizes of its files in place of their list; of an unfinished one, its progress.

    progress: shard files written, of how many; maps: how many maps each teacher has there, by the SHA-256 of its weights.
    Raises MtkdError where there is no cache, and where its manifest or plan is damaged.
    """
    folder = Folder(url)
    plan = read_record(folder, PLAN, CachePlan)
    manifest = read_record(folder, MANIFEST, CacheManifest)
    if plan is None:
        raise MtkdError(f"{url} is no logit cache. Run mtkd-cache build --cache {url}.")
    tasks = plan.shard_tasks
    records = [record for task in tasks if (record := if_intact(read_record, folder, task.record_key, ShardRecord))]
    sizes = {record.key: record.bytes for record in records}
    content = {"settings": plan.settings.to_json(), "temperature": plan.temperature}
    if manifest:
        sizes = {key: entry["bytes"] for key, entry in manifest.files.items()}
        content = {key: value for key, value in manifest.to_json().items() if key != "files"}
    total = sum(sizes.values())
    return {
        **content,
        "cache": url,
        "finished": manifest is not None,
        "samples": len(plan.samples),
        "files": len(sizes),
        "bytes": total,
        "bytes_by": _bytes_by(sizes),
        "bytes_per_sample": total / max(len(plan.samples), 1) if manifest else None,
        "progress": {"done": len(records), "of": len(tasks), "maps": _maps_by_teacher(plan, records)},
    }


def _bytes_by(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of files, by key, added up by what the files are."""
    parts = {"logits/c/": "logits", "records/": "records"}
    totals: Counter[str] = Counter()
    for key, size in sizes.items():
        totals[next((part for start, part in parts.items() if key.startswith(start)), "metadata")] += size
    return dict(totals)


def _maps_by_teacher(plan: CachePlan, records: Iterable[ShardRecord]) -> dict[str, dict[str, int]]:
    """By anatomy and the SHA-256 of a teacher's weights, how many maps the teacher has in these shards."""
    maps: dict[str, Counter[str]] = {anatomy: Counter() for anatomy in plan.settings.anatomies}
    for record in records:
        for anatomy, info in record.teachers.items():
            maps[anatomy][info["weights_sha256"]] += len(record.rows)
    return {anatomy: dict(counts) for anatomy, counts in maps.items()}


def contact_sheet(cache: LogitCache, store: SampleStore, out: Path, samples: int = 6, teachers: Path | None = None) -> list[str]:
    """Write a PNG: a row a sample, its picture with its mask outlined, then every teacher's probabilities, worst teacher first.

    The rows are samples of the anatomies in the same order, worst first. teachers: a folder whose records tell each teacher's
    validation Dice; without it its cached maps of samples of its own anatomy do. Returns the anatomies in order.
    """
    cache.check_belongs(store, np.array([], int))
    dice = _validation_dice(cache, teachers) if teachers else _cached_dice(cache, store)
    order = sorted(cache.anatomies, key=lambda anatomy: dice[anatomy])
    rows = _pick(cache, store, order, samples)
    images, masks = store.read(rows)
    width, height = store.size
    maps = torch.sigmoid(_maps(cache, store, rows))
    figure = Figure(figsize=(CELL * (len(order) + 1), CELL * height / width * len(rows) + 0.6), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(order) + 1, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    shown = None
    for line, row in enumerate(rows):
        own = store.anatomies[store.anatomy[row]]
        axes[line, 0].imshow(images[line])
        if masks[line].any() and not masks[line].all():
            axes[line, 0].contour(masks[line], levels=[0.5], colors="#ffe45c", linewidths=1)
        axes[line, 0].set_ylabel(store.describe(row).replace("/", "\n", 1), fontsize=6, parse_math=False)
        for column, anatomy in enumerate(order, start=1):
            axis = axes[line, column]
            shown = axis.imshow(maps[line, cache.anatomies.index(anatomy)], vmin=0, vmax=1, cmap="viridis")
            if anatomy == own:
                for spine in axis.spines.values():
                    spine.set(color="#d62728", linewidth=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("sample and mask", fontsize=7)
    for axis, anatomy in zip(axes[0, 1:], order, strict=True):
        axis.set_title(f"{anatomy.replace('_', ' ')}\nDice {dice[anatomy]:.2f}", fontsize=7, parse_math=False)
    bar = figure.colorbar(shown, ax=axes, fraction=0.012, pad=0.008)
    bar.ax.tick_params(labelsize=6)
    bar.set_label("the teacher's probability; red frame: the sample's own anatomy", fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_durably(Path(out), buffer.getvalue())
    return order


def _maps(cache: LogitCache, store: SampleStore, rows: np.ndarray) -> Tensor:
    """Logits (n, A, H, W) of samples, dequantised and upsampled to the samples' size."""
    width, height = store.size
    return upsample(dequantize(torch.from_numpy(cache.read(store.hashes[rows])), cache.step), (height, width))


def _own_rows(cache: LogitCache, store: SampleStore, anatomy: str) -> np.ndarray:
    """The cached samples of an anatomy, in an order that is random and always the same."""
    cached = np.array([sha256 in cache.row_of for sha256 in store.hashes])
    rows = np.flatnonzero(cached & (store.anatomy == store.anatomies.index(anatomy)))
    return np.random.default_rng(0).permutation(rows)


def _pick(cache: LogitCache, store: SampleStore, order: list[str], samples: int) -> np.ndarray:
    """Rows of samples, one of each anatomy in turn."""
    own = [list(_own_rows(cache, store, anatomy)) for anatomy in order]
    picked: list[int] = []
    while len(picked) < samples and any(own):
        picked += [rows.pop(0) for rows in own if rows]
    if not picked:
        raise MtkdError(f"{cache.url} holds no sample of {store.url}. Name the store it was built from.")
    return np.array(picked[:samples])


def _cached_dice(cache: LogitCache, store: SampleStore) -> dict[str, float]:
    """Mean Dice of each teacher's cached maps, at a threshold of one half, on samples of its own anatomy; 0 if there are none."""
    dice = {}
    for index, anatomy in enumerate(cache.anatomies):
        values = []
        for row in _own_rows(cache, store, anatomy)[:JUDGED]:
            predicted = _maps(cache, store, np.array([row]))[0, index].numpy() > 0
            truth = store.read(np.array([row]))[1][0] > 0
            if predicted.any() or truth.any():
                values.append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
        dice[anatomy] = float(np.mean(values)) if values else 0.0
    return dice


def _validation_dice(cache: LogitCache, teachers: Path) -> dict[str, float]:
    records = {anatomy: read_teacher(teachers / anatomy) for anatomy in cache.anatomies}
    if absent := [anatomy for anatomy, record in records.items() if record is None]:
        raise MtkdError(f"{teachers} has no {TEACHER} of {', '.join(absent)}. Name the folder of the trained teachers.")
    return {anatomy: record.val_dice for anatomy, record in records.items() if record}
