"""Teachers that do not fit the device together take turns and say the same; the time of their passes is kept."""

from concurrent.futures import ThreadPoolExecutor

import torch

from mtkd_cache.bench.build import spread_out
from mtkd_cache.build import build as build_cache
from mtkd_cache.cache import LogitCache
from mtkd_cache.ensemble import Ensemble
from mtkd_cache.models import build
from mtkd_cache.units import one_core


def test_one_at_a_time_says_what_all_together_say(accelerator, monkeypatch):
    torch.manual_seed(0)
    networks, images = [spread_out(build("mininetv2", 1)) for _ in range(3)], torch.rand(2, 3, 32, 32)
    together, turns = Ensemble(networks, accelerator), Ensemble(networks, accelerator)
    turns.all_fit = False
    sent: list[tuple[int, str]] = []
    really = torch.nn.Module.to

    def to(self, *arguments, **options):
        if self in networks:
            sent.append((networks.index(self), str(arguments[0])))
        return really(self, *arguments, **options)

    said = [together.native(number, images) for number in (0, 1, 1, 2)]
    monkeypatch.setattr(torch.nn.Module, "to", to)
    for number, before in zip((0, 1, 1, 2), said, strict=True):
        assert torch.equal(turns.native(number, images), before)
    here = str(accelerator.device)
    assert sent == [(0, here), (0, "cpu"), (1, here), (1, "cpu"), (2, here)]
    assert turns.seconds > 0


def test_a_build_by_turns_is_the_same(organ_store, organ_teachers, organ_cache, recipe, accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(Ensemble, "all_fit", property(lambda self: False, lambda self, value: None), raising=False)
    build_cache(organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe(), accelerator)
    turns = LogitCache.open(str(tmp_path / "c.zarr"))
    assert turns.fingerprint == organ_cache.fingerprint and turns.manifest["files"] == organ_cache.manifest["files"]


def test_native_logits_are_the_networks_own(accelerator):
    network, images = spread_out(build("mininetv2", 1)), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = network.native(images)[:, 0]
    said = Ensemble([network], accelerator).native(0, images)
    assert said.dtype == torch.float32 and said.shape == (1, 16, 16)
    torch.testing.assert_close(said, expected, atol=1e-4, rtol=0)


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
