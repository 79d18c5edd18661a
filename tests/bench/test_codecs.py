"""`bench codecs`: every chain restores what it encoded, and writes the bytes of a Zarr array with the same codecs."""

import json

import numpy as np
import pytest
import torch
import zarr
import zarr.codecs.numcodecs as registered
from click.testing import CliRunner
from support import settled
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from mtkd_cache.bench.codecs import STEPS, Chain, _logits, chains
from mtkd_cache.cache.layout import logits_spec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.cli.bench import command
from mtkd_cache.data.augment import to_float

SHAPE = (3, 24, 40)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    """Integers that would fit int8, as smooth as logits are."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:24, :40]
    return np.stack([20 * np.sin(y / 9 + k) * np.cos(x / 7) + random.normal(0, 1, y.shape) for k in range(3)]).astype(np.int16)


@pytest.mark.parametrize("chain", list(chains()), ids=lambda chain: chain.name)
def test_a_chain_restores_what_it_encoded(chain, maps):
    stored = chain.encode(maps.astype(chain.dtype))
    assert np.array_equal(chain.decode(stored, SHAPE), maps)
    with pytest.raises(ValueError, match="checksum"):
        chain.decode(stored[:9] + bytes([stored[9] ^ 4]) + stored[10:], SHAPE)


@pytest.mark.parametrize(
    ("name", "filters", "compressor"),
    [
        ("blosc zstd-5 bitshuffle", (), BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2)),
        ("blosc lz4-5 noshuffle", (), BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=2)),
        ("zstd-5", (), ZstdCodec(level=5)),
        ("gzip-6", (), GzipCodec(level=6)),
        ("delta, zstd-5", (registered.Delta(dtype="<i2"),), ZstdCodec(level=5)),
        (
            "delta, offset 128, blosc zstd-5 shuffle",
            (registered.Delta(dtype="<i2"), registered.FixedScaleOffset(offset=-128, scale=1, dtype="<i2", astype="<u2")),
            BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=2),
        ),
        (
            "anatomy last, blosc zstd-5 bitshuffle",
            (TransposeCodec(order=(1, 2, 0)),),
            BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_a_chain_is_what_zarr_writes(name, filters, compressor, maps):
    store = MemoryStore()
    array = zarr.create_array(
        store, shape=SHAPE, chunks=SHAPE, dtype="int16", filters=filters, compressors=[compressor, Crc32cCodec()]
    )
    array[...] = maps
    chunk = store._store_dict["c/0/0/0"].to_bytes()
    chain = next(chain for chain in chains() if chain.name == name)
    assert len(chain.encode(maps)) == len(chunk)
    assert np.array_equal(chain.decode(chunk, SHAPE), maps) and np.array_equal(array[...], maps)


@pytest.mark.parametrize(
    ("name", "options"),
    [("pcodec-8, delta x 1 times", {"delta_spec": "try_consecutive", "delta_encoding_order": 1}), ("pcodec-8, auto", None)],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_pcodec_is_what_zarr_writes(name, options, maps):
    store = MemoryStore()
    codec = registered.PCodec(level=8, **({"mode_spec": "classic", **options} if options else {}))
    array = zarr.create_array(store, shape=SHAPE, chunks=SHAPE, dtype="int16", serializer=codec, compressors=[Crc32cCodec()])
    array[...] = maps
    chain = next(chain for chain in chains() if chain.name == name)
    assert chain.encode(maps) == store._store_dict["c/0/0/0"].to_bytes()


def test_differences_are_undone_by_a_cumulative_sum_also_where_they_overflow():
    maps = np.array([[[32767, -32767], [-32767, 32767], [5, -1]]], np.int16)
    chain = Chain("", (), deltas=(1, 2))
    stored = np.frombuffer(chain.encode(maps)[:-4], np.int16).reshape(1, 3, 2)
    assert np.array_equal(stored.cumsum(2, np.int16).cumsum(1, np.int16), maps)
    assert np.array_equal(chain.decode(chain.encode(maps), maps.shape), maps)


def test_the_first_chain_is_that_of_the_cache(maps):
    spec = logits_spec(1, 3, (24, 40), 0.25)
    first: Chain = next(chains())
    shard = spec.encode_shard(maps[None, None])
    assert first.encode(maps) in shard


def test_the_logits_of_one_network_for_all_are_in_the_order_of_the_anatomies(organ_store, accelerator):
    network, rows = settled("mininetv2", 2, "joint").eval(), np.array([0, 3])
    info = {anatomy: {"arch": "mininetv2"} for anatomy in organ_store.anatomies}
    teachers = Teachers([network], info, channels=[{"tongue": 0, "kidney": 1}])
    with torch.inference_mode():
        expected = network.native(to_float(torch.from_numpy(organ_store.read(rows)[0])))
    torch.testing.assert_close(_logits(organ_store, teachers, rows, accelerator), expected.flip(1), atol=1e-4, rtol=1e-4)


def test_the_table(organ_store, organ_teachers):
    arguments = ["codecs", "--store", organ_store.url, "--teachers", str(organ_teachers), "--samples", "2"]
    outcome = CliRunner().invoke(command, [*arguments, "--device", "cpu", "--json"], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert (result["samples"], result["anatomies"], result["grid"]) == (2, 2, [32, 32])
    names = {chain.name for chain in chains() if chain.dtype == "int16"}
    for step in STEPS:
        rows = {row["chain"]: row for row in result["rows"] if row["step"] == step}
        assert names <= rows.keys()
        for row in rows.values():
            assert 0 < row["bits_per_logit"] < 20 and row["decode_ms"] > 0 and row["encode_ms"] > 0
            assert 0 < row["max_abs_error"] <= step / 2 and 0 < row["mean_kl_nats"] < 4e-3
    assert "bits/logit" in outcome.stderr
