"""Trained networks on the Hugging Face Hub: a repository there is a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData, snapshot_download

from mtkd_cache.errors import MtkdError, first_line
from mtkd_cache.models.checkpoints import WEIGHTS, load_network, read_weights, save_network
from mtkd_cache.models.network import Network
from mtkd_cache.models.records import RUN, TEACHER
from mtkd_cache.storage.folder import write_durably

CARD = "README.md"
FILES = (WEIGHTS, "*.json", CARD)  # of a run folder, those that others need
METADATA = ModelCardData(
    library_name="mtkd-cache",
    pipeline_tag="image-segmentation",
    tags=["anatomy-segmentation", "knowledge-distillation", "laparoscopy", "medical-imaging"],
)


def load(name: str | Path, anatomies: Sequence[str] | None = None, arch: str | None = None, **options: Any) -> Network:
    """The network in the folder of this name where there is one, else that of the hub's model of this name.

    anatomies, arch: see `load_network`. options: of `huggingface_hub.snapshot_download`.
    Raises MtkdError where there is neither, the hub cannot be reached, or the network is another one or damaged.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=list(FILES), **options))
        except Exception as error:  # the hub's client raises errors of its HTTP library
            raise MtkdError(
                f"{name} is no folder, and no model that the hub hands out here ({first_line(error)}). "
                "Name a run folder, or USER/MODEL on the hub; a private one needs a token (hf auth login)."
            ) from error
    return load_network(folder, anatomies=anatomies, arch=arch)


def save(network: Network, folder: Path) -> None:
    """Write a network's weights, as `load` reads them, and a model card with the hub's metadata.

    If the weights are those that were loaded, all FILES of the folder they came from are copied.

    Raises MtkdError where the anatomies of its heads are not known, and for the folder of another training.
    """
    if network.anatomies is None:
        raise MtkdError("a network is saved with the anatomies of its heads: set network.anatomies, in order, first.")
    if any((folder / name).exists() for name in (RUN, TEACHER)):
        raise MtkdError(f"{folder} holds a training already. Name another folder for the network.")
    if network.folder is not None and _is_unchanged(network, network.folder):
        for path in sorted(path for pattern in FILES for path in network.folder.glob(pattern)):
            write_durably(folder / path.name, path.read_bytes())
    else:
        save_network(folder / WEIGHTS, network, network.anatomies)
    _write_card(folder, network.arch, network.anatomies)


def _is_unchanged(network: Network, folder: Path) -> bool:
    saved, now = read_weights(folder)[0], network.state_dict()
    return saved.keys() == now.keys() and all(torch.equal(tensor, now[name].cpu()) for name, tensor in saved.items())


def _write_card(folder: Path, arch: str, anatomies: Sequence[str]) -> None:
    """Put the hub's metadata in front of the model card in a folder; where there is no card, write a short one."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.exists() else _short_card(arch, anatomies)
    if not text.startswith("---"):  # such metadata
        write_durably(path, f"---\n{METADATA}\n---\n\n{text}".encode())


def _short_card(arch: str, anatomies: Sequence[str]) -> str:
    return f"""# {arch}: {", ".join(anatomies)}

**Research software, no medical device.** It is not validated for clinical use. How well it segments is not recorded here.

```python
import mtkd_cache as mc

network = mc.Network.from_pretrained(NAME)  # images (B, 3, H, W) in [0, 1] -> logits (B, {len(anatomies)}, H, W)
```
"""
