"""Networks in a folder as one function of images: which folders, which heads."""

import pytest
import torch

from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS, load_network, save_network
from mtkd_cache.models.network import create_network


@pytest.fixture
def run(organ_store, tmp_path):
    """A student's run folder with random weights, without a record."""
    torch.manual_seed(0)
    save_network(tmp_path / "run" / WEIGHTS, create_network("mininetv2", 2), organ_store.anatomies)
    return tmp_path / "run"


def test_a_student_and_teachers_predict_what_their_networks_do(run, organ_store, organ_teachers):
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        student = load_network(run)(images)
        teachers = torch.cat([load_network(organ_teachers / anatomy)(images) for anatomy in organ_store.anatomies], dim=1)
    for folder, layout, expected in ((run, "shared", student), (organ_teachers, "separate", teachers)):
        for anatomies in (None, organ_store.anatomies):
            predictor = Predictor.load(folder, anatomies=anatomies)
            assert (predictor.layout, predictor.arch, predictor.anatomies) == (layout, "mininetv2", organ_store.anatomies)
            assert torch.equal(predictor(images), expected)
        assert torch.allclose(predictor(images, ["tongue"]), expected[:, 1:], atol=1e-6)
        assert torch.allclose(predictor(images, ["tongue", "kidney"]), expected.flip(1), atol=1e-6)


def test_only_the_heads_asked_for_are_run(run):
    predictor, calls = Predictor.load(run), []
    for head, decoder in enumerate(predictor.heads["kidney"][0].decoders):
        decoder.register_forward_hook(lambda *_, head=head: calls.append(head))
    predictor(torch.rand(1, 3, 64, 64), ["tongue"])
    assert calls == [1]


def test_what_is_not_there_is_named(run, organ_teachers, tmp_path):
    with pytest.raises(MtkdError, match=r"nowhere holds neither a student's weights.safetensors nor teachers' ANATOMY/weights"):
        Predictor.load(tmp_path / "nowhere")
    with pytest.raises(MtkdError, match="knows the anatomies kidney, tongue; here they are liver"):
        Predictor.load(run, anatomies=["liver"])
    with pytest.raises(MtkdError, match=r"liver/weights.safetensors is missing"):
        Predictor.load(organ_teachers, anatomies=["liver"])
    assert Predictor.load(organ_teachers, anatomies=["tongue"]).anatomies == ("tongue",)
    (run / "run.json").write_text("{}")
    (run / WEIGHTS).unlink()
    with pytest.raises(MtkdError, match=r"run/weights.safetensors is missing"):
        Predictor.load(run)
