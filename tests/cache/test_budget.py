"""`build --kl`: the step is the largest that keeps to the budget."""

import json

import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cache.budget import STEPS, largest_step
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError


def naive_kl(maps: torch.Tensor, step: float) -> float:
    p, q = (torch.softmax(each.double().flatten(1) / 4, 1) for each in (maps, torch.round(maps / step) * step))
    return float((p * (p / q).log()).sum(1).mean())


def test_the_largest_step_within_the_budget_is_chosen():
    maps = [spread * torch.randn(3, 24, 20, generator=torch.Generator().manual_seed(spread)) for spread in (3, 9)]
    for budget in (1e-5, 1e-4, 1e-3, 1e-2):
        kls = {step: (naive_kl(maps[0], step) + naive_kl(maps[1], step)) / 2 for step in STEPS}
        step = largest_step(maps, budget, 4.0)
        assert kls[step] <= budget < kls[2 * step]
        assert kls[step] == pytest.approx(step**2 / (24 * 16), rel=0.2)
    with pytest.raises(MtkdError, match=r"even at step 0\.5 the mean KL is larger"):
        largest_step(maps, 1e-5, 4.0, (1.0, 0.5))


def test_a_build_keeps_to_its_budget_and_goes_on_with_its_step(organ_store, organ_teachers, tmp_path):
    at = ["build", "--store", organ_store.url, "--teachers", str(organ_teachers), "--cache", str(tmp_path / "c.zarr"), "--json"]
    built = CliRunner().invoke(main, [*at, "--kl", "2e-3"])
    assert built.exit_code == 0, built.output
    result = json.loads(built.stdout.splitlines()[-1])
    cache = LogitCache.open(str(tmp_path / "c.zarr"))
    assert cache.step == result["step"] == 0.5 and result["mean_kl_nats"] <= 2e-3 and result["max_abs_error"] <= 0.25
    again = CliRunner().invoke(main, [*at, "--kl", "1e-6"])
    assert json.loads(again.stdout.splitlines()[-1])["maps_computed"] == 0
    for wrong, says in ((["--kl", "1e-3", "--step", "1"], "Give either --kl or --step"), (["--kl", "0"], "not in the range")):
        refused = CliRunner().invoke(main, [*at, *wrong])
        assert refused.exit_code != 0 and says in refused.stderr
