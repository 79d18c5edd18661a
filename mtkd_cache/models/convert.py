"""Encoders as their groups publish them -> .safetensors for this project's encoders, with source and license in the file.

Which of timm's encoders a file is of is told by its keys and shapes; timm's own functions map the keys.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from timm.models import eva, metaformer, pvt_v2, vision_transformer
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError, first_line
from mtkd_cache.models.checkpoints import file_sha256, write_tensors
from mtkd_cache.models.encoders import SURGENET_CAFORMER, input_statistics, make_vision_transformer, with_relu
from mtkd_cache.models.parts import Statistics
from mtkd_cache.models.weight_files import Origin, read_checkpoint_file

DRESDEN = "pretrained, without masks, on images of the Dresden set too: its test images are not unseen"
SURGENET = Origin("SurgeNet (Jaspers et al. 2025), github.com/TimJaspers0801/SurgeNet", "CC BY-NC-SA 4.0", DRESDEN)
ORIGINS = {  # by what the published file's name has in it
    r"surgenet|^(cholec|ramie|rarp|public)_checkpoint": SURGENET,
    r"endovit": Origin("EndoViT (Batic et al. 2023), github.com/DominikBatic/EndoViT", "Apache-2.0", DRESDEN),
    r"dinov2_vit": Origin("DINOv2 (Oquab et al. 2023), github.com/facebookresearch/dinov2", "Apache-2.0"),
    r"dinov3_vit": Origin("DINOv3 (Simeoni et al. 2025), github.com/facebookresearch/dinov3", "DINOv3 License"),
}
ENDOVIT: Statistics = ((0.3464, 0.2280, 0.2228), (0.2520, 0.2128, 0.2093))  # of the images it was trained on
SIZES = {384: "small", 768: "base", 1024: "large"}  # of a vision transformer, by its width
PREFIXES = ("module.", "backbone.", "encoder.")
NOT_USED = ("head.", "fc_norm.", "mask_token", "decoder_", "rope_embed.", "local_cls_norm", "dino_head.", "ibot_head.")


def convert_weights(path: Path, out: Path, source: str | None = None, license: str | None = None) -> dict[str, Any]:
    """Convert a published encoder into a file that `weights` of a recipe takes.

    Args:
        path: SurgeNet's CAFormer-S18 or PVTv2-B2, EndoViT, or a vision transformer of DINO, DINOv2 or DINOv3 with timm's or the
            authors' own keys; .safetensors, or a PyTorch file, of which only tensors are read.
        out: a .safetensors file, with keys `encoder.*`.
        source, license: of the weights, where the file's name does not tell, or instead of what it tells.

    Returns:
        out, encoder (as in DECODER-ENCODER), arch (one that takes it), source, license, note, sha256 of the file read.

    Raises:
        MtkdError: the file carries code or is damaged, has unknown keys, or nothing tells its source and license.
    """
    if out.suffix != ".safetensors":
        raise MtkdError(f"{out} is no name of a .safetensors file. Give one.")
    if not path.is_file():
        raise MtkdError(f"{path} is no file. Download the weights first.")
    tensors = {_bare(key): tensor for key, tensor in read_checkpoint_file(path).items()}
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(NOT_USED)}
    name = encoder_of(tensors, path)
    origin = _origin_of(path, name, source, license)
    encoder = _vision_transformer(name, tensors, path, origin) if "vit_" in name else _pyramid(name, tensors, path)
    sha256 = file_sha256(path)
    about = {"encoder": name, "origin": asdict(origin), "read": {"name": path.name, "sha256": sha256}}
    write_tensors(out, {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}, about)
    arch = f"{'dpt' if 'vit_' in name else 'fpn'}-{name}"
    return {"out": str(out), "encoder": name, "arch": arch, **asdict(origin), "sha256": sha256}


def _bare(key: str) -> str:
    """A key without what wraps the encoder in a training: data parallelism, a segmentation model."""
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def encoder_of(tensors: Mapping[str, Tensor], path: Path) -> str:
    """The encoder's name, by keys that only its layout has. Raises MtkdError for any other layout."""
    if "downsample_layers.0.conv.weight" in tensors:
        return "tu-caformer_s18" if "stages.0.0.mlp.act.scale" in tensors else SURGENET_CAFORMER
    if "patch_embed1.proj.weight" in tensors:
        return "tu-pvt_v2_b2"
    size = SIZES.get(tensors["cls_token"].shape[-1]) if "cls_token" in tensors else None
    if size and "blocks.0.norm1.weight" in tensors:
        registers = "_reg4" if {"register_tokens", "reg_token"} & tensors.keys() else ""
        if "storage_tokens" in tensors or "blocks.0.gamma_1" in tensors:
            bias = any(key.endswith(("qkv.bias", "q_bias")) and value.any() for key, value in tensors.items())
            return f"tu-vit_{size}_patch16_dinov3{'_qkvb' if bias else ''}"
        if "blocks.0.ls1.gamma" in tensors:
            return f"tu-vit_{size}_patch14{registers}_dinov2"
        if tensors["patch_embed.proj.weight"].shape[-1] == 16:
            return f"tu-vit_{size}_patch16_224"
    known = "CAFormer-S18, PVTv2-B2, and vision transformers (small, base, large) of MAE, DINO, DINOv2, DINOv3"
    raise MtkdError(f"{path} has unknown keys ({', '.join(list(tensors)[:3])}, ...). Known are {known}.")


def _origin_of(path: Path, name: str, source: str | None, license: str | None) -> Origin:
    """Where the weights come from, by the user's word, by the file's name, or by an architecture that only SurgeNet trained."""
    text = f"{path.name} {source or ''}".lower()
    found = next((origin for pattern, origin in ORIGINS.items() if re.search(pattern, text)), None)
    found = SURGENET if name == SURGENET_CAFORMER else found
    if found is None and not (source and license):
        raise MtkdError(f"{path}: its name does not tell whose weights these are. Add --source and --license.")
    return Origin(
        source or (found.source if found else ""), license or (found.license if found else ""), found.note if found else ""
    )


def _vision_transformer(name: str, tensors: dict[str, Tensor], path: Path, origin: Origin) -> nn.Module:
    """The encoder as DPT takes it, with its weights."""
    encoder = make_vision_transformer(name)
    model: Any = encoder.model
    filters = eva.checkpoint_filter_fn if "dinov3" in name else vision_transformer.checkpoint_filter_fn
    if "dinov2" in name and "mask_token" not in tensors and "register_tokens" in tensors:
        tensors = tensors | {"mask_token": torch.zeros(1)}  # by which timm tells the authors' own keys
    mapped = _mapped(filters, tensors, model, path)
    if re.search("endovit", f"{path.name} {origin.source}".lower()):
        weight, bias = mapped["patch_embed.proj.weight"], mapped["patch_embed.proj.bias"]
        folded = fold_statistics(weight, bias, ENDOVIT, input_statistics(name))
        mapped |= dict(zip(("patch_embed.proj.weight", "patch_embed.proj.bias"), folded, strict=True))
    head = {key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items() if key.startswith("head.")}
    model.load_state_dict(mapped | head)
    return encoder


def _pyramid(name: str, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """The encoder as smp takes it, with its weights."""
    timm_name = "caformer_s18" if name == SURGENET_CAFORMER else name.removeprefix("tu-")
    whole = timm.create_model(timm_name, num_classes=0)
    if name == SURGENET_CAFORMER:
        with_relu(whole)
    _mapped(metaformer.checkpoint_filter_fn if "caformer" in name else pvt_v2.checkpoint_filter_fn, tensors, whole, path)
    encoder: nn.Module = get_encoder(f"tu-{timm_name}", weights=True, pretrained_cfg_overlay={"state_dict": tensors})
    return with_relu(encoder) if name == SURGENET_CAFORMER else encoder


def _mapped(filters: Any, tensors: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The tensors with timm's keys. Raises MtkdError where they are not all of the model's, by key and shape."""
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("head.")}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints what it tries
            mapped: dict[str, Tensor] = filters(dict(tensors), model)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise MtkdError(f"{path} has keys or shapes that its architecture lacks: {first_line(error)}.") from error
    mapped = {key: tensor for key, tensor in mapped.items() if not key.startswith("head.")}
    wrong = [f"{key} is unknown" for key in mapped if key not in own]
    wrong += [f"{key} is missing" for key in own if key not in mapped]
    wrong += [
        f"{key} is {tuple(mapped[key].shape)}, not {tuple(own[key].shape)}"
        for key in own.keys() & mapped.keys()
        if own[key].shape != mapped[key].shape
    ]
    if wrong:
        raise MtkdError(f"{path} does not fit {type(model).__name__}: {'; '.join(wrong[:3])} ({len(wrong)} keys do not fit).")
    return mapped


def fold_statistics(weight: Tensor, bias: Tensor, trained: Statistics, given: Statistics) -> tuple[Tensor, Tensor]:
    """The first convolution (O, 3, h, w), (O) of images normalized by `trained`, for images normalized by `given`.

    For images x = z s0 + m0 the convolution gets (x - m1) / s1 = z s0 / s1 + (m0 - m1) / s1, which is exact without padding.
    """
    (mean, std), (given_mean, given_std) = (torch.tensor(values).view(2, 1, 3, 1, 1) for values in (trained, given))
    return weight * given_std / std, bias + (weight * (given_mean - mean) / std).sum((1, 2, 3))
