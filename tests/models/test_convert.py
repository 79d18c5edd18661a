"""convert-weights: files in the published key layouts, made here, through the architectures as they are really built."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import read_tensors
from mtkd_cache.models.convert import convert_weights, encoder_of, fold_statistics
from mtkd_cache.models.encoders import with_relu
from mtkd_cache.models.network import create_network
from mtkd_cache.models.pretrained import load_pretrained
from mtkd_cache.models.weight_files import Origin, read_origin


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working directory; random weights that are drawn faster than truncated normal ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor.uniform_(-0.04, 0.04))
    torch.manual_seed(0)


def run(*arguments: str):
    return CliRunner().invoke(main, ["convert-weights", *arguments])


def caformer_keys(key: str) -> str:
    """timm's key of a CAFormer -> the one in SurgeNet's metaformer.py."""
    key = key.replace("stem.conv", "downsample_layers.0.conv").replace("stem.norm", "downsample_layers.0.post_norm")
    key = re.sub(r"stages\.(\d)\.downsample\.norm", r"downsample_layers.\1.pre_norm", key)
    key = re.sub(r"stages\.(\d)\.downsample\.conv", r"downsample_layers.\1.conv", key)
    return re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", key).replace("head.norm", "norm")


def pvt_keys(key: str) -> str:
    """timm's key of a PVTv2 -> the one in PVT's pvt_v2.py, which SurgeNet took over."""
    key = re.sub(r"^patch_embed", "patch_embed1", key)
    key = re.sub(r"^stages\.(\d)\.downsample", lambda found: f"patch_embed{int(found[1]) + 1}", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", lambda found: f"block{int(found[1]) + 1}.", key)
    return re.sub(r"^stages\.(\d)\.norm", lambda found: f"norm{int(found[1]) + 1}", key).replace(
        "mlp.dwconv", "mlp.dwconv.dwconv"
    )


def surgenet_caformer(name: str) -> torch.nn.Module:
    """A file as SurgeNet's teacher backbones, 1x1 convolutions as linear layers, and the network that it is of."""
    model = with_relu(timm.create_model("caformer_s18", num_classes=0)).eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    linear = re.compile(r"(pwconv\d|fc\d)\.weight$")
    state = {
        caformer_keys(key): value.flatten(1) if linear.search(key) else value.clone() for key, value in model.state_dict().items()
    }
    torch.save({**state, "head.fc1.weight": torch.zeros(8, 512)}, name)
    return model


@torch.no_grad()
def test_surgenets_caformer_is_timms_with_relu():
    theirs = surgenet_caformer("SurgeNetXL_checkpoint_epoch0050_teacher.pth")
    result = run("SurgeNetXL_checkpoint_epoch0050_teacher.pth", "caformer.safetensors", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["encoder"], told["arch"]) == ("surgenet-caformer_s18", "fpn-surgenet-caformer_s18")
    assert told["license"] == "CC BY-NC-SA 4.0" and "SurgeNet" in told["source"] and "Dresden set" in told["note"]
    network = create_network("fpn-surgenet-caformer_s18", 1).eval()
    load_pretrained(network, "caformer.safetensors")
    images = torch.rand(1, 3, 64, 64)
    features = network.encoder((images - network.mean) / network.std)
    expected = theirs.forward_intermediates((images - network.mean) / network.std, intermediates_only=True)
    for ours, each in zip(features[-4:], expected, strict=True):
        torch.testing.assert_close(ours, each, atol=1e-4, rtol=1e-4)
    assert network(images).shape == (1, 1, 64, 64)


@torch.no_grad()
def test_surgenets_pvt_is_timms():
    theirs = timm.create_model("pvt_v2_b2", num_classes=0).eval()
    state = {f"module.backbone.{pvt_keys(key)}": value for key, value in theirs.state_dict().items()}
    assert "module.backbone.block3.5.mlp.dwconv.dwconv.weight" in state and "module.backbone.patch_embed4.proj.bias" in state
    torch.save({"teacher": state, "epoch": 50, "args": Namespace(arch="pvt")}, "SurgeNet_PVTv2.pth")
    told = convert_weights(Path("SurgeNet_PVTv2.pth"), Path("pvt.safetensors"))
    network = create_network("fpn-tu-pvt_v2_b2", 2).eval()
    load_pretrained(network, "pvt.safetensors")
    images = torch.rand(1, 3, 64, 64)
    features = network.encoder(images)
    expected = theirs.forward_intermediates(images, intermediates_only=True)
    for ours, each in zip(features[-4:], expected, strict=True):
        torch.testing.assert_close(ours, each, atol=1e-4, rtol=1e-4)
    assert (told["arch"], read_origin(Path("pvt.safetensors")).license) == ("fpn-tu-pvt_v2_b2", "CC BY-NC-SA 4.0")
    assert read_tensors(Path("pvt.safetensors"), encoder=str, origin=dict, read=dict)[1]["read"]["name"] == "SurgeNet_PVTv2.pth"


@torch.no_grad()
def test_endovit_is_a_masked_autoencoders_encoder_for_other_input_statistics():
    theirs = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    decoder = {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.weight": torch.zeros(512, 768)}
    torch.save({"model": theirs.state_dict() | decoder, "args": Namespace(model="mae_vit_base_patch16")}, "endovit.pth")
    told = convert_weights(Path("endovit.pth"), Path("endovit.safetensors"))
    assert (told["arch"], told["license"]) == ("dpt-tu-vit_base_patch16_224", "Apache-2.0")
    network = create_network(told["arch"], 1).eval()
    load_pretrained(network, "endovit.safetensors")
    images = torch.rand(1, 3, 224, 224)
    mean, std = torch.tensor([[0.3464, 0.2280, 0.2228], [0.2520, 0.2128, 0.2093]]).view(2, 1, 3, 1, 1)
    ours = network.encoder.model.forward_features((images - network.mean) / network.std)
    torch.testing.assert_close(ours, theirs.forward_features((images - mean) / std), atol=1e-3, rtol=1e-3)
    assert network(images[..., :64, :96]).shape == (1, 1, 64, 96)


def test_folded_statistics_are_the_same_function():
    weight, bias, images = torch.randn(4, 3, 2, 2), torch.randn(4), torch.rand(1, 3, 6, 6)
    trained, given = ((0.3, 0.2, 0.1), (0.2, 0.3, 0.4)), ((0.5, 0.4, 0.3), (0.1, 0.2, 0.5))

    def first(statistics, weight, bias):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
        return torch.nn.functional.conv2d((images - mean) / std, weight, bias, stride=2)

    torch.testing.assert_close(first(given, *fold_statistics(weight, bias, trained, given)), first(trained, weight, bias))


@torch.no_grad()
def test_dinov2_is_resampled_to_patches_of_16():
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    torch.save({**theirs.state_dict(), "mask_token": torch.zeros(1, 384)}, "dinov2_vits14_pretrain.pth")
    told = convert_weights(Path("dinov2_vits14_pretrain.pth"), Path("v2.safetensors"))
    assert (told["arch"], told["license"]) == ("dpt-tu-vit_small_patch14_dinov2", "Apache-2.0")
    network = create_network(told["arch"], 1).eval()
    load_pretrained(network, "v2.safetensors")
    assert network.encoder.model.patch_embed.proj.weight.shape == (384, 3, 16, 16)
    assert torch.equal(network.encoder.model.blocks[3].attn.qkv.weight, theirs.blocks[3].attn.qkv.weight)
    assert network(torch.rand(1, 3, 64, 96)).isfinite().all()


@torch.no_grad()
def test_dinov3_by_its_authors_keys_and_its_origin_by_the_users_word():
    theirs = timm.create_model("vit_small_patch16_dinov3", num_classes=0).eval()
    named = {re.sub(r"gamma_(\d)", r"ls\1.gamma", key): value for key, value in theirs.state_dict().items()}
    state = {key.replace("reg_token", "storage_tokens"): value for key, value in named.items()}
    state |= {f"blocks.{n}.attn.qkv.{end}": torch.zeros(1152) for n in range(12) for end in ("bias", "bias_mask")}
    save_file({**state, "rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}, "vits.safetensors")
    with pytest.raises(MtkdError, match="Add --source and --license"):
        convert_weights(Path("vits.safetensors"), Path("v3.safetensors"))
    told = convert_weights(Path("vits.safetensors"), Path("v3.safetensors"), "DINOv3 on our videos", "CC BY 4.0")
    assert read_origin(Path("v3.safetensors")) == Origin("DINOv3 on our videos", "CC BY 4.0")
    network = create_network(told["arch"], 1).eval()
    load_pretrained(network, "v3.safetensors")
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(network.encoder.model.forward_features(images), theirs.forward_features(images))
    assert network(images).isfinite().all()


@pytest.mark.parametrize(
    ("width", "patch", "more", "name"),
    [
        (384, 16, {"blocks.0.gamma_1": 384}, "tu-vit_small_patch16_dinov3"),
        (1024, 16, {"storage_tokens": 4, "blocks.0.attn.qkv.bias": 3072}, "tu-vit_large_patch16_dinov3_qkvb"),
        (768, 14, {"blocks.0.ls1.gamma": 768}, "tu-vit_base_patch14_dinov2"),
        (768, 14, {"blocks.0.ls1.gamma": 768, "register_tokens": 4}, "tu-vit_base_patch14_reg4_dinov2"),
        (384, 16, {}, "tu-vit_small_patch16_224"),
        (768, 32, {}, None),
        (192, 16, {}, None),
    ],
)
def test_a_vision_transformer_is_told_by_its_keys_and_shapes(width, patch, more, name):
    tensors = {"cls_token": torch.zeros(1, 1, width), "blocks.0.norm1.weight": torch.ones(width)}
    tensors |= {"patch_embed.proj.weight": torch.ones(width, 3, patch, patch)}
    tensors |= {key: torch.ones(length) for key, length in more.items()}
    if name:
        assert encoder_of(tensors, Path("file.pth")) == name
    else:
        with pytest.raises(MtkdError, match="unknown keys"):
            encoder_of(tensors, Path("file.pth"))


class Trap:
    def __reduce__(self):
        return (Path("trapped").touch, ())


def test_bad_files_are_refused_in_a_line_and_nothing_is_written():
    surgenet_caformer("whole.pth")
    whole = torch.load("whole.pth", weights_only=True)
    torch.save({"model": {"x": Trap()}}, "trap.pth")
    torch.save({"weights": [torch.zeros(1)]}, "list.pth")
    torch.save({"layer9.weight": torch.zeros(1), "a": torch.zeros(1)}, "unknown.pth")
    torch.save({**whole, "stages.0.0.extra.weight": torch.zeros(1)}, "more.pth")
    torch.save({key: value for key, value in whole.items() if "stages.2.8." not in key}, "less.pth")
    for name, text in (("text", "no weights"), ("key", "hello"), ("index", "t"), ("cut", "X")):
        Path(f"{name}.pth").write_text(text)
    for name, message in (
        ("trap.pth", "carries code, which is never run"),
        ("list.pth", "is not a state dict of tensors"),
        ("unknown.pth", r"unknown keys \(layer9.weight, a, ...\)"),
        ("more.pth", r"keys or shapes that its architecture lacks: .*stages.0.blocks.0.extra.weight"),
        ("less.pth", r"stages.2.blocks.8.norm1.weight is missing"),
        *((f"{name}.pth", "is refused: it is damaged") for name in ("text", "key", "index", "cut")),
        ("absent.pth", "is no file"),
    ):
        result = run(name, "out.safetensors")
        assert result.exit_code == 1 and re.search(message, result.stderr), (name, result.output)
        assert len(result.stderr.splitlines()) <= 2 and not Path("out.safetensors").exists(), name
    assert not Path("trapped").exists()
    assert run("whole.pth", "out.pth").stderr.startswith("mtkd-cache: out.pth is no name of a .safetensors file")
