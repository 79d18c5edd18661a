"""Where the teachers' answer in the student's loss comes from: nowhere, a logit cache, or (`mtkd_cache.bench`) the teachers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mtkd_cache.cache.loader import Batch
from mtkd_cache.cache.quantize import dequantize
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.data.augment import Views, draw_views, identity_views
from mtkd_cache.recipe import Recipe, seed_for


class TeacherSignal(Protocol):
    """Chooses the views in which the student sees its samples, and gives the teachers' logits for them.

    cache: the logit cache whose quantized maps are read together with the samples, into `Batch.logits`; None for no maps.
    """

    @property
    def cache(self) -> LogitCache | None: ...

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        """The views (on the CPU) of B samples in an epoch."""
        ...

    def logits(self, batch: Batch, images: Tensor, views: Views) -> Tensor | None:
        """The teachers' logits, float (B, A, H, W), or None for no distillation.

        images: what the student sees, float (B, 3, H, W) in [0, 1]. views: those of the images, on the images' device.
        """
        ...


def new_views(recipe: Recipe, size: tuple[int, int], hashes: Sequence[str], epoch: int) -> Views:
    """Views that no other epoch has. size: (width, height)."""
    return draw_views(recipe.augmentation, seed_for(recipe.seed, "student"), hashes, epoch + 1, size)


@dataclass(frozen=True)
class NoTeachers:
    """The paper's baseline: the masks alone, in the same views as a student distilled from a cache of this recipe sees."""

    recipe: Recipe
    size: tuple[int, int]
    cache: None = None

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        if (count := self.recipe.cache.views) == 1:
            return new_views(self.recipe, self.size, hashes, epoch)
        return draw_views(self.recipe.augmentation, None, hashes, epoch % count, self.size)

    def logits(self, batch: Batch, images: Tensor, views: Views) -> None:
        return None


@dataclass(frozen=True)
class CachedTeachers:
    """Cached logits: of the plain sample, warped as the image is, or of recorded views, which the student then sees in turn."""

    cache: LogitCache
    recipe: Recipe
    size: tuple[int, int]

    def views(self, hashes: Sequence[str], epoch: int) -> Views:
        if self.cache.views == 1:
            return new_views(self.recipe, self.size, hashes, epoch)
        return self.cache.draw_views(hashes, epoch % self.cache.views)

    def logits(self, batch: Batch, images: Tensor, views: Views) -> Tensor:
        recorded = self.cache.views > 1  # then the maps are those of the view already
        affine = identity_views(len(images)).affine.to(images.device) if recorded else views.affine
        maps = [dequantize(integers, self.cache.step) for integers in batch.logits]
        return self.cache.warp(maps, affine, (images.shape[2], images.shape[3]))
