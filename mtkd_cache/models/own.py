"""A network of the user's own: `package.module:factory`, imported because the user named it, never because a file does."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError, said
from mtkd_cache.models.parts import Parts, Statistics

AS_IT_IS: Statistics = ((0.0,) * 3, (1.0,) * 3)  # images stay in [0, 1]


def is_own(arch: str) -> bool:
    """Whether an architecture is a factory of the user's."""
    return ":" in arch


def own_parts(arch: str, heads: int) -> Parts:
    """What the factory returns for this number of anatomies, as one decoder of the images themselves.

    Raises MtkdError where there is no such factory, or what it returns does not map images (B, 3, H, W) to finite logits
    (B, heads, h, w).
    """
    factory = find_factory(arch)
    try:
        network = factory(heads)
    except Exception as error:  # code that is not ours
        raise MtkdError(
            f"{arch} failed for {heads} anatomies: {said(error)}. It gets their number and returns the network."
        ) from error
    if not isinstance(network, nn.Module):
        raise MtkdError(f"{arch} returns a {type(network).__name__}, not a torch.nn.Module. Let it return the network.")
    statistics, multiple = _statistics(arch, network), getattr(network, "multiple", 1)
    if type(multiple) is not int or multiple < 1:
        raise MtkdError(f"{arch}: multiple = {multiple!r} is no whole number of pixels. Image sides become multiples of it.")
    stride = _try_out(arch, network, heads, multiple)
    return Parts(nn.Identity(), [network], statistics, stride, multiple, source_sha256=source_sha256(arch))


def find_factory(arch: str) -> Callable[[int], Any]:
    """Import `package.module:factory`, also from the working directory. Raises MtkdError where there is none."""
    module_name, _, name = arch.partition(":")
    module = _import(arch, module_name)
    factory = getattr(module, name, None)
    if not callable(factory):
        found = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name]
        raise MtkdError(f"{arch}: {module.__file__} has no function {name!r}. It has {', '.join(found) or 'none'}.")
    return factory  # type: ignore[no-any-return]


def source_sha256(arch: str) -> str | None:
    """SHA-256 of the file of the factory's module; what it imports is not in it. None for a module without a file."""
    file = _import(arch, arch.partition(":")[0]).__file__
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _import(arch: str, module_name: str) -> Any:
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:  # `python -m` has it there, a console script has not
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise MtkdError(f"{arch}: there is no module {error.name}. Give package.module:factory, seen from {here}.") from error
        raise MtkdError(f"{arch}: {module_name} needs {error.name}, which is not installed.") from error
    except Exception as error:  # code that is not ours
        raise MtkdError(f"{arch}: {module_name} cannot be imported: {said(error)}.") from error


def _statistics(arch: str, network: nn.Module) -> Statistics:
    """The network's attribute `normalization`, (mean, std) of R, G and B; without it images stay in [0, 1]."""
    given = getattr(network, "normalization", AS_IT_IS)
    try:
        mean, std = (tuple(map(float, values)) for values in given)
        if len(mean) == len(std) == 3 and min(std) > 0:
            return mean, std
    except (TypeError, ValueError):
        pass
    raise MtkdError(
        f"{arch}: normalization = {given!r} is not ((R, G, B) mean, (R, G, B) standard deviation) of images in [0, 1]."
    )


def _try_out(arch: str, network: nn.Module, heads: int, multiple: int) -> int:
    """The stride of the logits of one small image. Raises MtkdError where they are not finite logits (1, heads, h, w)."""
    side = multiple * -(-64 // multiple)
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.full((1, 3, side, 2 * side), 0.5))
    except Exception as error:  # code that is not ours
        raise MtkdError(f"{arch} fails on an image of {2 * side}x{side} pixels: {said(error)}.") from error
    network.train(training)
    fitting = isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[:2] == (1, heads) and 0 not in logits.shape
    if not (fitting and logits.is_floating_point()):
        shape = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise MtkdError(
            f"{arch} maps images (1, 3, {side}, {2 * side}) to {shape}. It must return float logits (1, {heads}, h, w)."
        )
    if not logits.isfinite().all():
        raise MtkdError(f"{arch} gives NaN or infinity on a gray image of {2 * side}x{side} pixels. Check its initial weights.")
    height: int = logits.shape[2]
    return max(1, round(side / height))
