"""How far what a student is shown lies from what its teachers say of the picture that the student sees.

Under augmentation a student sees a picture through a view, and is shown the stored maps of the plain picture, warped alike. The
teachers' answer to the picture in that view is another one: they are not exactly equivariant to the warp, and a change of colors
never reaches them. Recorded views close the gap but for the quantization.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.cache.layout import PLAN, CacheManifest, CachePlan, fingerprint
from mtkd_cache.cache.quantize import dequantize, quantize
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.augment import Views, draw_views, identity_views, inside, show_images, to_float, warp
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.losses import map_kl
from mtkd_cache.recipe import Augmentation, augmentation_from
from mtkd_cache.storage.checked_json import MANIFEST, if_intact, read_record
from mtkd_cache.storage.folder import Folder

SAMPLES, DRAWS = 4, 2  # of a measurement: samples, and views of each
Live = Callable[[Tensor], Sequence[Tensor]]  # images float (B, 3, H, W) -> native logits (B, h, w) of each anatomy


def view_gap(live: Tensor, plain: Tensor, views: Views, size: tuple[int, int], step: float, temperature: float) -> Tensor:
    """KL(answer || shown) in nats, float (B,), over the pixels of the view that show the sample.

        answer = the teacher's logits of the picture seen through the view
        shown  = its stored logits of the plain picture, warped by the view

    Args:
        live: native logits of the pictures seen through the views, float (B, h, w).
        plain: native logits of the plain pictures, float (B, h, w).
        views: B views, on the device of the logits.
        size: (H, W) of the pictures.
        step: of the quantizer, in logits.
        temperature: of the softmax over the pixels, see `map_kl`.
    """
    answer = warp(live[:, None], identity_views(len(live)).affine.to(live.device), size)
    shown = warp(dequantize(quantize(plain, step), step)[:, None], views.affine, size)
    return map_kl(shown, answer, temperature, inside(views.affine, size))[:, 0]


def parts_of(augmentation: Augmentation) -> dict[str, Augmentation]:
    """The augmentations whose gaps are told apart: none, each part of the recipe's always and alone, and the recipe's."""
    nothing = replace(augmentation, affine_p=0, rgb_p=0, brightness_contrast_p=0, horizontal_flip_p=0, vertical_flip_p=0)
    color = {name: float(getattr(augmentation, name) > 0) for name in ("rgb_p", "brightness_contrast_p")}
    flips = {name: getattr(augmentation, name) for name in ("horizontal_flip_p", "vertical_flip_p")}
    return {
        "quantization": nothing,
        "geometry": replace(nothing, affine_p=float(augmentation.affine_p > 0), **flips),
        "color": replace(nothing, **color),
        "recipe": augmentation,
    }


def measure_view_gap(
    live: Live,
    store: SampleStore,
    rows: np.ndarray,
    augmentation: Augmentation,
    step: float,
    temperature: float,
    device: torch.device,
    draws: int = DRAWS,
) -> dict[str, dict[str, float]]:
    """The mean of `view_gap` by anatomy and part of the augmentation (see `parts_of`), in nats.

    Args:
        live: runs the teachers of the store's anatomies on the device.
        store: the samples.
        rows: which of them.
        augmentation: of the recipe.
        step: of the quantizer, in logits.
        temperature: of the softmax over the pixels.
        device: where the teachers run.
        draws: views of each sample, the first of its scrambled Sobol sequence.

    Returns:
        {anatomy: {part: nats}}.
    """
    images = torch.from_numpy(store.read(rows)[0]).to(device)
    gaps: dict[str, dict[str, float]] = {anatomy: {} for anatomy in store.anatomies}
    plain, size = live(to_float(images)), (images.shape[1], images.shape[2])
    for part, ranges in parts_of(augmentation).items():
        numbers = range(1, 2 if part == "quantization" else 1 + draws)
        drawn = [draw_views(ranges, None, store.hashes[rows], number, store.size).to(device) for number in numbers]
        answers = [live(show_images(images, views)) for views in drawn]
        for anatomy, by_part in enumerate(gaps.values()):
            values = [
                view_gap(answer[anatomy], plain[anatomy], views, size, step, temperature)
                for answer, views in zip(answers, drawn, strict=True)
            ]
            by_part[part] = max(float(torch.stack(values).double().mean()), 0.0)
    return gaps


def samples_of(store: SampleStore, rows: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """The rows of the samples with the lowest content hashes: always the same of a set of samples, whatever their order."""
    return np.array(sorted(rows, key=lambda row: str(store.hashes[row]))[:count], dtype=np.int64)


def means(gaps: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """The mean over the anatomies of each part of a gap."""
    parts = next(iter(gaps.values()))
    return {part: float(np.mean([by_part[part] for by_part in gaps.values()])) for part in parts}


class RunsTeachers(Protocol):
    """What `mtkd_cache.cache.builder.Builder` offers to measure a gap with."""

    store: SampleStore
    teachers: Teachers
    accelerator: Accelerator
    row_of: dict[str, int]

    def live(self, images: Tensor) -> list[Tensor]: ...


def known_gap(folder: Folder) -> tuple[Any, ...] | None:
    """What the gap of a finished cache was measured of, and the gap."""
    plan, manifest = if_intact(read_record, folder, PLAN, CachePlan), if_intact(read_record, folder, MANIFEST, CacheManifest)
    if plan is None or manifest is None or manifest.view_gap_kl_nats is None:
        return None
    return manifest.fingerprint, plan.augmentation, manifest.view_gap_kl_nats


def gap_of_plan(
    builder: RunsTeachers, plan: CachePlan, known: tuple[Any, ...] | None, count: int = SAMPLES
) -> dict[str, dict[str, float]] | None:
    """The gap that a cache's plain maps leave under the plan's augmentation; None where it has none, or records views.

    known: see `known_gap`; it is not measured again for the same maps. count: of samples.
    """
    spec, store = plan.settings, builder.store
    if plan.augmentation is None or spec.n_views > 1 or not plan.samples:
        return None
    if known and known[:2] == (fingerprint(spec, builder.teachers.info, plan.samples), plan.augmentation):
        gap: dict[str, dict[str, float]] = known[2]
        return gap
    rows = samples_of(store, np.array([builder.row_of[sha256] for sha256 in plan.samples]), count)
    ranges, device = augmentation_from(plan.augmentation), builder.accelerator.device
    return measure_view_gap(builder.live, store, rows, ranges, spec.step, plan.temperature, device)


def told(gaps: Mapping[str, dict[str, float]]) -> str:
    """A gap's means over the anatomies for people: "0.071 nats (color 0.058, geometry 0.1, quantization 7e-05)"."""
    of = means(gaps)
    parts = ", ".join(f"{part} {nats:.2g}" for part, nats in sorted(of.items()) if part != "recipe")
    return f"{of['recipe']:.2g} nats ({parts})"
