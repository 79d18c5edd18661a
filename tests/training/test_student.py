"""Stage 2's objective on stored samples: image, mask and cached logits are seen through one view, the same in both arms."""

import numpy as np
import pytest
import torch
from support import build, split_dice

from mtkd_cache.cache.loader import BatchReader
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.augment import apply_views, draw_views, identity_views, warp
from mtkd_cache.data.samples import SPLITS
from mtkd_cache.losses import (
    channelwise_kl,
    cross_entropy_by_head,
    exclusive_cross_entropy,
    head_mean_cross_entropy,
    kl_by_head,
    sigmoid_by_head,
)
from mtkd_cache.recipe import seed_for
from mtkd_cache.training.signal import CachedTeachers, NoTeachers
from mtkd_cache.training.student import student_task
from mtkd_cache.training.teachers import teacher_task

MOVED = "augmentation.affine_p=1.0"
EPOCH = 3


@pytest.mark.parametrize("recorded", [1, 2])
def test_the_student_meets_what_the_teachers_say_of_the_picture_it_sees(
    recorded, organ_store, organ_teachers, recipe, accelerator, tmp_path
):
    settings = recipe(MOVED, f"cache.views={recorded}")
    build(organ_store, organ_teachers, str(tmp_path / "c.zarr"), settings, accelerator)
    cache = LogitCache.open(str(tmp_path / "c.zarr"))
    rows = organ_store.rows("train")[1:7]
    hashes = organ_store.hashes[rows]
    if recorded == 1:
        views = draw_views(settings.augmentation, seed_for(settings.seed, "student"), hashes, EPOCH + 1, organ_store.size)
        move = views.affine
    else:  # the maps are already those of the warped pictures
        views, move = cache.draw_views(hashes, EPOCH % recorded), identity_views(len(rows)).affine
    batch = BatchReader(organ_store, cache).read(rows, EPOCH % recorded)
    images, masks, valid = apply_views(batch.images, batch.masks, views)
    teacher = warp(dequantize(batch.logits[0], cache.step), move, (64, 64))
    assert not valid.all()

    signal = CachedTeachers(cache, settings, organ_store.size)

    def losses(logits: torch.Tensor, *overrides: str) -> dict[str, torch.Tensor]:
        def forward(given: torch.Tensor) -> torch.Tensor:
            assert torch.equal(given, images)
            return logits

        given = recipe(MOVED, f"cache.views={recorded}", *overrides)
        return student_task(organ_store, given, accelerator, signal, "off").losses(forward, batch, EPOCH)

    assert losses(teacher)["kl"] == pytest.approx(0, abs=1e-6)
    other = torch.randn_like(teacher)
    said = losses(other)
    assert said["cross_entropy"] == pytest.approx(float(exclusive_cross_entropy(other, masks, batch.anatomy, valid)))
    assert said["kl"] == pytest.approx(float(channelwise_kl(other, teacher, 4.0, valid)))
    assert said["loss"] == pytest.approx(float(said["cross_entropy"] + 3 * said["kl"]))

    both = losses(other, "distillation.term=sigmoid+kl", "distillation.weight=0.3", "distillation.sigmoid_weight=2.0")
    sigmoid = sigmoid_by_head(other, teacher, 1.0, valid)
    assert both["sigmoid"] == pytest.approx(float(sigmoid.mean()))
    assert both["kl"] == pytest.approx(float(said["kl"]))
    assert both["loss"] == pytest.approx(float(said["cross_entropy"] + 2 * both["sigmoid"] + 0.3 * said["kl"]))
    by_heads = losses(other, "student.cross_entropy=heads")
    assert (
        by_heads["cross_entropy"]
        == pytest.approx(float(head_mean_cross_entropy(other, masks, batch.anatomy, valid)))
        != float(said["cross_entropy"])
    )
    printed = losses(other, "distillation.combine=printed")
    by_head = cross_entropy_by_head(other, masks, batch.anatomy, valid) * kl_by_head(other, teacher, 4.0, valid)
    assert printed["loss"] == pytest.approx(float(3 * by_head.sum()))


@pytest.mark.parametrize("recorded", [1, 2])
def test_the_baseline_begins_sees_and_learns_the_same(recorded, organ_store, organ_teachers, recipe, accelerator, tmp_path):
    settings = recipe(MOVED, f"cache.views={recorded}")
    build(organ_store, organ_teachers, str(tmp_path / "c.zarr"), settings, accelerator)
    cache, size = LogitCache.open(str(tmp_path / "c.zarr")), organ_store.size
    other_seed = recipe(MOVED, f"cache.views={recorded}", "seed=5") if recorded > 1 else settings  # recorded views have no seed
    signals = (CachedTeachers(cache, settings, size), NoTeachers(other_seed, size))
    tasks = [student_task(organ_store, settings, accelerator, signal, "off") for signal in signals]
    distilled, baseline = (task.network.state_dict() for task in tasks)
    assert all(torch.equal(distilled[name], baseline[name]) for name in distilled)
    assert tasks[0].steps == tasks[1].steps
    for epoch in range(2):
        for ours, theirs in zip(*(task.batches(epoch) for task in tasks), strict=True):
            assert torch.equal(ours.logits[0], BatchReader(organ_store, cache).read(ours.rows, epoch % recorded).logits[0])
            seen = []

            def forward(images: torch.Tensor, seen: list = seen) -> torch.Tensor:
                seen.append(images)
                return torch.zeros(len(images), 2, *images.shape[2:])

            said = [task.losses(forward, batch, epoch) for task, batch in zip(tasks, (ours, theirs), strict=True)]
            assert torch.equal(*seen)
            assert torch.equal(said[0]["cross_entropy"], said[1]["loss"])


@pytest.mark.parametrize("stage", ["student", "teacher"])
def test_validation_is_on_the_validation_split(stage, organ_store, recipe, accelerator):
    if stage == "student":
        task = student_task(organ_store, recipe(), accelerator, NoTeachers(recipe(), organ_store.size), "off")
        heads = {organ: (task.network.eval(), head) for head, organ in enumerate(organ_store.anatomies)}
    else:
        task = teacher_task(organ_store, "kidney", recipe(), accelerator, "off")
        heads = {"kidney": (task.network.eval(), 0)}
    said = {split: np.mean(list(split_dice(heads, organ_store, split).values())) for split in SPLITS}
    assert len(set(said.values())) == len(SPLITS)
    assert task.validate(task.network)["val_dice"] == pytest.approx(said["validation"])
