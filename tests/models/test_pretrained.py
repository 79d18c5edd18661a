"""Pretrained weights: checkpoints made here in the very formats of their sources must land where they belong."""

from pathlib import Path

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision.models.segmentation import deeplabv3_resnet50

from mtkd_cache.errors import MtkdError
from mtkd_cache.models import pretrained
from mtkd_cache.models.network import PAPER_ARCHITECTURES, create_network
from mtkd_cache.models.pretrained import load_pretrained, paper_source

REAL = Path(__file__).resolve().parents[3] / "shared/data/weights/efficientnet_lite0_imagenet.safetensors"
COCO_NAME = "deeplabv3_resnet50_coco-cd0a2569.pth"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working directory, empty download caches, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def coco_state():
    """torchvision's own state dict, without the batch counters that its older files lack."""
    state = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def assert_same(module, expected):
    for key, value in module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, expected[key]), key


def with_prefix(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.fixture
def city(tmp_path):
    """A folder as smp-hub has it: SegFormer-B0 of 19 classes, saved by smp."""
    folder = tmp_path / "data/weights/segformer-b0-1024x1024-city-160k"
    model = smp.Segformer("mit_b0", encoder_weights=None, classes=19)
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    return folder, model


@pytest.mark.parametrize("heads", [1, 3])
def test_cityscapes_goes_to_the_encoder_and_every_decoder_but_no_head(city, heads):
    _, model = city
    network = create_network("segformer-mit_b0", heads)
    before = [decoder.head.weight.clone() for decoder in network.decoders]
    assert load_pretrained(network, "cityscapes") == "data/weights/segformer-b0-1024x1024-city-160k/model.safetensors"
    assert_same(network.encoder, model.encoder.state_dict())
    for decoder, head in zip(network.decoders, before, strict=True):
        assert_same(decoder.decoder, model.decoder.state_dict())
        assert torch.equal(decoder.head.weight, head)


def test_an_smp_folder_and_the_file_in_it_are_sources_too(city):
    folder, model = city
    for source in (folder, str(folder), folder / "model.safetensors"):
        network = create_network("segformer-mit_b0", 1)
        assert load_pretrained(network, source) == str(folder / "model.safetensors")
        assert_same(network.decoders[0].decoder, model.decoder.state_dict())


@pytest.mark.parametrize("heads", [1, 3])
def test_coco_goes_to_the_encoder_and_every_decoder_but_no_head(coco_state, heads):
    pretrained.WEIGHTS.mkdir(parents=True)
    torch.save(coco_state, pretrained.WEIGHTS / COCO_NAME)
    network = create_network("deeplabv3-resnet50", heads)
    before = [decoder.head.weight.clone() for decoder in network.decoders]
    assert load_pretrained(network, "coco") == f"data/weights/{COCO_NAME}"
    assert_same(network.encoder, with_prefix(coco_state, "backbone."))
    for decoder, head in zip(network.decoders, before, strict=True):
        assert_same(decoder.decoder.aspp, with_prefix(coco_state, "classifier.0."))
        assert_same(decoder.decoder.conv, with_prefix(coco_state, "classifier.1."))
        assert_same(decoder.decoder.bn, with_prefix(coco_state, "classifier.2."))
        assert torch.equal(decoder.head.weight, head)


def test_coco_is_found_in_torchs_own_download_cache(coco_state, tmp_path):
    cached = tmp_path / "torch/hub/checkpoints" / COCO_NAME
    cached.parent.mkdir(parents=True)
    torch.save(coco_state, cached)
    assert load_pretrained(create_network("deeplabv3-resnet50", 1), "coco") == str(cached)


@torch.no_grad()
def test_coco_decoder_computes_what_torchvisions_does(coco_state, tmp_path):
    torch.save(coco_state, tmp_path / "coco.pth")
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    theirs.load_state_dict(coco_state, strict=False)
    network = create_network("deeplabv3-resnet50", 1).eval()
    load_pretrained(network, tmp_path / "coco.pth")
    features = torch.rand(1, 2048, 6, 8)
    expected = torch.nn.Sequential(*list(theirs.classifier)[:4])(features)
    torch.testing.assert_close(network.decoders[0].decoder([features]), expected)


class Trap:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path("trapped").touch, ())


def test_a_pickle_is_never_executed():
    torch.save({"backbone.conv1.weight": Trap()}, "trap.pth")
    with pytest.raises(MtkdError, match=r"trap\.pth is refused: .* carries code, which is never run") as refused:
        load_pretrained(create_network("mininetv2", 1), "trap.pth")
    assert "weights_only" not in str(refused.value)
    assert not Path("trapped").exists()


def test_a_pth_file_of_something_else_is_refused():
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, "nested.pth")
    with pytest.raises(MtkdError, match=r"nested\.pth is not a state dict"):
        load_pretrained(create_network("mininetv2", 1), "nested.pth")


@pytest.mark.parametrize(
    ("arch", "folder", "classifier"),
    [
        ("deeplabv3-resnet18", "resnet18.imagenet", "fc.weight"),
        ("segformer-mit_b0", "mit_b0.imagenet", "head.weight"),
        ("fpn-timm-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0.imagenet", "classifier.weight"),
    ],
)
def test_imagenet_goes_to_the_encoder_alone(arch, folder, classifier):
    state = create_network(arch, 1).encoder.state_dict()
    (pretrained.WEIGHTS / folder).mkdir(parents=True)
    save_file({**state, classifier: torch.zeros(1000, 2)}, pretrained.WEIGHTS / folder / "model.safetensors")
    network = create_network(arch, 3)
    decoders = {key: value.clone() for key, value in network.decoders.state_dict().items()}
    assert load_pretrained(network, "imagenet") == f"data/weights/{folder}/model.safetensors"
    assert_same(network.encoder, state)
    assert_same(network.decoders, decoders)


def test_imagenet_of_a_timm_encoder_goes_through_timm():
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    name = timm.models.get_pretrained_cfg("resnet18").hf_hub_id.partition("/")[2]
    (pretrained.WEIGHTS / name).mkdir(parents=True)
    save_file(state, pretrained.WEIGHTS / name / "model.safetensors")
    network = create_network("deeplabv3-tu-resnet18", 1)
    load_pretrained(network, "imagenet")
    assert_same(network.encoder, {f"model.{key}": value for key, value in state.items()})


@pytest.mark.parametrize("prefix", ["", "encoder."])
@pytest.mark.parametrize("arch", ["mininetv2", "segformer-mit_b0"])
def test_a_local_encoder_file_may_have_the_encoder_prefix_or_not(prefix, arch):
    state = create_network(arch, 1).encoder.state_dict()
    save_file({prefix + key: value for key, value in state.items()}, "mine.safetensors")
    network = create_network(arch, 3)
    assert load_pretrained(network, "mine.safetensors") == "mine.safetensors"
    assert_same(network.encoder, state)


@pytest.mark.skipif(not REAL.is_file(), reason="the shared weights are not on this machine")
def test_the_real_lite0_file_loads():
    network = create_network("segformer-timm-tf_efficientnet_lite0", 1)
    load_pretrained(network, REAL)
    assert_same(network.encoder, load_file(REAL))


def test_none_changes_nothing():
    network = create_network("mininetv2", 1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert load_pretrained(network, "none") == "none"
    assert_same(network, before)


@pytest.mark.parametrize(
    ("arch", "source", "file"),
    [
        ("segformer-mit_b0", "cityscapes", "data/weights/segformer-b0-1024x1024-city-160k/model.safetensors"),
        ("deeplabv3-resnet50", "coco", f"data/weights/{COCO_NAME}"),
        ("deeplabv3-resnet18", "imagenet", "data/weights/resnet18.imagenet/model.safetensors"),
        ("deeplabv3-efficientnet-b0", "imagenet", "data/weights/efficientnet-b0.imagenet/model.safetensors"),
        ("deeplabv3-tu-resnet18", "imagenet", "data/weights/resnet18.a1_in1k/model.safetensors"),
    ],
)
def test_offline_the_error_says_which_file_to_bring_and_where_to(arch, source, file):
    with pytest.raises(MtkdError) as caught:
        load_pretrained(create_network(arch, 1), source)
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert str(caught.value).endswith(f"put it at {file}.")
    assert "https://" in str(caught.value)


def test_an_unreachable_hub_is_asked_once_and_not_retried(monkeypatch):
    asked = []

    def fail(url, **options):
        asked.append((url, options["timeout"]))
        raise ConnectionError("nobody there")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "get_hf_file_metadata", fail)
    with pytest.raises(MtkdError, match=r"nobody there.*put it at data/weights/mit_b0\.imagenet/model\.safetensors"):
        load_pretrained(create_network("segformer-mit_b0", 1), "imagenet")
    assert len(asked) == 1
    assert asked[0][1] <= 10


@pytest.mark.parametrize(
    ("arch", "source", "instead"),
    [
        ("mininetv2", "imagenet", "none"),
        ("mininetv2", "coco", "none"),
        ("deeplabv3-resnet18", "coco", "imagenet"),
        ("deeplabv3-resnet50", "cityscapes", "coco"),
        ("segformer-resnet18", "cityscapes", "imagenet"),
        ("deeplabv3-dpn68b", "imagenet", "none"),
    ],
)
def test_weights_that_do_not_exist_for_a_network_are_refused(arch, source, instead):
    with pytest.raises(MtkdError, match=f"Use '{instead}'"):
        load_pretrained(create_network(arch, 1), source)


def test_a_source_that_is_nothing_is_refused():
    with pytest.raises(MtkdError, match=r"no weights at nowhere.*cityscapes"):
        load_pretrained(create_network("mininetv2", 1), "nowhere")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_damaged_file_is_refused(content):
    state = create_network("mininetv2", 1).encoder.state_dict()
    save_file(state, "broken.safetensors")
    whole = Path("broken.safetensors").read_bytes()
    Path("broken.safetensors").write_bytes(whole[:-100] if content is None else content)
    with pytest.raises(MtkdError, match=r"broken\.safetensors cannot be read"):
        load_pretrained(create_network("mininetv2", 1), "broken.safetensors")


def missing(state):
    del state["down1.conv.weight"]
    return r"down1\.conv\.weight is missing \(1 keys"


def unknown(state):
    state["down9.conv.weight"] = torch.zeros(1)
    return r"down9\.conv\.weight is unknown \(1 keys"


def reshaped(state):
    state["down1.conv.weight"] = torch.zeros(13, 3, 5, 5)
    return r"down1\.conv\.weight is \(13, 3, 5, 5\) instead of \(13, 3, 3, 3\)"


@pytest.mark.parametrize("damage", [missing, unknown, reshaped])
def test_a_file_that_does_not_fit_is_refused_with_its_first_keys(damage):
    state = create_network("mininetv2", 1).encoder.state_dict()
    message = damage(state)
    save_file(state, "wrong.safetensors")
    with pytest.raises(MtkdError, match=message):
        load_pretrained(create_network("mininetv2", 1), "wrong.safetensors")


@pytest.mark.parametrize("arch", ["segformer-mit_b1", "segformer-resnet18", "fpn-mit_b0", "mininetv2"])
def test_a_whole_model_of_another_architecture_is_refused(city, arch):
    with pytest.raises(MtkdError, match="Use weights"):
        load_pretrained(create_network(arch, 1), city[0])


def test_timm_weights_of_another_encoder_are_refused():
    name = timm.models.get_pretrained_cfg("resnet18").hf_hub_id.partition("/")[2]
    (pretrained.WEIGHTS / name).mkdir(parents=True)
    save_file(timm.create_model("resnet10t").state_dict(), pretrained.WEIGHTS / name / "model.safetensors")
    with pytest.raises(MtkdError, match="does not fit tu-resnet18"):
        load_pretrained(create_network("segformer-tu-resnet18", 1), "imagenet")


def test_paper_sources():
    assert {arch: paper_source(arch) for arch in PAPER_ARCHITECTURES} == {
        "deeplabv3-resnet18": "imagenet",
        "deeplabv3-resnet50": "coco",
        "deeplabv3-efficientnet-b0": "imagenet",
        "deeplabv3-efficientnet-b3": "imagenet",
        "segformer-mit_b0": "cityscapes",
        "segformer-mit_b3": "cityscapes",
        "mininetv2": "none",
    }
    assert paper_source("segformer-timm-tf_efficientnet_lite0") == "imagenet"
