"""Multi-teacher knowledge distillation for surgical anatomy segmentation, with the teachers run once.

The way through the package, each step reading what the one before wrote:

    dataset folder -> ingest -> sample store -> teachers -> build -> logit cache -> student -> evaluate -> report

What `__all__` names is public and follows semantic versioning; it is imported when it is first used, torch with it.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from mtkd_cache.cache.build import build_cache
    from mtkd_cache.cache.dataset import CachedDistillationDataset
    from mtkd_cache.cache.layout import CacheSpec
    from mtkd_cache.cache.reader import LogitCache
    from mtkd_cache.cache.teacher_runner import Teachers
    from mtkd_cache.cache.verify import verify_cache
    from mtkd_cache.data.augment import Views, apply_views, draw_views, warp
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.errors import MtkdError
    from mtkd_cache.evaluation.predictor import Predictor
    from mtkd_cache.losses import channelwise_kl, exclusive_cross_entropy
    from mtkd_cache.models.checkpoints import load_network
    from mtkd_cache.models.network import create_network
    from mtkd_cache.recipe import load_recipe

__version__ = _version("mtkd-cache")
__all__ = [
    "CacheSpec",
    "CachedDistillationDataset",
    "LogitCache",
    "MtkdError",
    "Predictor",
    "SampleStore",
    "Teachers",
    "Views",
    "apply_views",
    "build_cache",
    "channelwise_kl",
    "create_network",
    "draw_views",
    "exclusive_cross_entropy",
    "load_network",
    "load_recipe",
    "verify_cache",
    "warp",
]
_MODULES = {
    "CacheSpec": "cache.layout",
    "CachedDistillationDataset": "cache.dataset",
    "LogitCache": "cache.reader",
    "MtkdError": "errors",
    "Predictor": "evaluation.predictor",
    "SampleStore": "data.sample_store",
    "Teachers": "cache.teacher_runner",
    "Views": "data.augment",
    "apply_views": "data.augment",
    "build_cache": "cache.build",
    "channelwise_kl": "losses",
    "create_network": "models.network",
    "draw_views": "data.augment",
    "exclusive_cross_entropy": "losses",
    "load_network": "models.checkpoints",
    "load_recipe": "recipe",
    "verify_cache": "cache.verify",
    "warp": "data.augment",
}


def __getattr__(name: str) -> object:
    """Import what is public when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
