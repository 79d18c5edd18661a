"""The distillation terms by name, and how they are combined with the cross-entropy."""

from collections.abc import Callable

from torch import Tensor

from mtkd_cache.losses.by_head import Average
from mtkd_cache.losses.kl import kl_by_head
from mtkd_cache.losses.pearson import pearson_by_head
from mtkd_cache.losses.sigmoid import sigmoid_by_head
from mtkd_cache.losses.standardized import standardized_by_head

Term = Callable[[Tensor, Tensor, float, Tensor | None, Average | None, Tensor | None], Tensor]

TERMS: dict[str, Term] = {
    "kl": kl_by_head,  # the paper's
    "sigmoid": sigmoid_by_head,
    "pearson": pearson_by_head,
    "standardized": standardized_by_head,
}


def distillation_objective(cross_entropy: Tensor, kl: Tensor, weight: float, combine: str) -> Tensor:
    """The objective of stage 2, a scalar.

    "sum" is cross_entropy + weight * kl, as in Shu et al. 2021. "product" is cross_entropy * weight * kl. "printed" is equation
    (3) of Maack et al. 2024 as printed, sum_i cross_entropy[i] * weight * kl[i], both being given by head, float (A,). In a
    product the cross-entropy's gradient vanishes with the KL, and a spatial softmax is invariant to a constant shift of the
    logits, so that nothing then determines the threshold; the recipes therefore use the sum.
    """
    if combine == "sum":
        return cross_entropy + weight * kl
    product = cross_entropy * weight * kl
    return product.sum() if combine == "printed" else product
