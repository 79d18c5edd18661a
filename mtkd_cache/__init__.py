"""Multi-teacher knowledge distillation for surgical anatomy segmentation, with the teachers run once.

The way through the package, each step reading what the one before wrote:

    dataset folder -> ingest -> sample store -> teachers -> build -> logit cache -> student -> evaluate -> report

What `__init__.pyi` names is public and follows semantic versioning; it is imported when it is first used, torch with it.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__ = _version("mtkd-cache")
