"""PIDNet-S and LR-ASPP MobileNetV3-Large: published parameters, parts written naively, torchvision's own network."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import settled
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights, lraspp_mobilenet_v3_large

from mtkd_cache.models import pidnet
from mtkd_cache.models.network import create_network

PUBLISHED = {"pidnet-s": (19, 7.6), "lraspp-mobilenet_v3_large": (21, 3.2)}  # classes; millions of parameters
DOCS = Path(__file__).parents[2] / "docs/students.md"


@pytest.mark.parametrize(("arch", "classes", "millions"), [(arch, *figures) for arch, figures in PUBLISHED.items()])
def test_parameters_are_the_published_ones_and_those_of_the_docs(arch, classes, millions):
    whole = create_network(arch, classes, "joint").params_m
    assert round(whole, 1) == millions
    shared, joint = (create_network(arch, 11, layout).params_m for layout in ("shared", "joint"))
    separate = 11 * create_network(arch, 1).params_m
    row = re.search(rf"^\| `{arch}` \|(.+)\|$", DOCS.read_text(), re.MULTILINE)
    assert row, f"no row of {arch} in {DOCS}"
    told = [float(cell) for cell in row[1].split("|")[1:]]
    assert told == [millions, *(round(value, 2) for value in (whole, shared, joint, separate))]


def test_torchvision_counts_the_same():
    meta = LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.meta
    assert create_network("lraspp-mobilenet_v3_large", 21, "joint").params_m == meta["num_params"] / 1e6


@torch.no_grad()
def test_lraspp_is_torchvisions_own_network_before_its_upsampling():
    network = settled("lraspp-mobilenet_v3_large", 2, "joint")
    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2).eval()
    theirs.backbone.load_state_dict(network.encoder.state_dict())
    theirs.classifier.load_state_dict(network.decoders[0].state_dict())
    images = torch.rand(1, 3, 64, 96)
    native = network.native(images)
    expected = theirs((images - network.mean) / network.std)["out"]
    assert native.shape == (1, 2, 8, 12)
    torch.testing.assert_close(F.interpolate(native, (64, 96), mode="bilinear", align_corners=False), expected)


def norm(layer, x):
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)


@pytest.fixture(scope="module")
def network():
    return settled("pidnet-s", 2, "joint")


@torch.no_grad()
def test_pidnet_gate_is_its_formula(network):
    gate, p, i = network.encoder.pag3, torch.randn(1, 64, 4, 6), torch.randn(1, 64, 2, 3)
    f_x, f_y = (norm(part[1], F.conv2d(x, part[0].weight)) for part, x in ((gate.f_x, p), (gate.f_y, i)))
    up = {"scale_factor": 2, "mode": "bilinear", "align_corners": False}
    agreement = torch.einsum("bchw,bchw->bhw", f_x, F.interpolate(f_y, **up))
    share = (1 / (1 + torch.exp(-agreement)))[:, None]
    torch.testing.assert_close(gate(p, i), share * F.interpolate(i, **up) + (1 - share) * p)


@torch.no_grad()
def test_pidnet_decoder_is_light_bag_and_head(network):
    decoder, (p, i, d) = network.decoders[0], torch.randn(3, 1, 128, 3, 4)
    bag, head, boundary = decoder.dfm, decoder.final_layer, 1 / (1 + torch.exp(-d))
    detail = norm(bag.conv_p[1], F.conv2d(p + (1 - boundary) * i, bag.conv_p[0].weight))
    context = norm(bag.conv_i[1], F.conv2d(boundary * p + i, bag.conv_i[0].weight))
    inner = F.conv2d(F.relu(norm(head.bn1, detail + context)), head.conv1.weight, padding=1)
    expected = F.conv2d(F.relu(norm(head.bn2, inner)), head.conv2.weight, head.conv2.bias)
    torch.testing.assert_close(decoder([p, i, d]), expected)


@torch.no_grad()
def test_pidnet_branches_are_as_deep_as_in_the_paper(network):
    """Seen from the strides and channels that each stage gets, for an image of 128 x 64."""
    seen = {}
    for name, module in network.encoder.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    ends = network.encoder(torch.rand(1, 3, 64, 128))
    assert [tuple(end.shape) for end in ends] == [(1, 128, 8, 16)] * 3
    shapes = {
        (32, 16, 32): ["conv1", "layer1"],
        (64, 8, 16): ["layer2", "layer3_", "layer4_", "layer4_d", "pag3", "pag4"],
        (32, 8, 16): ["layer3_d"],
        (128, 8, 16): ["layer5_", "layer5_d"],
        (128, 4, 8): ["layer3"],
        (64, 4, 8): ["compression3"],
        (32, 4, 8): ["diff3"],
        (256, 2, 4): ["layer4"],
        (64, 2, 4): ["compression4", "diff4"],
        (512, 1, 2): ["layer5"],
        (128, 1, 2): ["spp"],
    }
    assert seen == {name: shape for shape, names in shapes.items() for name in names}
    for handle in network.encoder.children():
        handle._forward_hooks.clear()


@torch.no_grad()
def test_pidnet_residual_blocks_are_their_formulas():
    torch.manual_seed(0)
    basic, x = pidnet.Basic(4, 6, stride=2, relu=True).eval(), torch.randn(1, 4, 6, 8)
    inner = F.relu(norm(basic.bn1, F.conv2d(x, basic.conv1.weight, stride=2, padding=1)))
    inner = norm(basic.bn2, F.conv2d(inner, basic.conv2.weight, padding=1))
    past = norm(basic.downsample[1], F.conv2d(x, basic.downsample[0].weight, stride=2))
    torch.testing.assert_close(basic(x), F.relu(inner + past))
    bottleneck = pidnet.Bottleneck(4, 2).eval()
    inner = F.relu(norm(bottleneck.bn1, F.conv2d(x, bottleneck.conv1.weight)))
    inner = F.relu(norm(bottleneck.bn2, F.conv2d(inner, bottleneck.conv2.weight, padding=1)))
    torch.testing.assert_close(bottleneck(x), x + norm(bottleneck.bn3, F.conv2d(inner, bottleneck.conv3.weight)))
