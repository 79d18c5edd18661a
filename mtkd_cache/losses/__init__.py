"""The objective of both stages as pure functions of tensors.

B samples, A anatomies (heads), H x W pixels. `valid` marks the pixels that show the sample (`mtkd_cache.data.augment.inside`).
Logits may have any floating type: the loss is computed in float32 at least, and the gradient has the logits' type. Masks are
bool, or numbers that are 0 or 1.
"""

from mtkd_cache.losses.cross_entropy import cross_entropy_by_head, exclusive_cross_entropy, head_mean_cross_entropy
from mtkd_cache.losses.kl import channelwise_kl, kl_by_head, map_kl
from mtkd_cache.losses.known import absent_cross_entropy, absent_cross_entropy_by_head, move_to_known
from mtkd_cache.losses.objective import TERMS, distillation_objective
from mtkd_cache.losses.pearson import pearson_by_head
from mtkd_cache.losses.sigmoid import sigmoid_by_head
from mtkd_cache.losses.standardized import standardized_by_head

__all__ = [
    "TERMS",
    "absent_cross_entropy",
    "absent_cross_entropy_by_head",
    "channelwise_kl",
    "cross_entropy_by_head",
    "distillation_objective",
    "exclusive_cross_entropy",
    "head_mean_cross_entropy",
    "kl_by_head",
    "map_kl",
    "move_to_known",
    "pearson_by_head",
    "sigmoid_by_head",
    "standardized_by_head",
]
