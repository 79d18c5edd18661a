"""Every fast form says what the plain one says: the shard reader what zarr reads, the folded network what the network does."""

import copy
import os
import time

import numpy as np
import pytest
import torch
import zarr
from support import settled

from mtkd_cache.models import mininetv2
from mtkd_cache.models.fast import FORMS, Fast, compile_parts, fastest, folded
from mtkd_cache.models.network import PAPER_ARCHITECTURES, Network
from mtkd_cache.models.parts import IMAGENET, Parts
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.shard_reader import ShardReader
from mtkd_cache.storage.shard_writer import ArraySpec

SPEC = ArraySpec(
    "maps", "int16", (2, 3, 4, 5), ("sample", "view", "anatomy", "y", "x"), fill=-1, shard=4, chunk_item=(1, 3, 4, 5)
)


def write(url: str, values: np.ndarray) -> ShardReader:
    """An array of samples in two views, written shard by shard."""
    folder = Folder(url)
    for key, data in SPEC.metadata(len(values)).items():
        folder.write(key, data)
    for start in range(0, len(values), SPEC.shard):
        for view in range(2):
            data = SPEC.encode_shard(values[start : start + SPEC.shard, view : view + 1])
            folder.write(SPEC.shard_key(start // SPEC.shard, view), data)
    folder.write("zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    return ShardReader(url, folder.zarr()["maps"])


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-99, 99, (6, *SPEC.item)).astype(np.int16)


def read(reader: ShardReader, row: int, view: int) -> np.ndarray:
    out = np.empty(SPEC.chunk_item[1:], np.int16)
    reader.read(row, out, view)
    return out


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path) -> str:
    return str(tmp_path / "a.zarr") if request.param == "local" else f"memory://{tmp_path.name}/a.zarr"


def test_reads_what_zarr_reads(url):
    reader = write(url, values())
    array = zarr.open_group(Folder(url).zarr().store, mode="r")["maps"]
    for row in (5, 0, 3, 4):
        for view in (1, 0):
            np.testing.assert_array_equal(read(reader, row, view), array[row, view])
            np.testing.assert_array_equal(read(reader, row, view), values()[row, view])


def test_a_replaced_shard_is_read_anew(url):
    reader = write(url, values())
    read(reader, 1, 0)
    changed = values(1)
    changed[0] = 0  # its chunk is shorter: all that follow lie elsewhere
    write(url, changed)
    np.testing.assert_array_equal(read(reader, 1, 0), changed[1, 0])


def test_no_flipped_byte_of_a_shard_is_read(tmp_path):
    url = str(tmp_path / "a.zarr")
    reader = write(url, values())
    path = tmp_path / "a.zarr" / SPEC.shard_key(0)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        os.utime(path, ns=(place, place))
        wrong = 0
        for row in range(4):
            try:
                np.testing.assert_array_equal(read(reader, row, 0), values()[row, 0])
            except (ValueError, RuntimeError, OSError):
                wrong += 1
        assert wrong, place


def test_cut_and_missing_shards_are_errors(tmp_path):
    reader = write(str(tmp_path / "a.zarr"), values())
    with pytest.raises(ValueError, match="never written"):
        read(reader, 7, 0)
    path = tmp_path / "a.zarr" / SPEC.shard_key(0)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="checksum"):
        read(reader, 0, 0)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"reshape|checksum"):
        read(reader, 0, 0)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read(reader, 0, 0)


REAL_TIME = ("pidnet-s", "lraspp-mobilenet_v3_large")
LAYOUTS = [("mininetv2", "shared-refine"), ("mininetv2", "joint"), ("segformer-mit_b0", "joint")]


@pytest.mark.parametrize(("arch", "layout"), [*((arch, "shared") for arch in (*PAPER_ARCHITECTURES, *REAL_TIME)), *LAYOUTS])
def test_the_fast_network_says_what_the_plain_one_says(arch, layout):
    network = settled(arch, 2, layout)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quick = folded(network, torch.device("cpu"))
    for shape in ((1, 3, 64, 96), (2, 3, 60, 50)):
        images = torch.rand(shape)
        with torch.inference_mode():
            plain = network(images)
        torch.testing.assert_close(quick(images), plain, atol=1e-4 * float(plain.abs().max()), rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_mininetv2_keeps_no_batch_norm_it_can_fold():
    quick = folded(settled("mininetv2", 2), torch.device("cpu"))
    left = [name for name, module in quick.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all("norm" in name for name in left)  # behind a concatenation or a transposed convolution
    assert len(left) == 3 + 2 * 3


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_the_compiled_network_says_and_learns_what_the_plain_one_does():
    """On a network of few layers, for each of them takes its time to compile: once for evaluation, once forward and backward."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(mininetv2.Down(3, 8), mininetv2.Unit(8))
    parts = Parts(encoder, [torch.nn.Conv2d(8, 1, 3, padding=1) for _ in range(2)], IMAGENET, stride=2, multiple=2)
    network = Network("mininetv2", "shared", 2, parts).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        plain = network(images)
    same(FORMS["compiled"](network, images.device)(images), plain)
    left, right = copy.deepcopy(network), copy.deepcopy(network)
    compile_parts(right)
    assert list(right.state_dict()) == list(left.state_dict())
    for one in (left, right):
        one(images).square().mean().backward()
    for one, other in zip(right.parameters(), left.parameters(), strict=True):
        same(one.grad, other.grad)


def test_the_fastest_form_is_chosen_and_one_that_cannot_be_made_takes_no_part(monkeypatch):
    """Of two forms the slow one and the one that fails are left."""

    class Slow(torch.nn.Module):
        def forward(self, images):
            time.sleep(0.05)
            return images

    class Broken(torch.nn.Module):
        def forward(self, images):
            raise RuntimeError("no compiler")

    network, images = settled("mininetv2", 1), torch.rand(1, 3, 16, 16)
    monkeypatch.setattr(
        "mtkd_cache.models.fast.FORMS", {"slow": lambda *_: Slow(), "broken": lambda *_: Broken(), "folded": folded}
    )
    assert isinstance(fastest(network, images), Fast)


def test_mininetv2_in_place_learns_what_out_of_place_does():
    """Its activations overwrite what nobody needs any more; the gradients are those of the layers written out of place."""
    network, images = settled("mininetv2", 2).train(), torch.rand(2, 3, 32, 32)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    twin = copy.deepcopy(network)
    network(images).square().mean().backward()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "relu_", torch.nn.functional.relu)
        for module in twin.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False
        twin(images).square().mean().backward()
    for parameter, twins in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter.grad, twins.grad)
