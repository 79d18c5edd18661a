"""Networks by name: run folders as they are, and a hub that is a folder here."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from support import untrained_student

import mtkd_cache as mc
from mtkd_cache.evaluation.model_card import write_card
from mtkd_cache.models import hub
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, save_network
from mtkd_cache.models.records import OperatingPoint, OperatingPoints, write_json

OWN = """
import torch
def net(anatomies):
    return torch.nn.Conv2d(3, anatomies, 1)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a card, and with files that are nobody else's business."""
    folder = untrained_student(tmp_path_factory.mktemp("hub") / "run")
    write_card(folder)
    for name in ("state.safetensors", "pictures-test.csv"):
        (folder / name).write_text("private")
    points = {"kidney": OperatingPoint(threshold=-1.5, images=3, patients=1)}
    chosen = OperatingPoints(store_fingerprint="f", weights_sha256=file_sha256(folder / WEIGHTS), points=points)
    write_json(folder / OperatingPoints.FILE, chosen.to_json())
    return folder


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """The hub's client, whose repositories are folders in tmp_path/hub."""
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, private, exist_ok):
            calls.append(("private", private))
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
            return f"hub/{repo_id}"

    def download(repo_id, *, allow_patterns, **options):
        calls.append((repo_id, options))
        there, here = tmp_path / "hub" / repo_id, tmp_path / "cached" / repo_id
        if not there.is_dir():
            raise FileNotFoundError(f"404 Client Error: {repo_id} not found.\nMore lines.")
        here.mkdir(parents=True)
        for path in (path for pattern in allow_patterns for path in there.glob(pattern)):
            shutil.copy(path, here)
        return str(here)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def logits(network):
    torch.manual_seed(0)
    with torch.inference_mode():
        return network(torch.rand(1, 3, 32, 48))


def test_a_run_folder_is_loaded_as_it_is(run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    network = mc.Network.from_pretrained(run)
    assert not network.training and (network.anatomies, network.folder) == (("kidney", "tongue"), run)
    assert torch.equal(logits(network), logits(mc.load_network(run)))
    assert torch.equal(logits(mc.Network.from_pretrained(str(run), anatomies=["kidney", "tongue"])), logits(network))
    with pytest.raises(mc.MtkdError, match="knows the anatomies kidney, tongue; here they are liver"):
        mc.Network.from_pretrained(run, anatomies=["liver"])
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_what_is_pushed_is_the_run_folder_with_its_card(run, stub, tmp_path):
    assert mc.Network.from_pretrained(run).push_to_hub("user/model", private=True, token="t") == "hub/user/model"
    pushed = tmp_path / "hub/user/model"
    assert {path.name for path in pushed.iterdir()} == {WEIGHTS, "run.json", OperatingPoints.FILE, "README.md", "config.json"}
    assert json.loads((pushed / "config.json").read_text()) == {"arch": "mininetv2", "layout": "shared", "heads": 2}
    metadata, card = (pushed / "README.md").read_text().removeprefix("---\n").split("\n---\n\n", 1)
    assert card == (run / "README.md").read_text() and "library_name: mtkd-cache" in metadata.splitlines()
    loaded = mc.Network.from_pretrained("user/model", revision="v1")
    assert stub == [("token", "t"), ("private", True), ("user/model", {"revision": "v1"})]
    assert torch.equal(logits(loaded), logits(mc.load_network(run)))
    predictor = mc.Predictor.load(loaded.folder)
    assert (predictor.size, predictor.thresholds) == ((48, 32), {"kidney": -1.5, "tongue": 0.0})
    loaded.push_to_hub("user/again")  # what comes from the hub is a run folder, too
    for name in (WEIGHTS, "README.md", "run.json"):
        assert (tmp_path / "hub/user/again" / name).read_bytes() == (pushed / name).read_bytes()


def test_changed_weights_leave_the_records_of_the_old_ones_behind(run, tmp_path):
    network = mc.Network.from_pretrained(run)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    network.save_pretrained(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {WEIGHTS, "README.md", "config.json"}
    assert "no medical device" in (tmp_path / "new/README.md").read_text()
    assert torch.equal(logits(mc.Network.from_pretrained(tmp_path / "new")), logits(network))
    network.save_pretrained(tmp_path / "new")
    with pytest.raises(mc.MtkdError, match=r"run holds a training already\. Name another folder"):
        network.save_pretrained(run)


def test_a_new_network_is_saved_with_its_anatomies(tmp_path):
    network = mc.create_network("mininetv2", 2, "joint").eval()
    with pytest.raises(mc.MtkdError, match=r"set network\.anatomies"):
        network.save_pretrained(tmp_path / "new")
    network.anatomies = ("spleen", "liver")
    network.save_pretrained(tmp_path / "new")
    loaded = mc.Network.from_pretrained(tmp_path / "new")
    assert (loaded.anatomies, loaded.layout) == (network.anatomies, "joint")
    assert torch.equal(logits(loaded), logits(network))


def test_what_is_neither_folder_nor_model_is_named(stub):
    with pytest.raises(mc.MtkdError) as told:
        mc.Network.from_pretrained("user/nothing")
    assert str(told.value).startswith("user/nothing is no folder, and no model that the hub hands out here (404 Client Error")
    assert "More lines" not in str(told.value) and "hf auth login" in str(told.value)


def test_code_of_ones_own_runs_only_where_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "own_student_on_hub.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    arch = "own_student_on_hub:net"
    network = mc.create_network(arch, 2).eval()
    save_network(tmp_path / "run" / WEIGHTS, network, ["kidney", "tongue"])
    del sys.modules["own_student_on_hub"]
    with pytest.raises(mc.MtkdError, match=rf"imported only where you name it\. Add .*in Python arch='{arch}'"):
        mc.Network.from_pretrained(tmp_path / "run")
    assert "own_student_on_hub" not in sys.modules
    assert torch.equal(logits(mc.Network.from_pretrained(tmp_path / "run", arch=arch)), logits(network))
