"""Files of weights that other programs wrote: read without running any code they carry."""

import argparse
import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mtkd_cache.errors import MtkdError, first_line

PICKLED = (".pth", ".pt", ".bin", ".tar", ".ckpt")
NESTED = ("teacher", "model", "state_dict")  # where checkpoints of whole trainings keep the weights (DINO, MAE, PIDNet)


@dataclass(frozen=True)
class Origin:
    """Where weights come from. source: whose they are; license: theirs; note: what else a card should tell, or empty."""

    source: str
    license: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.license} (weights: {self.source}{'; ' + self.note if self.note else ''})"


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, or of a PyTorch file that is a plain state dict.

    Raises MtkdError where the file is damaged, carries code, or holds anything else.
    """
    return _checked(_load(path), path)


def read_checkpoint_file(path: Path) -> dict[str, Tensor]:
    """Like `read_weights_file`, where the weights may be part of a checkpoint, under one of the keys NESTED."""
    content = _load(path)
    nested = [content[key] for key in NESTED if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
    return _checked(nested[0] if nested else content, path)


def read_origin(path: Path) -> Origin | None:
    """What `mtkd-cache convert-weights` wrote into a file about its origin; None for any other file."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
        return Origin(**about["origin"]) if "origin" in about else None
    except (SafetensorError, OSError, ValueError, TypeError):
        return None


def _load(path: Path) -> Any:
    try:
        if path.suffix not in PICKLED:
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # a training's options, beside its weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, LookupError, struct.error) as error:  # the last two: no pickle at all
        raise MtkdError(
            f"{path} is refused: it is damaged, or carries code, which is never run. Use a file that holds only tensors."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise MtkdError(f"{path} cannot be read as weights: {first_line(error)}. Download it again.") from error


def _checked(tensors: Any, path: Path) -> dict[str, Tensor]:
    if not (isinstance(tensors, Mapping) and tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values())):
        raise MtkdError(f"{path} is not a state dict of tensors. Use torchvision's own file, or a .safetensors file.")
    return dict(tensors)
