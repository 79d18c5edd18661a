"""Weights as safetensors that say what they are, and the state from which an interrupted training goes on.

The file's one metadata entry, "about", is a JSON object: what the file is, and the CRC-32C of that and of all tensors.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError
from mtkd_cache.models import Network, build
from mtkd_cache.storage import write_durably

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
CHECKSUM = "crc32c"


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict) -> None:
    """Write named tensors with a JSON description, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, save(contiguous, {"about": json.dumps({**about, CHECKSUM: _checksum(contiguous, about)})}))


def read_tensors(path: Path, *members: str) -> tuple[dict[str, Tensor], dict]:
    """What `write_tensors` wrote.

    Raises MtkdError where the file is absent, damaged, or not described by the members asked for.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        checksum = about.pop(CHECKSUM, None)
        if checksum is not None and checksum != _checksum(tensors, about):
            raise ValueError("its checksum does not fit")
        if lacking := set(members) - set(about):
            raise ValueError(f"it does not say {', '.join(sorted(lacking))}")
        return tensors, about
    except FileNotFoundError as error:
        raise MtkdError(f"{path} is missing. Train it first, or name the folder that holds it.") from error
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise MtkdError(
            f"{path} is damaged or not one of this project's checkpoints ({error}). "
            f"Restore it, or delete {path.parent} and train again."
        ) from error


def _checksum(tensors: dict[str, Tensor], about: dict) -> int:
    """CRC-32C of a description and of named tensors: names, types, shapes and values."""
    value = google_crc32c.value(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        value = google_crc32c.extend(value, f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        value = google_crc32c.extend(value, tensor.flatten().view(torch.uint8).numpy())
    return value


def save_network(path: Path, network: Network, anatomies: Sequence[str]) -> None:
    """Write a network's weights with its architecture and the anatomies of its heads, in order."""
    write_tensors(path, network.state_dict(), {"arch": network.arch, "anatomies": list(anatomies)})


def load_network(folder: Path, *, anatomies: Sequence[str] | None = None, arch: str | None = None) -> Network:
    """The network in a run's or a teacher's folder, in eval mode on the CPU.

    anatomies, arch: what it has to be. Raises MtkdError where it is another one, or damaged.
    """
    path = Path(folder) / WEIGHTS
    tensors, about = read_tensors(path, "arch", "anatomies")
    if arch is not None and about["arch"] != arch:
        raise MtkdError(f"{path} is a {about['arch']}, not a {arch}. Name the matching --arch or another folder.")
    if anatomies is not None and about["anatomies"] != list(anatomies):
        raise MtkdError(f"{path} knows the anatomies {', '.join(about['anatomies'])}; here they are {', '.join(anatomies)}.")
    network = build(about["arch"], len(about["anatomies"]))
    load_weights(network, tensors, path)
    return network.eval()


def load_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raises MtkdError where the tensors are not the network's, by name, shape or type."""
    for name, own in network.state_dict().items():
        if name in tensors and tensors[name].dtype != own.dtype:
            raise MtkdError(f"{path}: {name} is {tensors[name].dtype}, not {own.dtype}. Bring the file as it was trained.")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MtkdError(f"{path} does not fit its architecture ({first[:120]}). Train it again with this version.") from error


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, about: dict) -> None:
    """Write network and Adam's moments, so that `load_state` goes on as if nothing had happened."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = tensor
    write_tensors(path, tensors, about)


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> dict:
    """Restore what `save_state` wrote and return its description.

    Raises MtkdError where it is the state of a training with another identity, or damaged.
    """
    tensors, about = read_tensors(path, "identity", "history")
    if about["identity"] != identity:
        raise MtkdError(
            f"{path.parent} holds an interrupted training with other settings. Name another folder, or delete {path}."
        )
    load_weights(network, {key.removeprefix("network."): t for key, t in tensors.items() if key.startswith("network.")}, path)
    for name, parameter in network.named_parameters():
        moments = {key: tensors.get(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if moments["step"] is not None:
            optimizer.state[parameter] = {
                key: tensor if key == "step" else tensor.to(parameter.device) for key, tensor in moments.items()
            }
    return about
