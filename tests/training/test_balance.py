"""Options against the imbalance of the exclusive cross-entropy: balanced epochs, and heads that start at their prior."""

import math

import numpy as np
import pytest
import torch

from mtkd_cache.errors import MtkdError
from mtkd_cache.models.network import create_network
from mtkd_cache.training.balance import balanced_rows, exclusion_shift, prior_log_odds, start_at_prior
from mtkd_cache.training.signal import NoTeachers
from mtkd_cache.training.student import student_task


def test_every_anatomy_is_drawn_equally_often():
    rows = np.arange(100, 123)
    anatomy = np.repeat([0, 2, 5], [2, 16, 5])
    drawn = balanced_rows(rows, anatomy, 7, 0)
    assert len(drawn) == len(rows)
    counts = [np.unique(drawn[np.isin(drawn, rows[anatomy == each])], return_counts=True)[1] for each in (0, 2, 5)]
    assert sorted(sum(each) for each in counts) == [7, 8, 8]
    assert [max(each) for each in counts] == [4, 1, 2]  # no sample is repeated before all others of its anatomy were drawn
    assert np.array_equal(drawn, balanced_rows(rows, anatomy, 7, 0))
    assert not np.array_equal(drawn, balanced_rows(rows, anatomy, 7, 1))


def test_the_prior_is_the_share_of_foreground_that_a_head_is_trained_on(organ_store):
    rows = organ_store.rows("train")[2:]  # so that the organs differ
    positive, negative = [0, 0], [0, 0]
    for row in rows:
        mask = organ_store.read([row])[1][0] > 0
        for head in (0, 1):
            if head == organ_store.anatomy[row]:
                positive[head] += mask.sum()
                negative[head] += (~mask).sum()
            else:
                negative[head] += mask.sum()
    expected = [math.log((p / (p + n)) / (1 - p / (p + n))) for p, n in zip(positive, negative, strict=True)]
    assert prior_log_odds(organ_store, rows) == pytest.approx(expected)


def test_negatives_by_exclusion_lower_the_log_odds_that_an_anatomys_own_samples_have(organ_store):
    rows = organ_store.rows("train")[2:]
    masks = [organ_store.read([row])[1][0] > 0 for row in rows]
    own = [np.mean([mask for mask, row in zip(masks, rows, strict=True) if organ_store.anatomy[row] == head]) for head in (0, 1)]
    odds = prior_log_odds(organ_store, rows)
    expected = [trained - math.log(share / (1 - share)) for trained, share in zip(odds, own, strict=True)]
    assert exclusion_shift(organ_store, rows) == pytest.approx(expected)
    assert max(expected) < 0


@pytest.mark.parametrize(("arch", "layout"), [("mininetv2", "shared"), ("mininetv2", "joint"), ("segformer-mit_b0", "shared")])
def test_heads_start_at_their_prior(arch, layout):
    torch.manual_seed(0)
    network, images = create_network(arch, 3, layout).eval(), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = network(images)
        start_at_prior(network, [-1.0, -2.0, -3.0])
        torch.testing.assert_close(network(images), before + torch.tensor([-1.0, -2.0, -3.0]).view(1, 3, 1, 1))


def test_a_last_layer_without_a_bias_is_refused():
    network = create_network("mininetv2", 2)
    network.decoders[1].out.bias = None
    with pytest.raises(MtkdError, match=r"student\.prior_bias: mininetv2 has no bias in its last layer"):
        start_at_prior(network, [0.0, 0.0])


def test_the_recipe_chooses(organ_store, recipe, accelerator):
    plain, other = (
        student_task(organ_store, settings, accelerator, NoTeachers(settings, organ_store.size), "off")
        for settings in (recipe(), recipe("student.prior_bias=true", "student.balanced=true"))
    )
    moved = [(b.out.bias - a.out.bias).item() for a, b in zip(plain.network.decoders, other.network.decoders, strict=True)]
    assert moved == pytest.approx(prior_log_odds(organ_store, organ_store.rows("train")), abs=1e-6)
    assert other.steps == plain.steps
    other.rows = organ_store.rows("train")[4:]  # two of the first organ, six of the second
    drawn = organ_store.anatomy[np.concatenate(other.rows_of_epoch(0))]
    assert np.bincount(drawn).tolist() == [4, 4]
