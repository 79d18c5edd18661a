"""SegFormer multiplied out: what it says and learns is what smp's own says and learns, and it holds less meanwhile."""

import pytest
import torch
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.encoders import mix_transformer
from support import settled
from torch import Tensor, nn

from mtkd_cache.models.network import Network
from mtkd_cache.models.segformer import Attention, Decoder, FoldedDecoder, reference_smp

ENCODERS = ["mit_b0", "resnet18"]  # resnet18 has a feature map finer than the decoder's own, and no attention


def network(encoder: str) -> Network:
    made = settled(f"segformer-{encoder}", 2).train()
    for module in made.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.2)
    return made


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance * float(expected.detach().abs().max()), rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("training", [False, True])
def test_says_and_learns_what_smps_own_does(encoder, training):
    ours = network(encoder).train(training).double()
    theirs = reference_smp(ours)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    for one in (ours, theirs):
        torch.manual_seed(1)  # MiT drops paths
        one.logits = one.native(images)
        one.logits.sin().sum().backward()
    close(ours.logits, theirs.logits, 1e-12)
    names = [name for name, _ in ours.named_parameters()]
    assert any("mlp_stage" in name for name in names)
    for name, one, other in zip(names, ours.parameters(), theirs.parameters(), strict=True):
        assert other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, atol=1e-9 * float(other.grad.abs().max()) + 1e-12, rtol=0, msg=name)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        close(one.double(), other.double(), 1e-12)


def test_every_attention_and_decoder_is_folded_into_one():
    kinds = {type(module) for module in network("mit_b0").modules()}
    assert {Attention, Decoder} <= kinds
    assert not {mix_transformer.Attention, SegformerDecoder} & kinds
    own = {type(module) for module in reference_smp(network("mit_b0")).modules()}
    assert {mix_transformer.Attention, SegformerDecoder} <= own
    assert not {Attention, Decoder} & own


@pytest.mark.parametrize("encoder", ENCODERS)
def test_folded_says_the_same(encoder):
    made = network(encoder).eval()
    with torch.no_grad():
        features = made.encoder(torch.rand(1, 3, 64, 96))
        for head in made.decoders:
            close(FoldedDecoder(head.decoder)(features), head.decoder(features))


def test_in_half_precision_it_errs_no_more_than_smps_own():
    ours = network("mit_b0").eval()
    images = torch.rand(1, 3, 64, 96)

    def error(segmenter: Network, exact: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float((segmenter.native(images).float() - exact).square().mean())

    with torch.no_grad():
        exact = ours.native(images)
        assert error(ours, exact) < 2 * error(reference_smp(ours), exact)


def test_attention_drops_as_smps_own_does():
    """With dropout the mean over many draws is the value without it, in training alone."""
    torch.manual_seed(0)
    attention = Attention(8, num_heads=2, attn_drop=0.3, qkv_bias=True).train()
    tokens = torch.randn(1, 12, 8)
    with torch.no_grad():
        drawn = torch.stack([attention(tokens, 3, 4) for _ in range(4000)])
        quiet = attention.eval()(tokens, 3, 4)
        assert torch.equal(quiet, attention(tokens, 3, 4))
    assert float(drawn.std(0).min()) > 0
    close(drawn.mean(0), quiet, 0.05)


def saved_bytes(network: Network, images: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.native(images)
    return sum(kept.values())


def test_it_keeps_less_for_the_backward_pass():
    ours, images = network("mit_b0"), torch.rand(1, 3, 256, 320)
    assert saved_bytes(ours, images) < 0.75 * saved_bytes(reference_smp(ours), images)
