"""Networks: equality with smp's own models, sizes, normalisation, separate decoders, parameters."""

import copy
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F

from mtkd_cache.errors import MtkdError
from mtkd_cache.models import mininetv2
from mtkd_cache.models.decoders import DECODERS
from mtkd_cache.models.encoders import input_statistics
from mtkd_cache.models.network import PAPER_ARCHITECTURES, create_network, upsample
from mtkd_cache.study.parameters import parameter_table

REAL_TIME = ["pidnet-s", "lraspp-mobilenet_v3_large"]
SMALL = ["mininetv2", "segformer-mit_b0", "deeplabv3-efficientnet-b0", "fpn-timm-tf_efficientnet_lite0", *REAL_TIME]
TINY_ENCODER, TINY_TRANSFORMER = "tu-mobilenetv3_small_050", "tu-test_vit"
ANY_DECODER = [f"{name}-{TINY_TRANSFORMER if name == 'dpt' else TINY_ENCODER}" for name in DECODERS]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def networks():
    """One network with two heads of each small architecture, in evaluation mode, BN statistics away from 0 and 1."""
    torch.manual_seed(1)
    made = {arch: create_network(arch, heads=2).eval() for arch in SMALL}
    for network in made.values():
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand_like(buffer) * 0.2 + (1.0 if name.endswith("var") else 0.0))
    return made


@pytest.mark.parametrize("arch", ANY_DECODER)
@torch.no_grad()
def test_any_decoder_is_smps_own_model_before_its_upsampling(arch):
    """With the same random weights from the same seed; the logits have the stride that the table says."""
    decoder, _, encoder = arch.partition("-")
    torch.manual_seed(0)
    theirs = smp.create_model(decoder, encoder, encoder_weights=None, classes=2)
    torch.manual_seed(0)
    ours = create_network(arch, heads=2, layout="joint")
    own = {key.removeprefix("decoders.0."): value for key, value in ours.state_dict().items()}
    others = {re.sub(r"^segmentation_head.(0|head)\b", "head", key): value for key, value in theirs.state_dict().items()}
    assert own.keys() == others.keys()
    if decoder != "dpt":  # whose class draws the head's weights before the decoder's
        assert all(torch.equal(value, others[key]) for key, value in own.items())
    ours.load_state_dict({key: others[key.removeprefix("decoders.0.")] for key in ours.state_dict()})
    side = max(64, ours.multiple)
    images = torch.rand(1, 3, side, side + ours.multiple)
    expected = theirs.eval()((images - ours.mean) / ours.std)
    native = ours.eval().native(images)
    assert native.shape[2:] == (side // ours.stride, (side + ours.multiple) // ours.stride)
    torch.testing.assert_close(upsample(native, images.shape[2:]), expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 1e-4


@pytest.mark.parametrize("arch", ANY_DECODER)
@torch.no_grad()
def test_any_decoder_answers_for_each_anatomy_at_any_size(arch):
    network, images = create_network(arch, 2).eval(), torch.rand(1, 3, 45, 66)
    logits = network(images)
    assert logits.shape == (1, 2, 45, 66)
    torch.testing.assert_close(network(images, [1]), logits[:, 1:], atol=1e-5, rtol=1e-5)
    assert not torch.equal(logits[:, 0], logits[:, 1])


def test_the_table_of_decoders_in_the_docs_is_ours():
    """Stride, multiple of the sides, and the parameters of eleven anatomies, shared and joint."""
    docs = (Path(__file__).parents[2] / "docs/students.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", docs, re.MULTILINE)
    expected = []
    for name, kind in DECODERS.items():
        arch = f"{name}-{'tu-vit_small_patch16_224' if name == 'dpt' else 'resnet18'}"
        with torch.device("meta"):
            millions = [create_network(arch, 11, layout).params_m for layout in ("shared", "joint")]
        expected.append((name, str(kind.stride), str(kind.multiple), *(f"{round(value, 2)}" for value in millions)))
    assert told == expected


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("unetplusplus-mit_b0", "no features at half the size"),
        ("linknet-mit_b0", "no features at half the size"),
        ("dpt-resnet18", "no vision transformer of timm.*tu-vit_small"),
        ("dpt-tu-resnet18", "dpt cannot be put over"),
        ("unet-tu-test_vit", "downsampling pattern"),
        ("unet-tu-swin_tiny_patch4_window7_224", "match model"),
        ("deeplabv3-xception", "does not support dilated mode"),
    ],
)
def test_a_decoder_and_an_encoder_that_do_not_fit_are_refused_in_a_line(arch, reason):
    with pytest.raises(MtkdError, match=reason) as refused:
        create_network(arch, 1)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{arch.partition('-')[0]} cannot be put over the encoder {arch.partition('-')[2]}: ")


@pytest.mark.parametrize("arch", ["mininetv2", "segformer-mit_b0", *REAL_TIME])
@torch.no_grad()
def test_joint_is_one_decoder_whose_channels_are_the_anatomies(arch):
    network, images = create_network(arch, 3, "joint").eval(), torch.rand(1, 3, 64, 64)
    assert len(network.decoders) == 1 and network.heads == 3 and network.layout == "joint"
    assert network.decoders[0](network.encoder((images - network.mean) / network.std)).shape[1] == 3
    logits = network(images)
    torch.testing.assert_close(network(images, [2, 0]), logits[:, [2, 0]])
    assert not torch.equal(logits[:, 0], logits[:, 1])
    with pytest.raises(MtkdError, match=r"has no layout 'together'.*shared .*joint"):
        create_network(arch, 3, "together")


def test_upsample_is_the_naive_corner_aligned_bilinear_formula():
    logits = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    height, width = 7, 9
    expected = np.empty((1, 2, height, width))
    for y in range(height):
        for x in range(width):
            v, u = y * 2 / (height - 1), x * 3 / (width - 1)
            top, left = min(int(v), 1), min(int(u), 2)
            square = logits[:, :, top : top + 2, left : left + 2].numpy()
            weights = np.outer([1 - (v - top), v - top], [1 - (u - left), u - left])
            expected[:, :, y, x] = (square * weights).sum((2, 3))
    np.testing.assert_allclose(upsample(logits, (height, width)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("arch", SMALL)
@torch.no_grad()
def test_forward_is_native_upsampled(networks, arch):
    network, images = networks[arch], torch.rand(2, 3, 64, 96)
    native = network.native(images)
    assert native.shape == (2, 2, 64 // network.stride, 96 // network.stride)
    assert torch.equal(network(images), upsample(native, (64, 96)))


@pytest.mark.parametrize("arch", SMALL)
@torch.no_grad()
def test_any_size_is_padded_with_its_edge_and_cropped(networks, arch):
    network, images = networks[arch], torch.rand(1, 3, 45, 66)
    bottom, right = -45 % network.multiple, -66 % network.multiple
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (0, bottom), (0, right)), mode="edge")
    padded = torch.from_numpy(padded)
    assert network.native(padded).shape[2:] == (padded.shape[2] // network.stride, padded.shape[3] // network.stride)
    logits = network(images)
    assert logits.shape == (1, 2, 45, 66)
    torch.testing.assert_close(logits, upsample(network.native(padded), padded.shape[2:])[:, :, :45, :66])


@pytest.mark.parametrize("arch", SMALL)
def test_native_says_which_multiple_it_needs(networks, arch):
    with pytest.raises(MtkdError, match=f"1284x720.*multiples of {networks[arch].multiple}"):
        networks[arch].native(torch.zeros(1, 3, 720, 1284))


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64), torch.zeros(1, 1, 64, 64)]
)
def test_images_that_are_no_float_rgb_batch_are_refused(networks, images):
    for call in (networks["mininetv2"], networks["mininetv2"].native):
        with pytest.raises(MtkdError, match="RGB in"):
            call(images)


@pytest.mark.parametrize(
    ("arch", "mean", "std"),
    [
        ("mininetv2", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("segformer-mit_b0", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("fpn-timm-tf_efficientnet_lite0", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ],
)
@torch.no_grad()
def test_the_network_normalises_the_images_itself(networks, arch, mean, std):
    network, seen = networks[arch], []
    hook = network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(1, 3, 32, 32)
    network.native(images)
    hook.remove()
    expected = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected)
    assert not {"mean", "std"} & set(network.state_dict())


@pytest.mark.parametrize(
    ("encoder", "in_timm"),
    [
        ("timm-tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ("timm-tf_efficientnet_lite4", "tf_efficientnet_lite4"),
        ("inceptionv4", "inception_v4"),
        ("inceptionresnetv2", "inception_resnet_v2"),
        ("xception", "legacy_xception"),
        ("dpn68", "dpn68"),
        ("mobileone_s0", "mobileone_s0"),
        ("timm-skresnet18", "skresnet18"),
        ("vgg16", "vgg16"),
        ("tu-tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ("tu-resnet18", "resnet18"),
    ],
)
def test_input_statistics_are_those_of_the_same_encoder_in_timm(encoder, in_timm):
    settings = timm.models.get_pretrained_cfg(in_timm)
    np.testing.assert_allclose(input_statistics(encoder), (settings.mean, settings.std), rtol=1e-3)


@pytest.mark.parametrize("arch", SMALL)
@torch.no_grad()
def test_each_head_has_its_own_decoder(networks, arch):
    network, images = networks[arch], torch.rand(1, 3, 32, 64)
    before = network(images)
    saved = {key: value.clone() for key, value in network.decoders[1].state_dict().items()}
    for parameter in network.decoders[1].parameters():
        parameter.add_(torch.rand_like(parameter))
    after = network(images)
    network.decoders[1].load_state_dict(saved)
    assert not torch.equal(before[:, 0], before[:, 1])
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("arch", SMALL)
def test_every_parameter_is_trained_and_every_key_is_the_encoders_or_a_decoders(arch):
    network = create_network(arch, heads=2).train()
    network(torch.rand(2, 3, 64, 64)).square().mean().backward()
    unreached = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    # smp's efficientnets carry a classifier's last convolution, which no decoder uses
    assert {name for name in unreached if not name.startswith(("encoder._conv_head", "encoder._bn1"))} <= {
        "encoder.conv_head.weight",
        "encoder.bn2.weight",
        "encoder.bn2.bias",
    }
    assert {key.split(".")[0] for key in network.state_dict()} == {"encoder", "decoders"}
    assert {key.split(".")[1] for key in network.state_dict() if key.startswith("decoders")} == {"0", "1"}


def test_build_is_seeded_and_opens_no_connection(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for arch in [*SMALL, "segformer-tu-resnet18"]:
        torch.manual_seed(7)
        first = create_network(arch, heads=1).state_dict()
        torch.manual_seed(7)
        second = create_network(arch, heads=1).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet18", "segformer-mit_b3.*smp encoder"),
        ("unest-resnet18", "deeplabv3-resnet18"),
        ("segformer", "mininetv2"),
        ("mininetv2-resnet18", "mininetv2"),
        ("deeplabv3-resnet19", "resnet18"),
        ("deeplabv3-tu-nosuchmodel", "get_encoder_names"),
    ],
)
def test_unknown_architectures_are_refused_with_known_ones(arch, message):
    with pytest.raises(MtkdError, match=message):
        create_network(arch, heads=1)


def test_a_network_has_a_head():
    with pytest.raises(MtkdError, match="at least one head"):
        create_network("mininetv2", heads=0)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_mininetv2_has_the_parameters_of_its_table_block_by_block():
    encoder, decoder = mininetv2.Encoder(), mininetv2.Decoder()
    assert [parameters(block) for block in (encoder.down1, encoder.down2, encoder.down3)] == [383, 7040, 37120]
    assert [parameters(unit) for unit in encoder.shallow] == [4928] * 10
    assert [parameters(unit) for unit in encoder.deep] == [19456] * 16
    assert [unit.far[0].dilation[0] for unit in encoder.deep] == [1, 2, 1, 4, 1, 8, 1, 16, 1, 1, 1, 2, 1, 4, 1, 8]
    assert parameters(decoder.up1) + parameters(decoder.norm) == 73920
    assert parameters(decoder.refine) == 7423
    assert [parameters(unit) for unit in decoder.units] == [4928] * 4
    assert parameters(decoder.out) == 577
    assert (parameters(encoder), parameters(decoder)) == (405_119, 101_632)
    assert create_network("mininetv2", heads=11).params_m == pytest.approx(0.405119 + 11 * 0.101632)


@torch.no_grad()
def test_mininetv2_dilated_unit_is_its_formula():
    unit = mininetv2.DilatedUnit(4, dilation=2).eval()
    x = torch.randn(1, 4, 6, 7)

    def norm(layer, value):
        return F.batch_norm(value, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    near = F.relu(norm(unit.near[1], F.conv2d(x, unit.near[0].weight, padding=1, groups=4)))
    far = F.relu(norm(unit.far[1], F.conv2d(x, unit.far[0].weight, padding=2, dilation=2, groups=4)))
    expected = F.relu(x + norm(unit.pointwise[1], F.conv2d(near + far, unit.pointwise[0].weight)))
    torch.testing.assert_close(unit(x), expected)


@pytest.fixture(scope="module")
def rows():
    return parameter_table()


@torch.no_grad()
def test_mininetv2_decoder_looks_at_the_image_itself():
    decoder, deep = mininetv2.Decoder().eval(), torch.randn(1, 128, 4, 4)
    images = [torch.randn(1, 3, 32, 32) for _ in range(2)]
    first, second = (decoder([image, F.max_pool2d(image, 2), deep]) for image in images)
    assert first.shape == (1, 1, 16, 16)
    assert not torch.allclose(first, second)


def test_mininetv2_pools_the_image_once_for_all_decoders(monkeypatch):
    """And computes, bit by bit, what decoders do that pool it themselves, in training too."""
    network, images = create_network("mininetv2", 3).train(), torch.rand(2, 3, 32, 32)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    pooled, pool = [], torch.nn.MaxPool2d.forward

    def counted(self, x):
        pooled.append(x.shape[1])
        return pool(self, x)

    monkeypatch.setattr(torch.nn.MaxPool2d, "forward", counted)
    own = copy.deepcopy(network)
    for decoder in own.decoders:
        decoder.refine[0].register_forward_pre_hook(lambda _, inputs: inputs[:1])
    gradients = []
    for each in (network, own):
        pooled.clear()
        logits = each(images)
        logits.square().mean().backward()
        gradients.append((pooled.count(3), logits, [parameter.grad for parameter in each.parameters()]))
    (once, logits, grads), (often, expected, expected_grads) = gradients
    assert (once, often) == (1, 4)
    assert torch.equal(logits, expected) and all(map(torch.equal, grads, expected_grads))


def test_shared_refine_looks_at_the_image_once():
    """With equal looks it is the network in which each decoder has its own; its keys tell whose each weight is."""
    shared = create_network("mininetv2", 2).eval()
    network = create_network("mininetv2", 2, "shared-refine").eval()
    state = shared.state_dict()
    for key in [key for key in state if key.startswith("decoders.0.refine")]:
        state[key.replace("decoders.0", "neck")] = state[key.replace("decoders.0", "decoders.1")].copy_(state[key])
    network.load_state_dict({key: tensor for key, tensor in state.items() if not re.match(r"decoders\.\d\.refine", key)})
    images = torch.rand(1, 3, 32, 64)
    looks = []
    network.neck.refine.register_forward_hook(lambda *_: looks.append(1))
    with torch.no_grad():
        assert torch.equal(network(images), shared(images))
        torch.testing.assert_close(network(images, [1]), network(images)[:, 1:])
    assert len(looks) == 3
    assert network.params_m == pytest.approx(0.405119 + 2 * 0.101632 - 0.007423)
    network.train()(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_parameter_table_agrees_with_the_paper(rows):
    assert [(row["arch"], row["layout"]) for row in rows] == [
        (arch, layout) for layout in ("separate", "shared") for arch in PAPER_ARCHITECTURES
    ]
    for row in rows:
        if row["arch"] == "mininetv2":
            assert row["note"]
        else:
            assert row["params_m"] == pytest.approx(row["paper_params_m"], rel=0.01), row
            assert row["note"] == ""
            assert row["arch"].endswith("-" + row["encoder"])
    minis = [row["params_m"] for row in rows if row["arch"] == "mininetv2"]
    assert minis == pytest.approx([5.574, 1.523], abs=1e-3)


@pytest.mark.parametrize("arch", ["mininetv2", "segformer-mit_b0", "deeplabv3-resnet18"])
def test_parameter_table_counts_what_build_makes(rows, arch):
    shared = next(row for row in rows if row["arch"] == arch and row["layout"] == "shared")
    assert shared["params_m"] == pytest.approx(create_network(arch, heads=11).params_m)
