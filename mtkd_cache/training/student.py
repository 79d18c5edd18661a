"""Stage 2: a shared encoder with one decoder an anatomy, trained on the masks and on the cached logits.

No teacher is in sight.
"""

from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from mtkd_cache.cache.loader import Batch, BatchReader, epoch_batches, prefetch, preload
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.augment import apply_views, draw_views, identity_views, warp
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.losses import channelwise_kl, distillation_objective, exclusive_cross_entropy
from mtkd_cache.models.records import STUDENT
from mtkd_cache.recipe import Recipe, seed_for
from mtkd_cache.runtime.accelerator import mean_across_ranks
from mtkd_cache.training.loop import Task
from mtkd_cache.training.metrics import split_dice
from mtkd_cache.training.run_folder import start_network, train_or_resume


def train_student(
    store: SampleStore,
    run: Path,
    recipe: Recipe,
    accelerator: Accelerator,
    cache: LogitCache | None,
    resident: str = "auto",
    compiled: bool = False,
) -> dict:
    """Train a student into the folder `run` and return its record; without a cache it is the paper's baseline, all else equal.

    resident: see `mtkd_cache.cache.loader.preload`; compiled: see `mtkd_cache.training.loop.Task`. Raises MtkdError where the cache does not
    belong to the store, and where the folder holds a run with other settings.
    """
    settings = recipe.as_dict()
    sections = ["student", "augmentation"]
    if cache is not None:
        sections.append("distillation")
    elif recipe.cache.views > 1:
        sections.append("cache")
    identity = {
        "kind": "student",
        "arch": recipe.student.arch,
        "layout": "shared",
        "kd": cache is not None,
        "anatomies": list(store.anatomies),
        "size": list(store.size),
        "seed": recipe.seed,
        "recipe": {key: settings[key] for key in sections},
        "dataset": store.name,
        "store_fingerprint": store.fingerprint,
        "cache_fingerprint": cache.fingerprint if cache else None,
    }
    if cache is not None:
        cache.check_belongs(store, store.rows("train"))
    make_task = partial(student_task, store, recipe, accelerator, cache, resident, compiled)
    return train_or_resume(
        run / STUDENT, identity, make_task, accelerator, {"teachers": cache.manifest["teachers"]} if cache else {}
    )


def student_task(
    store: SampleStore, recipe: Recipe, accelerator: Accelerator, cache: LogitCache | None, resident: str, compiled: bool = False
) -> Task:
    """What `fit` trains: the student on the store's training samples, distilled from the cache where there is one."""
    seed = seed_for(recipe.seed, "student")
    rows = store.rows("train")
    feed = preload(BatchReader(store, cache), rows, accelerator.device, resident)
    seen_in_validation = preload(BatchReader(store), store.rows("validation"), accelerator.device, resident)
    order = partial(
        epoch_batches, rows, recipe.student.batch, seed, rank=accelerator.process_index, world=accelerator.num_processes
    )
    recorded = cache.views if cache else recipe.cache.views

    def losses(forward, batch: Batch, epoch: int) -> dict[str, Tensor]:
        hashes = store.hashes[batch.rows]
        if recorded > 1 and cache:
            views = cache.draw_views(hashes, epoch % recorded)
        elif recorded > 1:  # the baseline sees what a cache of this recipe records
            views = draw_views(recipe.augmentation, seed_for(recipe.seed, "views"), hashes, epoch % recorded, store.size)
        else:
            views = draw_views(recipe.augmentation, seed, hashes, epoch + 1, store.size)
        views = views.to(batch.images.device)
        images, masks, valid = apply_views(batch.images, batch.masks, views)
        logits = forward(images).float()
        cross_entropy = exclusive_cross_entropy(logits, masks, batch.anatomy, valid, mean_across_ranks(accelerator))
        if cache is None:
            return {"loss": cross_entropy}
        affine = identity_views(len(hashes)).affine.to(valid.device) if recorded > 1 else views.affine
        teacher = warp(dequantize(batch.logits, cache.step), affine, tuple(valid.shape[1:]))
        kl = channelwise_kl(logits, teacher, recipe.distillation.temperature, valid)
        loss = distillation_objective(cross_entropy, kl, recipe.distillation.weight, recipe.distillation.combine)
        return {"loss": loss, "cross_entropy": cross_entropy.detach(), "kl": kl.detach()}

    def validate(network) -> float:
        heads = {anatomy: (network, index) for index, anatomy in enumerate(store.anatomies)}
        return split_dice(heads, store, "validation", accelerator, seen_in_validation)["mean_dice"]

    return Task(
        label=f"student {'with' if cache else 'without'} KD",
        network=start_network(recipe.student.arch, len(store.anatomies), recipe.student.weights, seed),
        anatomies=store.anatomies,
        stage=recipe.student,
        seed=seed,
        batches=lambda epoch: prefetch(((rows, epoch % recorded if cache else 0) for rows in order(epoch)), feed.read),
        steps=len(order(0)),
        losses=losses,
        validate=validate,
        name_samples=store.describe_all,
        compiled=compiled,
    )
