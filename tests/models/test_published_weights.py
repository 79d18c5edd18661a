"""Public weights in their published key layouts: PIDNet-S, LR-ASPP and MiniNetV2's TensorFlow checkpoints, made here."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights, lraspp_mobilenet_v3_large

from mtkd_cache.errors import MtkdError
from mtkd_cache.models import pretrained
from mtkd_cache.models.checkpoints import WEIGHTS, load_network, load_trained, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.pretrained import load_pretrained, paper_source


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def same(module, expected, but=("nothing",)):
    for key, value in module.state_dict().items():
        if not key.endswith("num_batches_tracked") and not key.startswith(but):
            assert torch.equal(value, expected[key]), key


def pidnet_file(name: str) -> tuple[dict, dict]:
    """A file as PIDNet's own training leaves it: all keys under `model.`, auxiliary heads, the loss's class weights."""
    made = create_network("pidnet-s", 19, "joint")
    encoder, decoder = made.encoder.state_dict(), made.decoders[0].state_dict()
    others = {"seghead_p.conv2.weight": torch.zeros(19, 128, 1, 1), "seghead_d.bn1.weight": torch.ones(64)}
    state = {f"model.{key}": value for key, value in (encoder | decoder | others).items()}
    torch.save({**state, "sem_loss.criterion.weight": torch.ones(19)}, name)
    return encoder, decoder


@pytest.mark.parametrize("layout", ["shared", "joint"])
def test_pidnets_cityscapes_file_goes_to_the_encoder_and_every_decoder_but_its_last_layer(layout):
    encoder, decoder = pidnet_file("PIDNet_S_Cityscapes_val.pt")
    network = create_network("pidnet-s", 2, layout)
    before = [head.final_layer.conv2.weight.clone() for head in network.decoders]
    assert load_pretrained(network, "PIDNet_S_Cityscapes_val.pt") == "PIDNet_S_Cityscapes_val.pt"
    same(network.encoder, encoder)
    for head, last in zip(network.decoders, before, strict=True):
        same(head, decoder, but="final_layer.conv2.")
        assert torch.equal(head.final_layer.conv2.weight, last)


def test_keys_that_are_not_pidnets_are_named():
    encoder, _ = pidnet_file("whole.pt")
    torch.save({f"model.{key}": value for key, value in encoder.items() if "spp." not in key}, "part.pt")
    with pytest.raises(MtkdError, match=r"part\.pt does not fit .*Encoder: spp\.scale0\.0\.weight is missing") as refused:
        load_pretrained(create_network("pidnet-s", 1), "part.pt")
    assert "\n" not in str(refused.value)
    save_file({**encoder, "backbone.stage9.weight": torch.ones(1)}, "other.safetensors")
    with pytest.raises(MtkdError, match=r"backbone\.stage9\.weight is unknown"):
        load_pretrained(create_network("pidnet-s", 1), "other.safetensors")


def test_torchvisions_lraspp_is_coco_by_name_and_by_file():
    theirs = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).state_dict()
    name = LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.url.rpartition("/")[2]
    pretrained.WEIGHTS.mkdir(parents=True)
    torch.save(theirs, pretrained.WEIGHTS / name)
    assert paper_source("lraspp-mobilenet_v3_large") == "coco"
    for source in ("coco", f"data/weights/{name}"):
        network = create_network("lraspp-mobilenet_v3_large", 3)
        assert load_pretrained(network, source) == f"data/weights/{name}"
        same(network.encoder, {key.removeprefix("backbone."): value for key, value in theirs.items()})
        for head in network.decoders:
            expected = {key.removeprefix("classifier."): value for key, value in theirs.items()}
            same(head, expected, but=("low_classifier.", "high_classifier."))
            assert head.low_classifier.weight.shape[0] == 1


def tensorflow_variables(classes: int = 11, bias: bool = True) -> dict[str, torch.Tensor]:
    """Variables as the public graph makes them: layers of a kind are numbered, tensors are (height, width, in, out)."""
    made: dict[str, int] = {}
    variables: dict[str, torch.Tensor] = {"global_step": torch.tensor(9), "conv2d/kernel/Adam": torch.zeros(3, 3, 3, 13)}

    def layer(kind: str, **shapes: tuple[int, ...]) -> None:
        name = f"{kind}_{made[kind]}" if kind in made else kind
        made[kind] = made.get(kind, 0) + 1
        variables.update({f"{name}/{key}": torch.rand(shape) + 0.5 for key, shape in shapes.items()})

    def norm(width: int) -> None:
        layer("batch_normalization", **dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (width,)))

    def down(inputs: int, outputs: int) -> None:
        layer("conv2d", kernel=(3, 3, inputs, outputs - inputs))
        norm(outputs)

    def separable() -> None:
        layer("separable_conv2d", depthwise_kernel=(3, 3, 64, 1), pointwise_kernel=(1, 1, 64, 64))
        norm(64)

    down(3, 16)
    down(16, 64)
    for _ in range(10):
        separable()
    down(64, 128)
    for _ in range(16):
        for _ in range(2):
            layer("depthwise_conv2d", depthwise_kernel=(3, 3, 128, 1), **({"bias": (128,)} if bias else {}))
            norm(128)
        layer("conv2d", kernel=(1, 1, 128, 128))
        norm(128)
    layer("conv2d_transpose", kernel=(3, 3, 64, 128), bias=(64,))
    norm(64)
    down(3, 16)
    down(16, 64)
    for _ in range(4):
        separable()
    layer("conv2d_transpose", kernel=(3, 3, classes, 64), bias=(classes,))
    return variables


def naive_dilated_unit(variables: dict[str, torch.Tensor], number: int, dilation: int, x: torch.Tensor) -> torch.Tensor:
    """The public graph's unit from its own variables, in its own axes: x (height, width, channels)."""
    height, width, _ = x.shape

    def norm(index: int, y: torch.Tensor) -> torch.Tensor:
        gamma, beta, mean, variance = (
            variables[f"batch_normalization_{index}/{key}"] for key in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (y - mean) / torch.sqrt(variance + 1e-3) + beta

    def depthwise(index: int, step: int) -> torch.Tensor:
        name = f"depthwise_conv2d_{index}" if index else "depthwise_conv2d"
        padded = F.pad(x, (0, 0, step, step, step, step))
        total = torch.zeros_like(x)
        for row in range(3):
            for column in range(3):
                part = padded[row * step : row * step + height, column * step : column * step + width]
                total += variables[f"{name}/depthwise_kernel"][row, column, :, 0] * part
        return total + variables[f"{name}/bias"]

    first = 13 + 3 * number  # batch norms of 2 down, 10 units, 1 down come before
    branches = F.relu(norm(first, depthwise(2 * number, 1))) + F.relu(norm(first + 1, depthwise(2 * number + 1, dilation)))
    return F.relu(x + norm(first + 2, branches @ variables[f"conv2d_{3 + number}/kernel"][0, 0]))


def to_file(variables: dict[str, torch.Tensor], name: str = "mininet.safetensors") -> str:
    save_file({key: value.contiguous() for key, value in variables.items()}, name)
    return name


@torch.no_grad()
def test_a_unit_of_a_converted_tensorflow_checkpoint_computes_what_the_public_graph_does():
    variables = tensorflow_variables()
    network = create_network("mininetv2", 2).eval()
    load_pretrained(network, to_file(variables))
    x = torch.randn(1, 128, 6, 7) / 4
    for number, dilation in ((0, 1), (1, 2), (15, 8)):
        expected = naive_dilated_unit(variables, number, dilation, x[0].permute(1, 2, 0))
        torch.testing.assert_close(network.encoder.deep[number](x)[0].permute(1, 2, 0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["shared", "shared-refine", "joint"])
def test_tensorflows_variables_land_where_they_belong(layout):
    variables = tensorflow_variables(bias=False)
    network = create_network("mininetv2", 2, layout)
    last = [head.out.weight.clone() for head in network.decoders]
    assert load_pretrained(network, to_file(variables)) == "mininet.safetensors"
    encoder = network.encoder

    def kernel(name: str) -> torch.Tensor:
        return variables[name].permute(3, 2, 0, 1)

    assert torch.equal(encoder.down1.conv.weight, kernel("conv2d/kernel"))
    assert torch.equal(encoder.down3.conv.weight, kernel("conv2d_2/kernel"))
    assert torch.equal(encoder.shallow[9].pointwise[0].weight, kernel("separable_conv2d_9/pointwise_kernel"))
    assert torch.equal(encoder.shallow[9].depthwise[0].weight[:, 0].permute(1, 2, 0), _flat(variables, "separable_conv2d_9"))
    assert torch.equal(encoder.shallow[9].pointwise[1].bias, variables["batch_normalization_11/beta"])
    assert torch.equal(encoder.shallow[9].depthwise[1].weight, torch.ones(64))  # a batch norm that the public graph lacks
    assert torch.equal(encoder.deep[15].far[1].running_var, variables["batch_normalization_59/moving_variance"])
    for head, before in zip(network.decoders, last, strict=True):
        refine = network.neck.refine if layout == "shared-refine" else head.refine
        assert torch.equal(head.up1.weight, kernel("conv2d_transpose/kernel"))
        assert torch.equal(head.norm.weight, variables["batch_normalization_61/gamma"])
        assert torch.equal(refine[1].conv.weight, kernel("conv2d_20/kernel"))
        assert torch.equal(head.units[3].depthwise[0].weight[:, 0].permute(1, 2, 0), _flat(variables, "separable_conv2d_13"))
        assert torch.equal(head.units[3].pointwise[1].running_mean, variables["batch_normalization_67/moving_mean"])
        assert torch.equal(head.out.weight, before)


def _flat(variables: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return variables[f"{name}/depthwise_kernel"][:, :, :, 0]


def test_a_variable_that_is_missing_is_named():
    variables = {key: value for key, value in tensorflow_variables().items() if not key.startswith("conv2d_17/")}
    with pytest.raises(MtkdError, match="conv2d_17 is missing"):
        load_pretrained(create_network("mininetv2", 1), to_file(variables))


def test_batch_norm_eps_follows_the_weights_and_is_recorded():
    network = create_network("mininetv2", 1)
    save_network(Path("old") / WEIGHTS, network, ["kidney"])
    load_pretrained(network, to_file(tensorflow_variables()))
    save_network(Path("new") / WEIGHTS, network, ["kidney"])
    started = create_network("mininetv2", 1)
    load_trained(started, Path("new"), ["kidney"])

    def eps(network):
        return {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)}

    assert (eps(load_network("old")), eps(load_network("new")), eps(network), eps(started)) == ({1e-5}, {1e-3}, {1e-3}, {1e-3})
