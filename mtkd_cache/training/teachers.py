"""Stage 1: one network for each anatomy, trained on that anatomy's own samples with binary cross-entropy, equation (1).

With a recipe's `teacher.negatives`, pictures of other subsets take a share of each batch, and teach what is background.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.cache.loader import Batch, BatchReader, epoch_batches, preload
from mtkd_cache.data.augment import apply_views, draw_views
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import exclusive_cross_entropy
from mtkd_cache.models.own import is_own
from mtkd_cache.models.records import TEACHER, TeacherRecord
from mtkd_cache.recipe import Recipe, seed_for
from mtkd_cache.runtime.accelerator import mean_across_ranks
from mtkd_cache.training.loop import Forward, Task
from mtkd_cache.training.negatives import absent_in, check_labels, negatives_of
from mtkd_cache.training.progress import ALONE, Place
from mtkd_cache.training.run_folder import start_network, train_or_resume

LABELLED = ("absent", "both")  # values of `teacher.negatives` that need labels


def train_teachers(
    store: SampleStore,
    folder: Path,
    recipe: Recipe,
    accelerator: Accelerator,
    anatomies: Sequence[str] = (),
    resident: str = "auto",
    compiled: bool = False,
    allow_overlap: bool = False,
) -> dict[str, TeacherRecord]:
    """Train the teachers that are not finished yet into folder/ANATOMY/, and return the record of each.

    anatomies: only these. resident: see `mtkd_cache.cache.loader.preload`; compiled: see `mtkd_cache.training.loop.Task`;
    allow_overlap: see `train_or_resume`.
    Raises MtkdError for an unknown anatomy, for a teacher that was trained with other settings, samples or labels, for images of
    a size at which the architecture has no native logits to cache, and where the recipe needs labels that the store lacks.
    """
    _check(store, recipe, anatomies)
    records = {}
    places = _places(store, folder, recipe, anatomies or store.anatomies)
    for anatomy, place in places.items():
        make_task = partial(teacher_task, store, anatomy, recipe, accelerator, resident, compiled, place)
        path, run_config = folder / anatomy / TEACHER, _run_config(store, recipe, anatomy)
        records[anatomy] = train_or_resume(
            TeacherRecord, path, run_config, make_task, accelerator, store, allow_overlap=allow_overlap
        )
    return records


def _check(store: SampleStore, recipe: Recipe, anatomies: Sequence[str]) -> None:
    """Raises MtkdError for what `train_teachers` refuses before the first training."""
    if is_own(recipe.teacher.arch):
        raise MtkdError(
            f"{recipe.teacher.arch}: networks of your own can be students, not teachers. Choose another teacher.arch."
        )
    for anatomy in anatomies:
        if anatomy not in store.anatomies:
            raise MtkdError(f"anatomy {anatomy!r} is not in {store.url}. It has {', '.join(store.anatomies)}.")
    if recipe.teacher.negatives in LABELLED:
        check_labels(store, "teacher.negatives")


def _run_config(store: SampleStore, recipe: Recipe, anatomy: str) -> dict[str, Any]:
    """What a teacher's record must agree with."""
    settings = recipe.as_dict()
    return {
        "kind": "teacher",
        "anatomy": anatomy,
        "arch": recipe.teacher.arch,
        "anatomies": list(store.anatomies),
        "size": list(store.size),
        "seed": recipe.seed,
        "recipe": {"teacher": settings["teacher"], "augmentation": settings["augmentation"]},
        "store_fingerprint": store.fingerprint,
        **({"labels_fingerprint": store.labels_fingerprint} if recipe.teacher.negatives in LABELLED else {}),
    }


def _places(store: SampleStore, folder: Path, recipe: Recipe, anatomies: Sequence[str]) -> dict[str, Place]:
    """Where the training of each anatomy stands in the command; the steps of those that are not finished are to come."""
    todo = [anatomy for anatomy in anatomies if not (folder / anatomy / TEACHER).exists()]
    batches = {anatomy: len(epoch_batches(store.rows("train", anatomy), recipe.teacher.batch, 0, 0)) for anatomy in todo}
    steps = [recipe.teacher.epochs * batches.get(anatomy, 0) for anatomy in anatomies]
    return {anatomy: Place(n, len(anatomies), sum(steps[n:])) for n, anatomy in enumerate(anatomies, 1)}


def teacher_task(
    store: SampleStore,
    anatomy: str,
    recipe: Recipe,
    accelerator: Accelerator,
    resident: str,
    compiled: bool = False,
    place: Place = ALONE,
) -> Task:
    """What `fit` trains: one anatomy's network on its own training samples, and on negatives where the recipe has some."""
    seed = seed_for(recipe.seed, "teacher", anatomy)
    network, initial = start_network(recipe.teacher, store, [anatomy], seed)
    network.check_size(store.size)
    rows, validation = store.rows("train", anatomy), store.rows("validation", anatomy)
    negatives = negatives_of(store, anatomy, recipe.teacher.negatives)
    source = preload(BatchReader(store), np.concatenate([rows, validation, negatives]), accelerator.device, resident)
    return Task(
        label=anatomy,
        network=network,
        anatomies=[anatomy],
        stage=recipe.teacher,
        seed=seed,
        store=store,
        rows=rows,
        source=source,
        validation=source,
        losses=TeacherLoss(store, anatomy, recipe, mean_across_ranks(accelerator)),
        accelerator=accelerator,
        compiled=compiled,
        place=place,
        negatives=negatives,
        negative_share=recipe.teacher.negative_share,
        **initial,
    )


@dataclass(frozen=True)
class TeacherLoss:
    """Cross-entropy of one anatomy's head: with its own masks, and with background where other pictures are known to show none.

    average: see `mtkd_cache.losses.exclusive_cross_entropy`.
    """

    store: SampleStore
    anatomy: str
    recipe: Recipe
    average: Callable[[Tensor], Tensor] | None

    def __call__(self, forward: Forward, batch: Batch, epoch: int) -> dict[str, Tensor]:
        store, seed = self.store, seed_for(self.recipe.seed, "teacher", self.anatomy)
        views = draw_views(self.recipe.augmentation, seed, store.hashes[batch.rows], epoch + 1, store.size)
        images, masks, valid = apply_views(batch.images, batch.masks, views.to(batch.images.device))
        head, only_head = store.anatomies.index(self.anatomy), torch.zeros_like(batch.anatomy)
        own = (batch.anatomy == head)[:, None, None]
        known = own | masks
        if self.recipe.teacher.negatives in LABELLED:
            known = known | absent_in(store, batch)[:, head, None, None]
        known = valid & known
        return {"loss": exclusive_cross_entropy(forward(images).float(), masks & own, only_head, known, self.average)}
