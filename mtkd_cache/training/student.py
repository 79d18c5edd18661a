"""Stage 2: one network for all anatomies, trained on the masks and on the cached logits.

No teacher is run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.cache.layout import licenses_of
from mtkd_cache.cache.loader import Batch, BatchReader, preload
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.augment import apply_views
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.losses import (
    TERMS,
    absent_cross_entropy,
    absent_cross_entropy_by_head,
    cross_entropy_by_head,
    distillation_objective,
    exclusive_cross_entropy,
    head_mean_cross_entropy,
    move_to_known,
)
from mtkd_cache.models.network import layouts_of
from mtkd_cache.models.own import is_own, source_sha256
from mtkd_cache.models.records import RUN, RunRecord
from mtkd_cache.models.seen import NOTHING, UNKNOWN
from mtkd_cache.recipe import Recipe, seed_for
from mtkd_cache.runtime.accelerator import mean_across_ranks
from mtkd_cache.training.balance import prior_log_odds, start_at_prior
from mtkd_cache.training.loop import Forward, Task
from mtkd_cache.training.negatives import absent_in, check_labels
from mtkd_cache.training.run_folder import start_network, train_or_resume
from mtkd_cache.training.signal import CachedTeachers, NoTeachers, TeacherSignal

CROSS_ENTROPIES = {"pixels": exclusive_cross_entropy, "heads": head_mean_cross_entropy}


def train_student(
    store: SampleStore,
    run: Path,
    recipe: Recipe,
    accelerator: Accelerator,
    cache: LogitCache | None,
    resident: str = "auto",
    compiled: bool = False,
    allow_overlap: bool = False,
    layout: str | None = None,
) -> RunRecord:
    """Train a student into the folder `run` and return its record; without a cache it is the paper's baseline, all else equal.

    resident: see `mtkd_cache.cache.loader.preload`; compiled: see `mtkd_cache.training.loop.Task`;
    allow_overlap: see `train_or_resume`; layout: see `mtkd_cache.models.network.create_network`.
    Raises MtkdError where the cache does not belong to the store, where the recipe needs labels that the store lacks, and where
    the folder holds a run with other settings.
    """
    signal: TeacherSignal = NoTeachers(recipe, store.size)
    if cache is not None:
        cache.check_belongs(store, store.rows("train"))
        signal = CachedTeachers(cache, recipe, store.size)
    run_config = student_config(store, recipe, cache is not None, layout)
    run_config["cache_fingerprint"] = cache.fingerprint if cache else None
    make_task = partial(student_task, store, recipe, accelerator, signal, resident, compiled, layout)
    details: dict[str, Any] = {}
    if cache:
        details = {"teachers": cache.manifest.teachers, "view_gap_kl_nats": cache.manifest.view_gap_kl_nats}
    return train_or_resume(RunRecord, run / RUN, run_config, make_task, accelerator, store, details, allow_overlap)


def student_config(store: SampleStore, recipe: Recipe, kd: bool, layout: str | None = None) -> dict[str, Any]:
    """What a student's record must agree with, beside its cache. Raises MtkdError where the store lacks labels it needs."""
    sections = ["student", "augmentation"]
    if kd:
        sections.append("distillation")
    elif recipe.cache.views > 1:
        sections.append("cache")
    config = {
        "kind": "student",
        "arch": recipe.student.arch,
        "layout": layout or layouts_of(recipe.student.arch)[0],
        "kd": kd,
        "anatomies": list(store.anatomies),
        "size": list(store.size),
        "seed": recipe.seed,
        "recipe": {key: section for key, section in recipe.as_dict().items() if key in sections},
        "dataset": store.name,
        "store_fingerprint": store.fingerprint,
        **_labels_used(store, recipe, kd),
    }
    if is_own(recipe.student.arch):
        config["source_sha256"] = source_sha256(recipe.student.arch)
    return config


def _labels_used(store: SampleStore, recipe: Recipe, distilled: bool) -> dict[str, str | None]:
    """What a run records of the labels where it learns from them. Raises MtkdError where it needs some and there are none."""
    correct, absent = recipe.distillation.correct if distilled else "none", recipe.student.negatives == "absent"
    for needed, setting in ((absent, "student.negatives"), (correct == "leave_out", "distillation.correct")):
        if needed:
            check_labels(store, setting)
    return {"labels_fingerprint": store.labels_fingerprint} if absent or correct != "none" else {}


def student_task(
    store: SampleStore,
    recipe: Recipe,
    accelerator: Accelerator,
    signal: TeacherSignal,
    resident: str,
    compiled: bool = False,
    layout: str | None = None,
) -> Task:
    """What `fit` trains: the student on the store's training samples, distilled where the signal has teachers' logits."""
    seed, rows = seed_for(recipe.seed, "student"), store.rows("train")
    network, initial = start_network(recipe.student, store, store.anatomies, seed, layout)
    if recipe.student.prior_bias:
        start_at_prior(network, prior_log_odds(store, rows))
    inherited = initial.pop("inherited", NOTHING) | ((signal.cache.manifest.seen or UNKNOWN) if signal.cache else NOTHING)
    licenses = {*(initial.pop("licenses", None) or ()), *(licenses_of(signal.cache.manifest.teachers) if signal.cache else ())}
    return Task(
        label=f"student {'without' if isinstance(signal, NoTeachers) else 'with'} KD",
        network=network,
        anatomies=store.anatomies,
        stage=recipe.student,
        seed=seed,
        store=store,
        rows=rows,
        balanced=recipe.student.balanced,
        source=preload(BatchReader(store, signal.cache), rows, accelerator.device, resident),
        validation=preload(BatchReader(store), store.rows("validation"), accelerator.device, resident),
        losses=StudentLoss(store, recipe, signal, mean_across_ranks(accelerator)),
        accelerator=accelerator,
        compiled=compiled,
        inherited=inherited,
        licenses=tuple(sorted(licenses)) or None,
        **initial,
    )


@dataclass(frozen=True)
class StudentLoss:
    """Cross-entropy with the masks and, where the signal has teachers' logits, the recipe's terms, in the signal's views.

    average: see `mtkd_cache.losses.exclusive_cross_entropy`.
    """

    store: SampleStore
    recipe: Recipe
    signal: TeacherSignal
    average: Callable[[Tensor], Tensor] | None

    def __call__(self, forward: Forward, batch: Batch, epoch: int) -> dict[str, Tensor]:
        views = self.signal.views(self.store.hashes[batch.rows], epoch).to(batch.images.device)
        images, masks, valid = apply_views(batch.images, batch.masks, views)
        logits = forward(images).float()
        teachers = self.signal.logits(batch, images, views)
        distillation = self.recipe.distillation
        if teachers is None:
            return {"loss": self._cross_entropy(logits, masks, batch, valid, by_head=False)}
        by_head = distillation.combine == "printed"
        cross_entropy = self._across_ranks(self._cross_entropy(logits, masks, batch, valid, by_head))
        parts, distilled = {"cross_entropy": cross_entropy.detach().mean()}, torch.zeros_like(cross_entropy)
        if distillation.correct == "move":
            absent = absent_in(self.store, batch)
            teachers = move_to_known(teachers, masks, batch.anatomy, absent, distillation.correct_margin)
        kept = ~absent_in(self.store, batch) if distillation.correct == "leave_out" else None
        for name, (temperature, weight) in distillation.terms.items():
            term = TERMS[name](logits, teachers, temperature, valid, self.average, kept)
            term = self._across_ranks(term if by_head else term.mean())
            parts[name] = term.detach().mean()
            distilled = distilled + weight * term
        return {"loss": distillation_objective(cross_entropy, distilled, 1.0, distillation.combine), **parts}

    def _cross_entropy(self, logits: Tensor, masks: Tensor, batch: Batch, valid: Tensor, by_head: bool) -> Tensor:
        """With the masks and, where the recipe says so, with background in heads of absent anatomies; (A,) if by head."""
        student = self.recipe.student
        with_masks = cross_entropy_by_head if by_head else CROSS_ENTROPIES[student.cross_entropy]
        exclusive = with_masks(logits, masks, batch.anatomy, valid, self.average)
        if student.negatives == "exclusive":
            return exclusive
        with_labels = absent_cross_entropy_by_head if by_head else absent_cross_entropy
        background = with_labels(logits, batch.anatomy, absent_in(self.store, batch), valid, self.average)
        return (1 - student.negative_share) * exclusive + student.negative_share * background

    def _across_ranks(self, part: Tensor) -> Tensor:
        """The value over all processes with the gradient of this one: a product of two such has the gradient of one process."""
        return part if self.average is None else part + (self.average(part.detach()) - part.detach())
