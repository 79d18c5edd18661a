"""smp's SegFormer with the decoder's linear layers folded into one: the same parameters, keys and outputs (up to rounding), for a
fraction of the time and memory.

Attention never materializes its matrix of weights (Dao et al. 2022, as torch's scaled_dot_product_attention). The decoder
projects each feature map linearly, upsamples, concatenates and mixes linearly again; because upsampling keeps every weighted sum
of channels,

    mix(concat_i(up(A_i f_i + a_i))) = sum_i up(M_i A_i f_i) + sum_i M_i a_i,    mix = (M_1 ... M_n)

so the mixing is done before the upsampling, in one product with the projection.
"""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.encoders import mix_transformer
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Attention(mix_transformer.Attention):  # type: ignore[misc]  # smp is untyped
    """Self-attention over tokens (B, height * width, C), keys and values reduced in space."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, channels = x.shape
        queries = self.q(x).view(batch, tokens, self.num_heads, -1).transpose(1, 2)
        if self.sr_ratio > 1:
            grid = x.transpose(1, 2).reshape(batch, channels, height, width)
            x = self.norm(self.sr(grid).flatten(2).transpose(1, 2))
        keys, values = self.kv(x).view(batch, x.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=self.scale)
        projected: Tensor = self.proj_drop(self.proj(attended.transpose(1, 2).reshape(batch, tokens, channels)))
        return projected


def use_fused_attention(encoder: Module) -> Module:
    """The encoder, its MiT blocks, if it has any, with `Attention`."""
    return _replace_classes(encoder, {mix_transformer.Attention: Attention})


class Decoder(SegformerDecoder):  # type: ignore[misc]
    """An encoder's features, the images first -> (B, width, H/4, W/4)."""

    def forward(self, features: list[Tensor]) -> Tensor:
        _, norm, activation = self.fuse_stage
        fused: Tensor = activation(norm(_fuse(features, *self.products())))
        return fused

    def products(self) -> tuple[list[Tensor], Tensor]:
        """M_i A_i (width, C_i) for each feature map, the coarsest first, and the bias (width), never in half precision."""
        mix = self.fuse_stage[0].weight[:, :, 0, 0]
        linears = [stage.linear for stage in self.mlp_stage]
        with torch.autocast(mix.device.type, enabled=False):
            parts = mix.chunk(len(linears), dim=1)
            weights = [part @ linear.weight for part, linear in zip(parts, linears, strict=True)]
            return weights, mix @ torch.cat([linear.bias for linear in linears])


class FoldedDecoder(nn.Module):
    """A decoder for inference: its products computed once, with its batch norm folded into them."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        norm = decoder.fuse_stage[1]
        with torch.no_grad():
            weights, bias = decoder.products()
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            self.weights = nn.ParameterList(scale[:, None] * weight for weight in weights)
            self.bias = nn.Parameter(scale * (bias - norm.running_mean) + norm.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        return F.relu_(_fuse(features, list(self.weights), self.bias))


def reference_smp(network: Module) -> Module:
    """A copy of a network with smp's own modules, to compare with."""
    return _replace_classes(copy.deepcopy(network), {Attention: mix_transformer.Attention, Decoder: SegformerDecoder})


def _replace_classes(network: Module, replacements: dict[type, type]) -> Module:
    """The network, with the class of its modules replaced by another class of the same parameters."""
    for module in network.modules():
        if type(module) in replacements:
            module.__class__ = replacements[type(module)]
    return network


def _fuse(features: list[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """The sum over feature maps of up(weight f), plus the bias, at a quarter of the images' size."""
    size = [length // 4 for length in features[0].shape[2:]]
    *coarse, fine = zip(features[: -len(weights) - 1 : -1], weights, strict=True)
    total = _project(*fine, bias, size)
    for feature, weight in coarse:
        total += _project(feature, weight, None, size)
    return total


def _project(feature: Tensor, weight: Tensor, bias: Tensor | None, size: list[int]) -> Tensor:
    projected = F.conv2d(feature, weight[:, :, None, None], bias)
    if list(projected.shape[2:]) == size:
        return projected
    return F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
