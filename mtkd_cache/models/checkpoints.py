"""Weights as safetensors that say what they are, and the state from which an interrupted training goes on.

The file's one metadata entry, "about", is a JSON object: what the file is, and the CRC-32C of that and of all tensors.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.models.own import is_own
from mtkd_cache.models.records import RUN, TEACHER, differing_settings, read_json, with_epochs
from mtkd_cache.runtime.accelerator import precision_name
from mtkd_cache.storage.checked_json import digest
from mtkd_cache.storage.folder import write_durably

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
CHECKSUM = "crc32c"
LOG = logging.getLogger(__name__)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write named tensors with a JSON description, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, save(contiguous, {"about": json.dumps({**metadata, CHECKSUM: _checksum(contiguous, metadata)})}))


def read_tensors(path: Path, **members: type) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises MtkdError where the file is absent, unreadable, damaged, or not described by the members asked for, of their types.
    """
    try:
        path.open("rb").close()  # safe_open calls any file missing that it cannot open
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        checksum = metadata.pop(CHECKSUM, None)
        if checksum is not None and checksum != _checksum(tensors, metadata):
            raise ValueError("its checksum does not fit")
        if lacking := [member for member, kind in members.items() if not isinstance(metadata.get(member), kind)]:
            raise ValueError(f"it does not say {', '.join(lacking)}")
        return tensors, metadata
    except FileNotFoundError as error:
        raise MtkdError(f"{path} is missing. Train it first, or name the folder that holds it.") from error
    except OSError as error:
        raise MtkdError(f"{path} cannot be read ({error.strerror}). Make it readable, or name another folder.") from error
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise MtkdError(
            f"{path} is damaged or not one of this project's checkpoints ({error}). "
            f"Restore it, or delete {path.parent} and train again."
        ) from error


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> int:
    """CRC-32C of a description and of named tensors: names, types, shapes and values."""
    value: int = google_crc32c.value(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        value = google_crc32c.extend(value, f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        value = google_crc32c.extend(value, tensor.flatten().view(torch.uint8).numpy())
    return value


def save_network(path: Path, network: Network, anatomies: Sequence[str]) -> None:
    """Write a network's weights with its architecture, its layout, the anatomies of its heads in order, and its source."""
    told: dict[str, Any] = {} if network.layout == "shared" else {"layout": network.layout}  # the only one in earlier versions
    told |= {"source_sha256": network.source_sha256} if network.source_sha256 else {}
    told |= {"batch_norm_eps": network.batch_norm_eps} if network.batch_norm_eps else {}
    write_tensors(path, network.state_dict(), {"arch": network.arch, "anatomies": list(anatomies), **told})


def load_network(folder: Path | str, *, anatomies: Sequence[str] | None = None, arch: str | None = None) -> Network:
    """The network in a run folder or a teacher's folder, in eval mode on the CPU.

    Args:
        folder: holds `weights.safetensors`.
        anatomies: those that its heads must be of, in order.
        arch: the architecture that it must have. The code of a network of your own is imported only where you name it here, and
            a warning is logged where it is not the code that was trained.

    Returns:
        the network, as `create_network` makes it.

    Raises:
        MtkdError: the network is another one, or damaged.
    """
    return load_heads(folder, anatomies, arch)[0]


def check_present(teachers: Path, anatomies: Sequence[str]) -> None:
    """Raises MtkdError, naming all of them, where teachers are missing in a folder."""
    if missing := [anatomy for anatomy in anatomies if not (teachers / anatomy / WEIGHTS).exists()]:
        listed = ", ".join(missing)
        raise MtkdError(
            f"{teachers} has no teacher of {listed}: {missing[0]}/{WEIGHTS} is missing. "
            "Train it first (mtkd-cache train-teachers), or name another folder."
        )


def load_heads(
    folder: Path | str, anatomies: Sequence[str] | None = None, arch: str | None = None
) -> tuple[Network, tuple[str, ...]]:
    """What `load_network` returns, and the anatomies of its heads."""
    path = Path(folder) / WEIGHTS
    tensors, metadata = read_weights(path.parent)
    if arch is not None and metadata["arch"] != arch:
        raise MtkdError(f"{path} is a {metadata['arch']}, not a {arch}. Name the matching --arch or another folder.")
    if anatomies is not None and metadata["anatomies"] != list(anatomies):
        raise MtkdError(f"{path} knows the anatomies {', '.join(metadata['anatomies'])}; here they are {', '.join(anatomies)}.")
    if is_own(metadata["arch"]) and arch is None:
        raise MtkdError(
            f"{path} is a network of your own, {metadata['arch']}, whose code is imported only where you name it. "
            f"Add --arch {metadata['arch']} (in Python arch={metadata['arch']!r})."
        )
    network = create_network(metadata["arch"], len(metadata["anatomies"]), metadata.get("layout"))
    if network.source_sha256 != (trained := metadata.get("source_sha256")):
        code = f"SHA-256 {str(network.source_sha256)[:12]}, trained {str(trained)[:12]}"
        LOG.warning(f"{path}: the file of {network.arch} is not the one that was trained ({code}). Its logits may be others.")
    load_weights(network, tensors, path)
    if eps := metadata.get("batch_norm_eps"):
        network.set_batch_norm_eps(eps)
    network.anatomies, network.folder = tuple(metadata["anatomies"]), path.parent
    return network.eval(), network.anatomies


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights that a training left in a folder, and their description.

    Raises MtkdError where they are missing, damaged, not finite, or not those that the folder's record names.
    """
    path = folder / WEIGHTS
    tensors, metadata = read_tensors(path, arch=str, anatomies=list)
    for name in (RUN, TEACHER):
        recorded = (read_json(folder / name) or {}).get("weights_sha256")
        if recorded is not None and recorded != (found := file_sha256(path)):
            raise MtkdError(
                f"{path} holds other weights than {name} records (SHA-256 {found[:12]}, recorded {recorded[:12]}). "
                f"Restore the recorded weights, or delete {folder} and train again."
            )
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise MtkdError(f"{path} holds NaN or infinity in {broken[0]}. Restore the weights, or delete {folder} and train again.")
    return tensors, metadata


def load_trained(network: Network, folder: Path, anatomies: Sequence[str]) -> None:
    """Load the weights that a training left in a folder into a new network of these anatomies, whose heads are found by name.

    Raises MtkdError where they are damaged, of another architecture, or lack an anatomy.
    """
    path = folder / WEIGHTS
    tensors, about = read_weights(folder)
    if (about["arch"], about.get("layout", "shared")) != (network.arch, network.layout):
        name = f"{about['arch']} ({about.get('layout', 'shared')})"
        raise MtkdError(f"{path} is a {name}, not a {network.arch} ({network.layout}). Name another folder.")
    if missing := [anatomy for anatomy in anatomies if anatomy not in about["anatomies"]]:
        known = ", ".join(about["anatomies"])
        raise MtkdError(f"{path} knows the anatomies {known}, but not {', '.join(missing)}. Name a network that does.")
    if about["anatomies"] != list(anatomies):
        if network.layout == "joint":
            known = ", ".join(about["anatomies"])
            raise MtkdError(f"{path} has one decoder for just {known}. Start from a network with a decoder an anatomy.")
        decoders = {f"decoders.{new}.": f"decoders.{about['anatomies'].index(name)}." for new, name in enumerate(anatomies)}
        pairs = [(key, *prefixes) for key in tensors for prefixes in decoders.items()]
        heads = {new + key.removeprefix(old): tensors[key] for key, new, old in pairs if key.startswith(old)}
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("decoders.")} | heads
    load_weights(network, tensors, path)
    if eps := about.get("batch_norm_eps"):
        network.set_batch_norm_eps(eps)


def load_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raises MtkdError where the tensors are not the network's, by name, shape or type."""
    for name, own in network.state_dict().items():
        if name in tensors and tensors[name].dtype != own.dtype:
            raise MtkdError(f"{path}: {name} is {tensors[name].dtype}, not {own.dtype}. Restore the file that was trained.")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MtkdError(f"{path} does not fit its architecture ({first[:120]}). Train it again with this version.") from error


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, metadata: dict[str, Any]) -> None:
    """Write network and Adam's moments, so that `load_state` goes on as if nothing had happened."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{key}.{name}"] = tensor
    write_tensors(path, tensors, metadata)


def load_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], precision: str
) -> dict[str, Any]:
    """Restore what `save_state` wrote and return its description; a finished training may be continued with more epochs.

    Raises MtkdError where it is the state of a training with other settings or in another precision, or damaged.
    """
    tensors, metadata = read_tensors(path, identity=str, history=list)
    finished = with_epochs(settings, min(len(metadata["history"]), settings["recipe"][settings["kind"]]["epochs"]))
    if metadata["identity"] not in (digest(settings), digest(finished)):
        told = differing_settings(metadata["settings"], settings) if "settings" in metadata else "the recipe, seed or samples"
        raise MtkdError(
            f"{path.parent} holds an interrupted training with other settings: {told}. Name another folder, or delete {path}."
        )
    was, now = (precision_name(name) for name in (metadata.get("precision", precision), precision))  # earlier versions wrote none
    if was != now:
        raise MtkdError(
            f"{path.parent} holds a training interrupted in precision {was}, not {now}. Resume it with --precision {was}."
        )
    load_weights(network, {key.removeprefix("network."): t for key, t in tensors.items() if key.startswith("network.")}, path)
    state = {
        index: {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for index, (name, _) in enumerate(network.named_parameters())
        if f"adam.step.{name}" in tensors
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return metadata
