"""Teachers that do not fit the device together take turns and compute the same; the time of their passes is kept."""

from concurrent.futures import ThreadPoolExecutor

import torch
from click.testing import CliRunner
from support import build

from mtkd_cache.bench.build import spread_out
from mtkd_cache.cache.builder import one_core
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import TeacherRunner
from mtkd_cache.cli.build import command
from mtkd_cache.models import mininetv2
from mtkd_cache.models.encoders import IMAGENET
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.models.parts import Parts


def test_one_at_a_time_computes_what_all_at_once_compute(accelerator, monkeypatch):
    torch.manual_seed(0)
    networks, images = [spread_out(create_network("mininetv2", 1)) for _ in range(3)], torch.rand(2, 3, 32, 32)
    together, turns = TeacherRunner(networks, accelerator), TeacherRunner(networks, accelerator)
    turns.all_fit = False
    sent: list[tuple[int, str]] = []
    move = torch.nn.Module.to

    def to(self, *arguments, **options):
        if self in networks:
            sent.append((networks.index(self), str(arguments[0])))
        return move(self, *arguments, **options)

    logits = [together.native(number, images) for number in (0, 1, 1, 2)]
    monkeypatch.setattr(torch.nn.Module, "to", to)
    for number, before in zip((0, 1, 1, 2), logits, strict=True):
        assert torch.equal(turns.native(number, images), before)
    device = str(accelerator.device)
    assert sent == [(0, device), (0, "cpu"), (1, device), (1, "cpu"), (2, device)]
    assert turns.seconds > 0


def test_a_build_by_turns_is_the_same(organ_store, organ_teachers, organ_cache, recipe, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(TeacherRunner, "all_fit", property(lambda self: False, lambda self, value: None), raising=False)
    build(organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe(), accelerator)
    turns = LogitCache.open(str(tmp_path / "c.zarr"))
    assert turns.fingerprint == organ_cache.fingerprint and turns.manifest.files == organ_cache.manifest.files


def test_native_logits_are_the_networks_own(accelerator):
    network, images = spread_out(create_network("mininetv2", 1)), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = network.native(images)[:, 0]
    logits = TeacherRunner([network], accelerator).native(0, images)
    assert logits.dtype == torch.float32 and logits.shape == (1, 16, 16)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_compiled_teachers_compute_the_same_logits(accelerator):
    """On networks of few layers, for each of them takes its time to compile; one compilation serves both."""
    torch.manual_seed(0)

    def teacher() -> Network:
        parts = Parts(mininetv2.Down(3, 8), [torch.nn.Conv2d(8, 1, 3, padding=1)], IMAGENET, stride=2, multiple=2)
        return Network("mininetv2", "shared", 1, parts)

    networks, images = [teacher() for _ in range(2)], torch.rand(2, 3, 32, 32)
    logits = [TeacherRunner(networks, accelerator).native(number, images) for number in range(2)]
    torch._dynamo.utils.counters.clear()
    compiled = TeacherRunner(networks, accelerator, compiled=True)
    for number in range(2):
        torch.testing.assert_close(compiled.native(number, images), logits[number], atol=1e-5, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # an encoder's and a decoder's


def test_build_compiles_its_teachers_where_asked(phantom_store, tmp_path, untrained_teacher, monkeypatch):
    compiled = []
    monkeypatch.setattr("mtkd_cache.cache.teacher_runner.compile_parts", compiled.append)
    for anatomy in phantom_store.anatomies:
        untrained_teacher(tmp_path / "teachers", anatomy)
    arguments = ["--store", phantom_store.url, "--teachers", str(tmp_path / "teachers"), "--device", "cpu"]
    for name, flags, count in (("plain.zarr", [], 0), ("compiled.zarr", ["--compile"], 11)):
        result = CliRunner().invoke(command, [*arguments, "--cache", str(tmp_path / name), *flags], catch_exceptions=False)
        assert result.exit_code == 0 and len(compiled) == count
    first, second = (LogitCache.open(str(tmp_path / name)) for name in ("plain.zarr", "compiled.zarr"))
    assert first.fingerprint == second.fingerprint


def test_a_thread_of_one_core_leaves_the_other_threads_theirs():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_core("figures") as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
            assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
