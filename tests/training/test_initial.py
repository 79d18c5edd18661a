"""Trainings that start from the weights of another one: which heads, which files, and what is recorded."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.model_card import card_text
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256, load_network, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import RUN, read_run, read_teacher, write_json
from mtkd_cache.models.seen import UNKNOWN, Seen
from mtkd_cache.training.run_folder import start_network
from mtkd_cache.training.student import train_student

ANATOMIES = ("kidney", "liver", "tongue")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student's run folder with heads of three anatomies, without a record."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("runs") / "first"
    save_network(folder / WEIGHTS, create_network("mininetv2", 3), ANATOMIES)
    return folder


@pytest.fixture
def stage(recipe):
    """stage(weights): a teacher's or student's settings that start from these."""
    return lambda weights, **changes: replace(recipe().student, weights=str(weights), **{"arch": "mininetv2", **changes})


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    own, other = left.state_dict(), right.state_dict()
    return own.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in own.items())


def test_a_run_folder_and_the_file_in_it_are_weights(run, stage, store):
    for weights in (run, run / WEIGHTS):
        network, told = start_network(stage(weights), store, ANATOMIES, 0)
        assert same(network, load_network(run))
        assert told["initial_weights"] == {"source": str(run / WEIGHTS), "sha256": file_sha256(run / WEIGHTS)}
        assert told["inherited"] == UNKNOWN


def test_heads_are_found_by_name(run, stage, store):
    source = load_network(run)
    for anatomies, heads in ((("tongue", "kidney"), (2, 0)), (("liver",), (1,))):
        network, _ = start_network(stage(run), store, anatomies, 0)
        assert same(network.encoder, source.encoder)
        assert all(same(network.decoders[new], source.decoders[old]) for new, old in enumerate(heads))


def test_a_teacher_starts_from_the_one_of_its_anatomy(organ_teachers, stage, store):
    network, told = start_network(stage(organ_teachers), store, ["tongue"], 0)
    assert same(network, load_network(organ_teachers / "tongue"))
    assert told["initial_weights"]["source"] == str(organ_teachers / "tongue" / WEIGHTS)


@pytest.mark.parametrize(
    ("anatomies", "arch", "says"),
    [
        (("kidney", "spleen", "stomach"), "mininetv2", "knows the anatomies kidney, liver, tongue, but not spleen, stomach"),
        (ANATOMIES, "segformer-mit_b0", r"is a mininetv2 \(shared\), not a segformer-mit_b0 \(shared\)"),
    ],
)
def test_weights_of_other_networks_are_refused(anatomies, arch, says, run, stage, store):
    with pytest.raises(MtkdError, match=says):
        start_network(stage(run, arch=arch), store, anatomies, 0)


def test_a_teacher_of_another_anatomy_is_no_start(organ_teachers, stage, store):
    with pytest.raises(MtkdError, match="has no teacher of liver"):
        start_network(stage(organ_teachers), store, ["liver"], 0)


def test_a_student_does_not_start_from_teachers(organ_teachers, stage, store):
    with pytest.raises(MtkdError, match=r"no weights at .*organ_teachers"):
        start_network(stage(organ_teachers), store, ["kidney", "tongue"], 0)


def test_the_command_starts_from_a_run_and_records_it(run, store, copy_of, tmp_path):
    first, second = copy_of(run), tmp_path / "second"
    options = ["--store", store.url, "--no-kd", "--run", str(second), "--recipe", "smoke", "--device", "cpu"]
    options += ["--arch", "mininetv2", "--set", "student.epochs=1", "--init-from", str(first)]
    said = CliRunner().invoke(main, ["train-student", *options])
    assert said.exit_code == 0 and "held-out samples that were seen in training: unknown" in said.stderr
    record = read_run(second)
    assert record.initial_weights == {"source": str(first / WEIGHTS), "sha256": file_sha256(first / WEIGHTS)}
    assert record.recipe["student"]["weights"] == str(first) and not record.seen.complete
    assert f"Started from weights: {first}/{WEIGHTS}, SHA-256 {file_sha256(first / WEIGHTS)}" in card_text(second)
    assert CliRunner().invoke(main, ["train-student", *options]).exit_code == 0  # finished, also without the first run's weights
    write_json(
        first / RUN, replace(record, seen=Seen.of(store.hashes[store.rows("test")], [])).to_json() | {"weights_sha256": None}
    )
    refused = CliRunner().invoke(main, ["train-student", *options, "--run", str(tmp_path / "third")])
    assert refused.exit_code == 1 and "initial weights saw 6 of 6 test samples (patient 50)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_the_command_trains_teachers_from_teachers(store, organ_teachers, tmp_path):
    options = ["--store", store.url, "--teachers", str(tmp_path), "--recipe", "smoke", "--device", "cpu", "--anatomy", "kidney"]
    options += ["--arch", "mininetv2", "--set", "teacher.epochs=1", "--init-from", str(organ_teachers)]
    assert CliRunner().invoke(main, ["train-teachers", *options]).exit_code == 0
    assert read_teacher(tmp_path / "kidney").initial_weights["source"] == str(organ_teachers / "kidney" / WEIGHTS)


def test_an_interrupted_training_is_resumed_with_the_weights_it_began_with(run, store, recipe, accelerator, copy_of, monkeypatch):
    first = copy_of(run)
    settings = recipe(f'student.weights="{first}"', "student.arch=mininetv2")

    def train() -> None:
        train_student(store, first.parent / "second", settings, accelerator, None)

    with monkeypatch.context() as patch:
        patch.setattr("mtkd_cache.training.run_folder.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train()
    before = (first / WEIGHTS).read_bytes()
    save_network(first / WEIGHTS, create_network("mininetv2", 3), ANATOMIES)
    with pytest.raises(MtkdError, match=r"other settings: initial_weights\.sha256"):
        train()
    (first / WEIGHTS).write_bytes(before)
    train()
