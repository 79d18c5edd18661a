"""Pretrained weights: where they are found, and how they are loaded into a network.

Named weights are looked for in data/weights/ of the working directory, then in the download caches, then online.
The paper says COCO or Cityscapes for convolutional encoders and Cityscapes for SegFormer; what can be fetched of that is
smp-hub's SegFormer on Cityscapes and torchvision's DeepLabV3-ResNet50 on COCO. Other encoders have ImageNet weights, and
MiniNetV2 starts from random initialization (both inferred): its public checkpoints, of Cityscapes and CamVid, are TensorFlow's
and are loaded from a converted file, see docs/students.md.
"""

import os
import re
import urllib.request
from contextlib import suppress
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, LRASPP_MobileNet_V3_Large_Weights

from mtkd_cache.errors import MtkdError, first_line
from mtkd_cache.models import lraspp, mininetv2, pidnet
from mtkd_cache.models.decoders import SmpDecoder
from mtkd_cache.models.network import Network
from mtkd_cache.models.weight_files import read_checkpoint_file, read_weights_file

WEIGHTS = Path("data/weights")
COCO = {  # torchvision's, by architecture
    "deeplabv3-resnet50": DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.url,
    "lraspp-mobilenet_v3_large": LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.url,
}
TIMEOUT_S = 5.0

# torchvision's DeepLabV3 -> smp's, by the beginnings of keys; its last convolution and auxiliary head are for other classes
TORCHVISION = {
    "backbone.": "encoder.",
    "classifier.0.": "decoder.aspp.",
    "classifier.1.": "decoder.conv.",
    "classifier.2.": "decoder.bn.",
}


# published key layouts -> keys with "encoder." and "decoder.", and the last layers of a decoder, which are for other classes
PUBLISHED = {"pidnet-s": pidnet.from_published, "lraspp-mobilenet_v3_large": lraspp.from_published}
LAST_LAYERS = {"mininetv2": ("out.",), "pidnet-s": pidnet.LAST_LAYERS, "lraspp-mobilenet_v3_large": lraspp.LAST_LAYERS}


def paper_source(arch: str) -> str:
    """The named source that the paper used for `arch`, or would have: "cityscapes", "coco", "imagenet" or "none"."""
    if arch in ("mininetv2", "pidnet-s"):
        return "none"
    if arch in COCO:
        return "coco"
    return "cityscapes" if _cityscapes_name(arch) else "imagenet"


def load_pretrained(network: Network, source: str | os.PathLike[str]) -> str:
    """Load pretrained weights into a network, in place. Segmentation heads keep theirs: those in the files are for other classes.

    The first blocks of ResNet50's layers 3 and 4 are dilated less in torchvision's DeepLabV3 than in smp's, so the COCO
    weights are a start for training, not the same network.

    Args:
        network: after a file that does not fit, it may hold a part of it.
        source: "none"; "imagenet" (the encoder); "cityscapes" (segformer-mit_b0 to -mit_b5: the encoder, and the same decoder
            for every head); "coco" (deeplabv3-resnet50, lraspp-mobilenet_v3_large: likewise); or the path of a .safetensors file,
            of a .pth or .pt file, or of a folder with model.safetensors. A file may hold an encoder (keys with or without
            "encoder."), a whole smp model, torchvision's DeepLabV3 or LR-ASPP, PIDNet-S as published, or the variables of a
            TensorFlow checkpoint of MiniNetV2, whose batch norms' eps the network takes over.

    Returns:
        Where the weights came from: a file, or "none".

    Raises:
        MtkdError: the weights do not exist for the network, cannot be reached, are damaged, or do not fit.
    """
    if source == "none":
        return "none"
    if source == "imagenet":
        return _load_imagenet(network)
    path = _named_file(network, str(source)) if source in ("cityscapes", "coco") else _local_file(Path(source))
    read = read_checkpoint_file if network.arch == "pidnet-s" else read_weights_file
    _load_by_key(network, read(path), path)
    return str(path)


def _named_file(network: Network, source: str) -> Path:
    """The file of "cityscapes" or "coco" weights for `network`."""
    if source == "coco" and network.arch in COCO:
        return _coco_file(COCO[network.arch])
    name = _cityscapes_name(network.arch)
    if source == "cityscapes" and name:
        return _hub_file(f"smp-hub/{name}")
    available = {"cityscapes": "segformer-mit_b0 to segformer-mit_b5", "coco": " and ".join(COCO)}[source]
    raise MtkdError(f"{source} weights exist for {available}, not for {network.arch}. Use {paper_source(network.arch)!r}.")


def _cityscapes_name(arch: str) -> str | None:
    match = re.fullmatch(r"segformer-mit_(b[0-5])", arch)
    return f"segformer-{match[1]}-1024x1024-city-160k" if match else None


def _local_file(path: Path) -> Path:
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise MtkdError(
            f"no weights at {path}. Give none, imagenet, cityscapes, coco, an existing .safetensors file, "
            "or the folder of a run or with model.safetensors."
        )
    return path


def _load_imagenet(network: Network) -> str:
    """smp's or, for a tu- encoder, timm's ImageNet weights into the encoder of `network`."""
    name = network.arch.partition("-")[2]
    if name.startswith("tu-"):
        settings = timm.models.get_pretrained_cfg(name.removeprefix("tu-"))
        if not (settings and settings.hf_hub_id):
            raise MtkdError(f"timm has no pretrained weights for {name}. Use 'none' or a local .safetensors file.")
        path = _hub_file(settings.hf_hub_id)
        _load_timm(network, name, path)
        return str(path)
    pretrained = encoders.get(name, {}).get("pretrained_settings", {}).get("imagenet")
    if pretrained is None:
        raise MtkdError(f"no imagenet weights exist for {network.arch}. Use 'none' or a local .safetensors file.")
    path = _hub_file(pretrained["repo_id"], pretrained["revision"])
    _load(network.encoder, read_weights_file(path), path)
    return str(path)


def _load_timm(network: Network, name: str, path: Path) -> None:
    """timm renames a classifier's keys while it creates the encoder, so an encoder is created from the file and copied."""
    overlay = {"state_dict": read_weights_file(path)}
    try:
        encoder = get_encoder(name, weights=True, output_stride=network.encoder.output_stride, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        raise MtkdError(f"{path} does not fit {name}: {first_line(error)}. Use weights of {name}.") from error
    network.encoder.load_state_dict(encoder.state_dict())


def _load_by_key(network: Network, tensors: dict[str, Tensor], path: Path) -> None:
    """Load the tensors of an encoder, of a whole smp model, or of torchvision's DeepLabV3, told apart by their keys."""
    if network.arch in PUBLISHED and not any(key.startswith("encoder.") for key in tensors):
        tensors = PUBLISHED[network.arch](tensors)
    elif network.arch == "mininetv2" and mininetv2.is_tensorflow(tensors):
        tensors = mininetv2.from_tensorflow(tensors)
        network.set_batch_norm_eps(mininetv2.TENSORFLOW_EPS)
    elif any(key.startswith("backbone.") for key in tensors):
        pairs = [(key, *prefixes) for key in tensors for prefixes in TORCHVISION.items()]
        tensors = {new + key.removeprefix(old): tensors[key] for key, old, new in pairs if key.startswith(old)}
    other = ("decoder.", "segmentation_head.")
    encoder = {key.removeprefix("encoder."): tensor for key, tensor in tensors.items() if not key.startswith(other)}
    decoder = {key.removeprefix("decoder."): tensor for key, tensor in tensors.items() if key.startswith("decoder.")}
    if decoder and not (network.arch in LAST_LAYERS or isinstance(network.decoders[0], SmpDecoder)):
        raise MtkdError(f"{path} holds a decoder that is not {network.arch}'s. Use weights of a {network.arch} encoder.")
    _load(network.encoder, encoder, path)
    for head in network.decoders if decoder else ():
        _load_decoder(network, head, decoder, path)


def _load_decoder(network: Network, head: nn.Module, decoder: dict[str, Tensor], path: Path) -> None:
    """Load a decoder's tensors into one of the network's, but for the last layers, and what MiniNetV2's share into the neck."""
    if isinstance(head, SmpDecoder):
        _load(head.decoder, decoder, path)
        return
    if network.layout == "shared-refine":
        _load(network.neck, {key: tensor for key, tensor in decoder.items() if key.startswith("refine.")}, path)
        decoder = {key: tensor for key, tensor in decoder.items() if not key.startswith("refine.")}
    last = LAST_LAYERS[network.arch]
    own = {key: tensor for key, tensor in head.state_dict().items() if key.startswith(last)}
    _load(head, {key: tensor for key, tensor in decoder.items() if not key.startswith(last)} | own, path)


def _load(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """module.load_state_dict (where smp's encoders drop a classifier's keys), with an error that names the first wrong keys."""
    try:
        module.load_state_dict(dict(tensors))
    except (RuntimeError, KeyError) as error:
        expected = module.state_dict()
        wrong = [
            f"{key} is {tuple(tensor.shape)} instead of {tuple(expected[key].shape)}"
            for key, tensor in tensors.items()
            if key in expected and tensor.shape != expected[key].shape
        ]
        wrong += [f"{key} is missing" for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
        wrong += [f"{key} is unknown" for key in tensors if key not in expected]
        raise MtkdError(
            f"{path} does not fit this network's {type(module).__name__}: {'; '.join(wrong[:3]) or first_line(error)} "
            f"({len(wrong)} keys do not fit). Use weights of this architecture."
        ) from error


def _hub_file(repo_id: str, revision: str | None = None) -> Path:
    """model.safetensors of a hub repository: from data/weights/, the hub's local cache, or the hub."""
    folder = WEIGHTS / repo_id.partition("/")[2]
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(repo_id, "model.safetensors", revision=revision, local_files_only=True))
    url = hf_hub_url(repo_id, "model.safetensors", revision=revision)
    try:
        _refuse_offline()
        get_hf_file_metadata(url, timeout=TIMEOUT_S)  # hf_hub_download itself would retry for minutes
        return Path(hf_hub_download(repo_id, "model.safetensors", revision=revision))
    except Exception as error:  # the hub's client raises errors of its HTTP library
        raise _unreachable(url, folder / "model.safetensors", error) from error


def _coco_file(url: str) -> Path:
    """torchvision's file of COCO weights: from data/weights/, torch's download cache, or torchvision's server."""
    name: str = url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    for path in (WEIGHTS / name, cached):
        if path.is_file():
            return path
    try:
        _refuse_offline()
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_S).close()
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=cached.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        raise _unreachable(url, WEIGHTS / name, error) from error
    return cached


def _refuse_offline() -> None:
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")


def _unreachable(url: str, path: Path, error: Exception) -> MtkdError:
    return MtkdError(f"cannot fetch {url}: {first_line(error)}. Download that file elsewhere and put it at {path}.")
