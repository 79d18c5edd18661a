"""One class for all networks: an encoder with one decoder (teacher, joint student) or a decoder for each anatomy (student)."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from mtkd_cache.errors import MtkdError
from mtkd_cache.models import lraspp, mininetv2, pidnet
from mtkd_cache.models.decoders import DECODERS, smp_parts
from mtkd_cache.models.own import is_own, own_parts
from mtkd_cache.models.parts import Parts

PAPER_ARCHITECTURES = (
    "deeplabv3-resnet18",
    "deeplabv3-resnet50",
    "deeplabv3-efficientnet-b0",
    "deeplabv3-efficientnet-b3",
    "segformer-mit_b0",
    "segformer-mit_b3",
    "mininetv2",
)
WHOLE_NETWORKS = {  # those with decoders of their own, (layout, heads) -> parts
    "mininetv2": mininetv2.parts,
    "pidnet-s": pidnet.parts,
    "lraspp-mobilenet_v3_large": lraspp.parts,
}
LAYOUTS = ("shared", "joint")


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of native logits (B, N, h, w) to `size` = (H, W) with aligned corners, as in smp's heads."""
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


class Network(nn.Module, ModelHubMixin):
    """An encoder and the decoders over it, made by `create_network`. State-dict keys: `encoder.*`, `neck.*`, `decoders.K.*`.

    Images are float RGB in [0, 1]; the network normalizes them with the statistics its encoder was pretrained with.

    `save_pretrained(folder)` and `push_to_hub("USER/MODEL")` are those of huggingface_hub's ModelHubMixin. They write the
    weights and, as long as these are the ones that were loaded, the records and the model card of the run folder too.

    Args:
        arch, layout, heads: as given to `create_network`.
        parts: its modules and what is known of them.

    Attributes:
        arch, layout, heads: as given to `create_network`.
        stride: pixels of the image for each native logit, along each axis (SegFormer 4, DeepLabV3 8, MiniNetV2 2).
        multiple: `native` takes images whose height and width are multiples of it.
        mean, std: (1, 3, 1, 1), subtracted from and dividing the images.
        source_sha256: of the file with the factory, where the network is the user's own.
        batch_norm_eps: of all batch norms, where weights have set it, see `set_batch_norm_eps`.
        anatomies: of the heads, in order; None until the network is loaded or you set it.
        folder: where it was loaded from, of a model on the hub in the hub's local cache; None if it was not.
    """

    mean: Tensor
    std: Tensor
    anatomies: tuple[str, ...] | None = None
    folder: Path | None = None
    _hub_mixin_config: dict[str, Any] = {}  # noqa: RUF012  # without it the mixin copies all of `parts`

    def __init__(self, arch: str, layout: str, heads: int, parts: Parts):
        super().__init__()
        self.arch, self.layout, self.heads = arch, layout, heads
        self._hub_mixin_config = {"arch": arch, "layout": layout, "heads": heads}  # config.json
        self.encoder, self.neck, self.decoders = parts.encoder, parts.neck, nn.ModuleList(parts.decoders)
        self.stride, self.multiple, self.source_sha256 = parts.stride, parts.multiple, parts.source_sha256
        self.batch_norm_eps: float | None = None
        for name, values in zip(("mean", "std"), parts.statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        anatomies: Sequence[str] | None = None,
        arch: str | None = None,
        **options: Any,
    ) -> "Network":
        """A trained network, in eval mode on the CPU.

        Args:
            pretrained_model_name_or_path: a run folder or a teacher's folder as trainings write it, or USER/MODEL on the
                Hugging Face Hub.
            anatomies: those that its heads must be of, in order.
            arch: the architecture that it must have. Code of your own is imported only where you name it here: neither a folder
                nor the hub can make it run.
            options: of `huggingface_hub.snapshot_download`: revision, token, cache_dir, force_download, local_files_only.

        Returns:
            the network, with its `anatomies` and the `folder` of its files, which `Predictor.load` takes.

        Raises:
            MtkdError: there is no such folder or model, the weights are damaged or others than wanted, or they are of a network
                of your own that you do not name.
        """
        from mtkd_cache.models.hub import load  # which needs this class

        return load(pretrained_model_name_or_path, anatomies, arch, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` and `push_to_hub` of the mixin call."""
        from mtkd_cache.models.hub import save

        save(self, Path(save_directory))

    @property
    def params_m(self) -> float:
        """Number of parameters in millions."""
        return sum(parameter.numel() for parameter in self.parameters()) / 1e6

    def native(self, images: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> logits (B, heads, H/stride, W/stride), before the final upsampling.

        heads: only these, in this order; decoders of others are not run. Raises MtkdError where H or W is not a multiple of
        `multiple`.
        """
        _check(images)
        self.check_size((images.shape[3], images.shape[2]))
        features = self.neck(self.encoder((images - self.mean) / self.std))
        if len(self.decoders) < self.heads:
            [joint] = self.decoders
            logits: Tensor = joint(features)
            return logits if heads is None else logits[:, list(heads)]
        decoders = self.decoders if heads is None else [self.decoders[head] for head in heads]
        return torch.cat([decoder(features) for decoder in decoders], dim=1)

    def set_batch_norm_eps(self, eps: float) -> None:
        """Give all batch norms the eps that weights were trained with; checkpoints record it."""
        self.batch_norm_eps = eps
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = eps

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises MtkdError where images of size = (width, height) have no native logits."""
        width, height = size
        if height % self.multiple or width % self.multiple:
            raise MtkdError(
                f"{self.arch} has no native logits of {width}x{height} images: "
                f"width and height must be multiples of {self.multiple}. Resize or pad the images (mtkd-cache ingest --size)."
            )

    def trains_on_one(self, size: tuple[int, int]) -> bool:
        """Whether a batch may be a single image of size = (width, height): not where a batch norm gets one value a channel."""
        values: list[int] = []
        copied = copy.deepcopy(self).eval()
        for module in copied.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0][0, 0].numel()))
        with torch.no_grad():
            copied(torch.zeros(1, 3, size[1], size[0], device=self.mean.device))
        return min(values, default=2) > 1

    def forward(self, images: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], of any size -> logits (B, heads, H, W), of all heads or of those named.

        Where H and W are multiples of `multiple`, this is upsample(native(images), (H, W)). Other images are padded on
        the right and at the bottom by repeating the edge, and the logits are cropped again.
        """
        _check(images)
        height, width = images.shape[-2:]
        images = self.padded(images)
        return upsample(self.native(images, heads), (images.shape[2], images.shape[3]))[..., :height, :width]

    def padded(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), padded on the right and at the bottom to sides that are multiples of `multiple`."""
        right, bottom = -images.shape[3] % self.multiple, -images.shape[2] % self.multiple
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if right or bottom else images


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise MtkdError(
            f"images must be floating-point RGB in [0, 1] of shape (B, 3, H, W), these are {images.dtype} "
            f"{tuple(images.shape)}. Convert them first (uint8: images.float() / 255)."
        )


def create_network(arch: str, heads: int, layout: str | None = None) -> Network:
    """Create a network with random weights, drawn from torch's global generator.

    Args:
        arch: "mininetv2", "pidnet-s", "lraspp-mobilenet_v3_large", or one of smp's decoders ("deeplabv3", "segformer", "unet",
            ...), a hyphen and the name of any smp encoder, as "segformer-mit_b3"; "tu-NAME" is timm's encoder NAME. SegFormer's
            decoder has 768 channels on mit_b2 to mit_b5 and 256 otherwise, which are the paper's parameter counts. Or the user's
            own, "package.module:factory": the factory gets the number of anatomies and returns a module that maps images
            (B, 3, H, W) to logits (B, heads, h, w) of any h and w; its attributes `normalization` (mean, std) and `multiple`, of
            the images' sides, are respected. That module is imported.
        heads: number of anatomies.
        layout: what the anatomies share. "shared" (the default): the encoder, each has a decoder (the paper's student);
            "shared-refine" (MiniNetV2): also the look at the image itself that each of its decoders takes; "joint" (of your own
            the only one): one decoder, whose last layer has a channel for each.

    Returns:
        a module that maps images float (B, 3, H, W) in [0, 1] to logits (B, heads, H, W); its method `native` returns them
        before the upsampling, (B, heads, H/stride, W/stride).

    Raises:
        MtkdError: the decoder or encoder is unknown, they do not fit each other, there is no such layout or factory, or
            heads < 1.

    Reference: Maack et al. 2024, section 3.2; Alonso et al. 2020 for MiniNetV2.
    """
    if heads < 1:
        raise MtkdError(f"a network needs at least one head, not {heads}. Give the number of anatomies.")
    layouts = layouts_of(arch)
    if layout not in (None, *layouts):
        raise MtkdError(f"{arch} has no layout {layout!r}. Give {' or '.join(layouts)}.")
    layout = layout or layouts[0]
    return Network(arch, layout, heads, _parts(arch, layout, heads))


def layouts_of(arch: str) -> tuple[str, ...]:
    """The layouts that an architecture has, its default first."""
    if is_own(arch):
        return ("joint",)
    return mininetv2.LAYOUTS if arch == "mininetv2" else LAYOUTS


def _parts(arch: str, layout: str, heads: int) -> Parts:
    if is_own(arch):
        return own_parts(arch, heads)
    if arch in WHOLE_NETWORKS:
        return WHOLE_NETWORKS[arch](layout, heads)
    decoder_name, _, encoder_name = arch.partition("-")
    if decoder_name in DECODERS and encoder_name:
        return smp_parts(decoder_name, encoder_name, layout, heads)
    others = ", ".join(other for other in WHOLE_NETWORKS if other not in PAPER_ARCHITECTURES)
    raise MtkdError(
        f"unknown architecture {arch!r}. The paper's are {', '.join(PAPER_ARCHITECTURES)}; others are {others}, and "
        f"DECODER-ENCODER, with a decoder ({', '.join(DECODERS)}) and the name of an smp encoder, or package.module:factory."
    )
