"""What the values of a recipe may be."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

STAGES = ("teacher", "student")
TERMS = ("kl", "sigmoid", "pearson", "standardized")
CHOICES = {
    "teacher.negatives": ("own", "exclusive", "absent", "both"),
    "student.negatives": ("exclusive", "absent"),
    "student.cross_entropy": ("pixels", "heads"),
    "distillation.combine": ("sum", "product", "printed"),
    "distillation.correct": ("none", "move", "leave_out"),
    **{f"{stage}.optimizer": ("adam", "adamw") for stage in STAGES},
    "cache.codec": ("blosc", "pcodec"),
    **{f"{stage}.select": ("dice", "operating_point") for stage in STAGES},
    **{f"{stage}.schedule": ("exponential", "cosine") for stage in STAGES},
}
POSITIVE = (
    *("distillation.temperature", "distillation.sigmoid_temperature", "distillation.correct_margin"),
    *(f"{stage}.lr" for stage in STAGES),
)
NOT_NEGATIVE = ("seed", "distillation.weight", "distillation.sigmoid_weight", *(f"{stage}.weight_decay" for stage in STAGES))
ONE_OR_MORE = ("cache.views", *(f"{stage}.{key}" for stage in STAGES for key in ("epochs", "batch")))
HIGHEST = {"augmentation.scale": 0.99, "augmentation.rotate": 180.0, "augmentation.rgb_shift": 255.0}  # others 1


def limits(values: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Key, whether its value is allowed, and what is, for each of a recipe's values, by key as "student.epochs"."""
    yield from ((key, values[key] in words, _either(words)) for key, words in CHOICES.items())
    yield from ((key, 0 < values[key] < math.inf, "more than 0") for key in POSITIVE)
    yield from ((key, 0 <= values[key] < math.inf, "0 or more") for key in NOT_NEGATIVE)
    yield from ((key, values[key] >= 1, "1 or more") for key in ONE_OR_MORE)
    terms = values["distillation.term"].split("+")
    yield "distillation.term", set(terms) <= set(TERMS), f"one of {', '.join(TERMS)}, or A+B"
    for stage in STAGES:
        rate = values[f"{stage}.lr"]
        yield f"{stage}.final_lr", 0 < values[f"{stage}.final_lr"] <= rate, f"more than 0 and at most lr, {rate}"
        yield f"{stage}.negative_share", 0 < values[f"{stage}.negative_share"] < 1, "more than 0 and less than 1"
    for key in (key for key in values if key.startswith("augmentation.")):
        high = HIGHEST.get(key, 1.0)
        yield key, 0 <= values[key] <= high, f"from 0 to {high:g}"


def _either(words: Sequence[str]) -> str:
    return f'"{words[0]}" or "{words[1]}"' if len(words) == 2 else f"one of {', '.join(words)}"
