"""Maps on their way into a shard file: quantized and measured, written with their record, and taken over from a present file."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numcodecs import Blosc
from torch import Tensor

from mtkd_cache.cache.layout import FIGURES, SPREAD, ShardRecord, ShardTask, TeacherInfo, array_spec
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import map_kl
from mtkd_cache.models.network import upsample
from mtkd_cache.storage import pcodec
from mtkd_cache.storage.checked_json import digest, dump_checked_json, file_entry
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.shard_writer import UNREADABLE, row_checksum

BLOSC = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)  # the default codec


def new_figures(*shape: int) -> np.ndarray:
    """A structured array of the figures of maps, see `FIGURES` and `SPREAD`."""
    return np.zeros(shape, [*FIGURES.items(), (SPREAD, np.float64)])


def merge(answers: Sequence[Tensor], grid: tuple[int, int]) -> tuple[Tensor, list[float]]:
    """The mean of several teachers' logits, and how far these are apart.

    Args:
        answers: float (n, h, w) each; those of a coarser stride are upsampled bilinearly, corner-aligned.
        grid: (h, w) of the mean.

    Returns:
        float (n, h, w), and for each map the mean over its positions of the standard deviation of the teachers' logits, as of a
        whole population; one teacher's logits unchanged, and 0.
    """
    if len(answers) == 1:
        return answers[0], [0.0] * len(answers[0])
    fine = [one if one.shape[1:] == grid else upsample(one[:, None], grid)[:, 0] for one in answers]
    stacked = torch.stack(fine)
    return stacked.mean(0), stacked.std(0, correction=0).mean((1, 2)).tolist()


def quantize_maps(who: str, logits: Tensor, spec: CacheSpec, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantize maps and measure what that costs.

    Args:
        who: computed the logits, for messages.
        logits: float (n, h, w).
        spec: of the cache, whose step and codec are taken.
        temperature: of the softmax in the KL.

    Returns:
        int16 (n, h, w) and the maps' figures (n,).

    Raises:
        MtkdError: a logit is not finite, does not fit 16 bits, or is stored more than half a step off.
    """
    step, encode = spec.step, pcodec.encode if spec.pcodec else BLOSC.encode
    try:
        integers = quantize(logits, step)
    except MtkdError as error:
        raise MtkdError(f"{who}: {error}") from error
    stored = dequantize(integers, step)
    errors = (stored - logits).abs().amax((1, 2)).tolist()
    if not max(errors) <= step / 2:
        raise MtkdError(
            f"{who}: a logit is stored {max(errors):.4g} off, more than half of the step {step}. "
            "The device computes it wrongly; try another --device."
        )
    kls = map_kl(stored[:, None], logits[:, None], temperature)[:, 0].tolist()
    values, figures = integers.cpu().numpy(), new_figures(len(errors))
    for index, (one, max_error, kl) in enumerate(zip(values, errors, kls, strict=True)):
        figures[index] = row_checksum(one), max_error, max(kl, 0.0), 8 * len(encode(one)), 0.0
    return values, figures


def write_shard(
    folder: Folder, spec: CacheSpec, task: ShardTask, values: np.ndarray, figures: np.ndarray, teachers: Mapping[str, TeacherInfo]
) -> None:
    """Write a shard file and then its record.

    values: int16 (samples, 1, A, h, w) of the A anatomies of the file's array; figures: (samples, A) of the same maps;
    teachers: by anatomy, of these at least.
    """
    data = array_spec(spec, task.array).encode_shard(values)
    own = {name: teachers[name] for name in spec.names_of(task.array)}
    keys = [*FIGURES, *([SPREAD] if any("members" in info for info in own.values()) else [])]
    folder.delete(task.record_key)
    folder.write(task.shard_key, data)
    record = ShardRecord(
        key=task.shard_key,
        **file_entry(data),
        settings=digest(spec.to_json()),
        teachers=own,
        rows=tuple(
            {"sha256": sha256, **{key: row[key].tolist() for key in keys}}
            for sha256, row in zip(task.hashes, figures, strict=True)
        ),
    )
    folder.write(task.record_key, dump_checked_json(record.to_json()))


def take_over(
    folder: Folder,
    spec: CacheSpec,
    task: ShardTask,
    record: ShardRecord,
    missing: np.ndarray,
    values: np.ndarray,
    figures: np.ndarray,
) -> None:
    """Copy the maps of a present shard file that are not missing; those that turn out damaged are marked missing.

    missing: bool (samples, A); values, figures: see `write_shard`.
    """
    present = array_spec(spec, task.array).decode_shard(folder.read(record.key))
    for index in map(int, np.flatnonzero(~missing.all(1))):
        try:
            maps = np.asarray(present[index, 0])
        except UNREADABLE:
            missing[index] = True
            continue
        row = record.rows[index]
        for anatomy in map(int, np.flatnonzero(~missing[index])):
            if row_checksum(maps[anatomy]) != row["crc32c"][anatomy]:
                missing[index, anatomy] = True
                continue
            values[index, 0, anatomy] = maps[anatomy]
            figures[index, anatomy] = (*(row[key][anatomy] for key in FIGURES), row[SPREAD][anatomy] if SPREAD in row else 0.0)
