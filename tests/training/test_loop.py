"""Both stages: finished work is left alone, interrupted work goes on bit for bit, a loss that is not finite stops."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file, save_file

from mtkd_cache.cache.loader import epoch_batches
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.augment import apply_views, draw_views
from mtkd_cache.data.dresden import Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.losses import exclusive_cross_entropy
from mtkd_cache.models.checkpoints import STATE, WEIGHTS, load_network, read_tensors, write_tensors
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import RUN, TEACHER, RunRecord, TeacherRecord, read_json, read_run, read_teacher
from mtkd_cache.recipe import seed_for
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.storage.folder import LOCK, Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.training import loop as training
from mtkd_cache.training.metrics import GRID
from mtkd_cache.training.optimizer import learning_rates
from mtkd_cache.training.student import train_student
from mtkd_cache.training.teachers import teacher_task, train_teachers


def weights(folder) -> dict:
    return read_tensors(folder / WEIGHTS)[0]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def interrupt(monkeypatch):
    """Let the training end, as if it were killed, after the state of its first epoch is written."""

    def arm() -> None:
        whole = training.save_state

        def save(*arguments) -> None:
            whole(*arguments)
            monkeypatch.setattr(training, "save_state", whole)
            raise KeyboardInterrupt

        monkeypatch.setattr(training, "save_state", save)

    return arm


def test_a_compiled_training_compiles_its_network(organ_store, recipe, accelerator, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(training, "compile_parts", compiled.append)
    train_teachers(organ_store, tmp_path, recipe("teacher.epochs=1"), accelerator, ["kidney"], compiled=True)
    settings = recipe("student.epochs=1")
    record = train_student(organ_store, tmp_path / "run", settings, accelerator, None, compiled=True)
    assert [network.heads for network in compiled] == [1, 2]
    assert 0 < record.warm_up_seconds <= record.seconds_per_epoch
    train_student(organ_store, tmp_path / "plain", settings, accelerator, None)
    assert len(compiled) == 2


def test_a_teacher_goes_on_bit_for_bit_and_is_not_trained_twice(organ_store, recipe, accelerator, tmp_path, interrupt):
    train_teachers(organ_store, tmp_path / "whole", recipe(), accelerator, ["kidney"])
    interrupt()
    with pytest.raises(KeyboardInterrupt):
        train_teachers(organ_store, tmp_path / "broken", recipe(), accelerator, ["kidney"])
    assert (tmp_path / "broken" / "kidney" / STATE).exists()
    records = train_teachers(organ_store, tmp_path / "broken", recipe(), accelerator, ["kidney"])
    assert len(records["kidney"].history) == 2
    assert same(weights(tmp_path / "whole" / "kidney"), weights(tmp_path / "broken" / "kidney"))
    before = (tmp_path / "broken" / "kidney" / WEIGHTS).stat().st_mtime_ns
    train_teachers(organ_store, tmp_path / "broken", recipe(), accelerator, ["kidney"])
    assert (tmp_path / "broken" / "kidney" / WEIGHTS).stat().st_mtime_ns == before
    (tmp_path / "broken" / "kidney" / WEIGHTS).unlink()
    train_teachers(organ_store, tmp_path / "broken", recipe(), accelerator, ["kidney"])
    assert same(weights(tmp_path / "whole" / "kidney"), weights(tmp_path / "broken" / "kidney"))
    with pytest.raises(MtkdError, match=r"other settings: teacher.lr 0.0005 \(now 0.001\). Name another"):
        train_teachers(organ_store, tmp_path / "broken", recipe("teacher.lr=1e-3"), accelerator, ["kidney"])


def test_an_interrupted_training_with_other_settings_is_refused(organ_store, recipe, accelerator, tmp_path, interrupt):
    interrupt()
    with pytest.raises(KeyboardInterrupt):
        train_teachers(organ_store, tmp_path, recipe(), accelerator, ["kidney"])
    changes = r"arch mininetv2 \(now segformer-mit_b0\), teacher.arch mininetv2 \(now segformer-mit_b0\)"
    for other, told in (("seed=5", r"seed 0 \(now 5\)"), ("teacher.arch=segformer-mit_b0", changes)):
        with pytest.raises(MtkdError, match=f"other settings: {told}. Name another"):
            train_teachers(organ_store, tmp_path, recipe(other), accelerator, ["kidney"])
    state = tmp_path / "kidney" / STATE
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(MtkdError, match=f"is damaged .* delete {tmp_path}/kidney and train again"):
        train_teachers(organ_store, tmp_path, recipe(), accelerator, ["kidney"])


def test_the_students_two_arms(organ_store, organ_cache, recipe, accelerator, tmp_path, interrupt):
    def train(name: str, cache: LogitCache | None, resident: str = "auto", *overrides: str) -> RunRecord:
        return train_student(organ_store, tmp_path / name, recipe(*overrides), accelerator, cache, resident)

    record = train("host", organ_cache, "host")
    assert record.cache_fingerprint == organ_cache.fingerprint
    assert all({"cross_entropy", "kl", "loss", "val_dice"} <= set(row) for row in record.history)
    first = record.history[0]
    assert first["loss"] == pytest.approx(first["cross_entropy"] + 3 * first["kl"], rel=1e-4)
    interrupt()
    with pytest.raises(KeyboardInterrupt):
        train("streamed", organ_cache, "off")
    train("streamed", organ_cache, "off")
    assert same(weights(tmp_path / "host"), weights(tmp_path / "streamed"))
    baseline = train("baseline", None)
    assert baseline.cache_fingerprint is None
    unweighted = train("unweighted", organ_cache, "auto", "distillation.weight=0.0")
    assert same(weights(tmp_path / "baseline"), weights(tmp_path / "unweighted"))
    assert unweighted.val_dice == baseline.val_dice
    assert not same(weights(tmp_path / "baseline"), weights(tmp_path / "host"))


def test_a_training_has_one_precision(organ_store, recipe, accelerator, tmp_path, interrupt, monkeypatch):
    def train(precision: str) -> TeacherRecord:
        with monkeypatch.context() as patch:
            patch.setattr(Accelerator, "mixed_precision", precision)
            return train_teachers(organ_store, tmp_path, recipe(), accelerator, ["kidney"])["kidney"]

    interrupt()
    with pytest.raises(KeyboardInterrupt):
        train("no")
    with pytest.raises(MtkdError, match=r"interrupted in precision fp32, not bf16. Resume it with --precision fp32"):
        train("bf16")
    state = tmp_path / "kidney" / STATE
    tensors, about = read_tensors(state)
    write_tensors(state, tensors, {key: value for key, value in about.items() if key != "precision"})  # an earlier version's
    assert len(train("no").history) == 2
    record = read_teacher(tmp_path / "kidney")
    assert (record.precision, record.processes) == ("no", 1)
    with pytest.raises(MtkdError, match=r"other settings: precision fp32 \(now bf16\)"):
        train("bf16")
    record = replace(record, precision=None)  # as an earlier version wrote it
    (tmp_path / "kidney" / TEACHER).write_text(json.dumps(record.to_json()))
    assert train("bf16") == record


def test_one_process_trains_in_a_folder(organ_store, recipe, accelerator, tmp_path):
    def train() -> RunRecord:
        return train_student(organ_store, tmp_path / "run", recipe("student.epochs=1"), accelerator, None)

    with locked(Folder(tmp_path / "run")), pytest.raises(LockedError, match=f"{tmp_path}/run is being written"):
        train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    record = train()
    with locked(Folder(tmp_path / "run")):
        assert train() == record


def test_a_training_holds_its_folder(organ_store, recipe, accelerator, tmp_path, monkeypatch):
    tried = []

    def validate(*_) -> dict:
        with pytest.raises(LockedError):
            locked(Folder(tmp_path / "kidney")).__enter__()
        tried.append(True)
        return {"kidney": np.full((1, len(GRID)), 0.5)}

    monkeypatch.setattr("mtkd_cache.training.loop.split_curves", validate)
    train_teachers(organ_store, tmp_path, recipe("teacher.epochs=1"), accelerator, ["kidney"])
    assert tried


def test_weights_that_are_not_those_recorded_are_refused(organ_store, recipe, accelerator, tmp_path):
    """Another training's, an empty file, a pickle: neither loaded nor taken for a finished training."""

    def train() -> dict:
        return train_teachers(organ_store, tmp_path, recipe("teacher.epochs=1"), accelerator)

    records = train()
    own, others = (tmp_path / organ / WEIGHTS for organ in ("kidney", "tongue"))
    whole = own.read_bytes()
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle")
    for content, message in (
        (others.read_bytes(), f"{own} holds other weights than teacher.json records .* delete {own.parent}"),
        (b"", "is damaged"),
        ((tmp_path / "pickle").read_bytes(), "is damaged"),
    ):
        own.write_bytes(content)
        for use in (train, lambda: load_network(own.parent), lambda: Teachers.load(tmp_path, organ_store)):
            with pytest.raises(MtkdError, match=message):
                use()
    own.write_bytes(whole)
    assert train() == records


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, organ_teachers, copy_of):
    path = copy_of(organ_teachers) / "kidney" / WEIGHTS
    tensors, about = read_tensors(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = value
    write_tensors(path, tensors, about)
    with pytest.raises(MtkdError, match=f"holds NaN or infinity in {name}"):
        load_network(path.parent)


def test_a_record_without_its_weights_is_withdrawn_before_the_training(organ_store, recipe, accelerator, tmp_path, interrupt):
    """Else a kill would leave the old record beside the weights of an epoch."""
    train_teachers(organ_store, tmp_path, recipe(), accelerator, ["kidney"])
    (tmp_path / "kidney" / WEIGHTS).unlink()
    interrupt()
    with pytest.raises(KeyboardInterrupt):
        train_teachers(organ_store, tmp_path, recipe(), accelerator, ["kidney"])
    assert not (tmp_path / "kidney" / "teacher.json").exists()


def test_what_cannot_be_read_is_not_called_missing(organ_teachers, copy_of):
    path = copy_of(organ_teachers) / "kidney" / WEIGHTS
    path.unlink()
    with pytest.raises(MtkdError, match=r"is missing. Train it first"):
        load_network(path.parent)
    path.symlink_to(path)
    with pytest.raises(MtkdError, match=r"cannot be read .*symbolic links"):
        load_network(path.parent)
    (path.parent / "teacher.json").mkdir()
    with pytest.raises(MtkdError, match=r"teacher.json cannot be read .*directory"):
        read_json(path.parent / "teacher.json")
    with pytest.raises(MtkdError, match="name that this system's locale lacks"):
        read_json(path.parent / "\udfff" / "teacher.json")  # as \N{LATIN SMALL LETTER E WITH ACUTE} is in an ASCII locale


def test_a_network_is_judged_as_it_will_be_used(organ_store, recipe, accelerator, tmp_path, monkeypatch):
    modes, whole = [], training.EpochLog.add

    def add(log, *arguments) -> None:
        modes.append(log.task.network.training)
        whole(log, *arguments)

    def validate(heads, *_) -> dict:
        modes.append(heads["kidney"][0].training)
        return {"kidney": np.full((1, len(GRID)), 0.5)}

    monkeypatch.setattr(training.EpochLog, "add", add)
    monkeypatch.setattr("mtkd_cache.training.loop.split_curves", validate)
    train_teachers(organ_store, tmp_path, recipe(), accelerator, ["kidney"])
    assert modes == [True, False] * 2


def test_a_teacher_sees_a_new_view_in_every_epoch(organ_store, recipe, accelerator):
    settings = recipe("augmentation.affine_p=1.0")
    task = teacher_task(organ_store, "kidney", settings, accelerator, "off")
    batch = next(iter(task.batches(0)))
    seed = seed_for(settings.seed, "teacher", "kidney")
    for epoch in range(3):
        views = draw_views(settings.augmentation, seed, organ_store.hashes[batch.rows], epoch + 1, organ_store.size)
        seen = []
        task.losses(lambda images, seen=seen: (seen.append(images), images[:, :1])[1], batch, epoch)
        assert torch.equal(seen[0], apply_views(batch.images, batch.masks, views)[0])


@pytest.fixture(scope="module")
def other_store(organ_folder, tmp_path_factory) -> SampleStore:
    """The organs' samples under another split."""
    url = str(tmp_path_factory.mktemp("other") / "samples.zarr")
    ingest(organ_folder, url, size=(64, 64), split=Split(validation=(30,), test=(50,), surgeries=None))
    return SampleStore.open(url)


def test_a_training_belongs_to_its_samples(organ_store, other_store, organ_cache, recipe, accelerator, tmp_path):
    settings = recipe("teacher.epochs=1", "student.epochs=1")
    train_teachers(organ_store, tmp_path, settings, accelerator, ["kidney"])
    train_student(organ_store, tmp_path / "run", settings, accelerator, None)
    told = f"other settings: sample store or split {organ_store.fingerprint[:12]} .now {other_store.fingerprint[:12]}."
    with pytest.raises(MtkdError, match=f"{told}: {other_store.url} has the same samples in another split. Name another folder"):
        train_teachers(other_store, tmp_path, settings, accelerator, ["kidney"])
    record = replace(read_run(tmp_path / "run"), seen=None)  # as an earlier version wrote it
    (tmp_path / "run" / RUN).write_text(json.dumps(record.to_json()))
    with pytest.raises(MtkdError, match=f"{told}. Name another folder"):
        train_student(other_store, tmp_path / "run", settings, accelerator, None)
    with pytest.raises(MtkdError, match=f"6 of 12 samples of {other_store.url} not at all"):
        train_student(other_store, tmp_path / "distilled", settings, accelerator, organ_cache)
    assert not (tmp_path / "distilled").exists()


def test_a_loss_that_is_not_finite_names_step_and_samples(organ_store, recipe, accelerator, tmp_path, monkeypatch):
    def broken(logits, *rest):
        return logits.sum() * float("nan")

    monkeypatch.setattr("mtkd_cache.training.teachers.exclusive_cross_entropy", broken)
    with pytest.raises(MtkdError, match=r"loss is nan at step 1 of epoch 1, samples kidney/3\d/image0"):
        train_teachers(organ_store, tmp_path, recipe(), accelerator, ["kidney"])


@pytest.mark.parametrize(
    ("select", "at_half", "best", "score"),
    [
        ("dice", (0.2, 0.5, 0.5, 0.3), (0.8, 0.7, 0.9, 0.8), "val_dice"),
        ("operating_point", (0.2, 0.1, 0.1, 0.3), (0.4, 0.5, 0.5, 0.4), "val_dice_at_operating_point"),
    ],
)
def test_the_weights_kept_are_those_of_the_first_best_validation(
    select, at_half, best, score, organ_store, recipe, accelerator, tmp_path, monkeypatch
):
    dice, kept = zip(at_half, best, strict=True), []

    def curves(*_) -> dict:
        low, high = next(dice)
        return {"kidney": np.where(GRID < -3, high, low)[None]}

    monkeypatch.setattr("mtkd_cache.training.loop.split_curves", curves)
    whole = training.save_network
    monkeypatch.setattr(
        training, "save_network", lambda path, network, names: (whole(path, network, names), kept.append(weights(path.parent)))
    )
    settings = recipe("teacher.epochs=4", f"teacher.select={select}")
    record = train_teachers(organ_store, tmp_path, settings, accelerator, ["kidney"])["kidney"]
    row = record.history[record.best_epoch]
    assert (record.best_epoch, record.val_dice, row[score], len(kept)) == (1, at_half[1], 0.5, 2)
    assert same(weights(tmp_path / "kidney"), kept[1])


def test_every_step_of_an_epoch_has_the_epochs_learning_rate(organ_store, recipe, accelerator, tmp_path, monkeypatch):
    rates, whole = [], torch.optim.Adam.step

    def step(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        return whole(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    settings = recipe("teacher.epochs=3", "teacher.batch=3")
    train_teachers(organ_store, tmp_path, settings, accelerator, ["kidney"])
    assert rates == [rate for rate in learning_rates(settings.teacher, 3) for _ in range(2)]


def test_a_teacher_learns_from_warped_pictures_and_counts_no_pixel_from_outside(
    organ_store, recipe, accelerator, tmp_path, monkeypatch
):
    met = []

    def loss(logits, *rest):
        met.append(rest)
        return exclusive_cross_entropy(logits, *rest)

    monkeypatch.setattr("mtkd_cache.training.teachers.exclusive_cross_entropy", loss)
    settings = recipe("augmentation.affine_p=1.0", "teacher.epochs=1", "teacher.batch=6")
    train_teachers(organ_store, tmp_path, settings, accelerator, ["tongue"])
    seed = seed_for(settings.seed, "teacher", "tongue")
    (rows,) = epoch_batches(organ_store.rows("train", "tongue"), 6, seed, 0)
    views = draw_views(settings.augmentation, seed, organ_store.hashes[rows], 1, organ_store.size)
    _, masks, valid = apply_views(*map(torch.from_numpy, organ_store.read(rows)), views)
    ((their_masks, anatomy, their_valid, _),) = met
    assert torch.equal(their_masks, masks)
    assert torch.equal(their_valid, valid) and not valid.all()
    assert anatomy.tolist() == [0] * 6


def test_a_batch_of_one_where_batch_norm_needs_two(organ_store, recipe, accelerator, tmp_path):
    overrides = ("teacher.arch=deeplabv3-resnet18", "teacher.batch=1")
    with pytest.raises(MtkdError, match=r"deeplabv3-resnet18 cannot be trained on a batch of 1: .* Take a larger batch"):
        train_teachers(organ_store, tmp_path, recipe(*overrides), accelerator, ["kidney"])


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("mininetv2", (64, 64)),
        ("mininetv2", (8, 8)),
        ("mininetv2", (16, 8)),
        ("deeplabv3-resnet18", (64, 64)),
        ("segformer-mit_b0", (32, 32)),
        ("fpn-resnet18", (32, 32)),
    ],
)
def test_which_networks_train_on_batches_of_one(arch, size):
    """As torch's batch norm decides."""
    network = create_network(arch, 2).train()
    predicted = network.trains_on_one(size)
    assert network.training
    try:
        network(torch.rand(1, 3, size[1], size[0]))
        trains = True
    except ValueError:
        trains = False
    assert predicted == trains


def test_a_batch_that_leaves_one_sample_to_a_process(organ_store, recipe, accelerator):
    task = teacher_task(organ_store, "kidney", recipe("teacher.arch=deeplabv3-resnet18", "teacher.batch=3"), accelerator, "off")
    task.check_batch()
    task.accelerator = SimpleNamespace(process_index=1, num_processes=2)
    with pytest.raises(MtkdError, match=r"cannot be trained on a batch of 1: .* two training samples or more per process"):
        task.check_batch()


class Tracker(GeneralTracker):
    """Keeps what it is told."""

    name = "stub"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.config, self.rows, self.finished = [], [], 0

    def store_init_configuration(self, values: dict) -> None:
        self.config.append(values)

    def log(self, values: dict, step: int | None = None, **_) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_a_tracker_is_told_every_epoch(organ_store, recipe, tmp_path):
    tracker = Tracker()
    accelerator = Accelerator(cpu=True, log_with=tracker)
    records = train_teachers(organ_store, tmp_path, recipe(), accelerator)
    assert [config["label"] for config in tracker.config] == list(organ_store.anatomies)
    assert tracker.config[0]["epochs"] == 2
    assert [values for _, values in tracker.rows] == [row for record in records.values() for row in record.history]
    assert [step for step, _ in tracker.rows] == [0, 1] * 2
    assert tracker.finished == 2


def test_a_tracker_that_is_not_there_is_told_in_words(monkeypatch):
    monkeypatch.setattr("mtkd_cache.runtime.accelerator.get_available_trackers", list)
    with pytest.raises(MtkdError, match=r"tracker 'abacus' is unknown. Choose one of aim, "):
        make_accelerator("cpu", log_with="abacus")
    with pytest.raises(MtkdError, match=r"package of tracker tensorboard is not installed. .* pip install tensorboard"):
        make_accelerator("cpu", log_with="tensorboard")


def test_a_batch_larger_than_the_subset_is_the_subset(organ_store, recipe, accelerator, tmp_path):
    records = [
        train_teachers(organ_store, tmp_path / str(size), recipe(f"teacher.batch={size}"), accelerator, ["kidney"])
        for size in (6, 99)
    ]
    assert same(weights(tmp_path / "6" / "kidney"), weights(tmp_path / "99" / "kidney"))
    assert records[0]["kidney"].val_dice == records[1]["kidney"].val_dice


def test_pictures_that_no_cache_could_hold_are_refused_before_any_training(
    organ_folder, organ_split, recipe, accelerator, tmp_path
):
    ingest(organ_folder, str(tmp_path / "s.zarr"), size=(60, 50), split=organ_split)
    with pytest.raises(MtkdError, match="no native logits of 60x50 images: width and height must be multiples of 8"):
        train_teachers(SampleStore.open(str(tmp_path / "s.zarr")), tmp_path / "teachers", recipe(), accelerator)
    assert not list((tmp_path / "teachers").rglob("*.safetensors"))


def test_checkpoints_say_what_they_are(organ_teachers, copy_of):
    assert load_network(organ_teachers / "kidney", anatomies=["kidney"], arch="mininetv2").heads == 1
    with pytest.raises(MtkdError, match="is a mininetv2, not a segformer-mit_b0"):
        load_network(organ_teachers / "kidney", arch="segformer-mit_b0")
    with pytest.raises(MtkdError, match="knows the anatomies kidney"):
        load_network(organ_teachers / "kidney", anatomies=["tongue"])
    broken = copy_of(organ_teachers) / "kidney" / WEIGHTS
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(MtkdError, match="is damaged"):
        load_network(broken.parent)
    tensors, about = read_tensors(organ_teachers / "kidney" / WEIGHTS)
    write_tensors(broken, dict(list(tensors.items())[1:]), about)
    with pytest.raises(MtkdError, match="does not fit its architecture"):
        load_network(broken.parent)


def test_any_flipped_bit_of_a_checkpoint_is_found(organ_teachers, copy_of):
    path = copy_of(organ_teachers) / "kidney" / WEIGHTS
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(0)
    for place in [*random.integers(header, size=40), *random.integers(header, len(whole), size=20)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << random.integers(8))]) + whole[place + 1 :])
        with pytest.raises(MtkdError):
            load_network(path.parent)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
def test_weights_of_another_type_are_refused(dtype, organ_teachers, copy_of):
    path = copy_of(organ_teachers) / "kidney" / WEIGHTS
    tensors, about = read_tensors(path)
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in tensors.items()}, about)
    with pytest.raises(MtkdError, match=f"is {dtype}, not torch.float32"):
        load_network(path.parent)


@pytest.mark.parametrize(
    "about",
    [{}, {"arch": "mininetv2"}, {"arch": 5, "anatomies": ["kidney"]}, {"identity": "", "history": []}, ["arch", "anatomies"]],
)
def test_safetensors_of_something_else_are_refused(about, organ_teachers, copy_of):
    path = copy_of(organ_teachers) / "kidney" / WEIGHTS
    save_file(load_file(path), path, {"about": json.dumps(about)})
    with pytest.raises(MtkdError, match="not one of this project's checkpoints"):
        load_network(path.parent)


@pytest.mark.parametrize("text", ["[1]", "null", "{", '"run"'])
def test_a_damaged_record_is_an_error_in_words(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(MtkdError, match=r"run\.json is damaged"):
        read_json(tmp_path / "run.json")


def test_stage_2_imports_no_teacher_code():
    script = "import sys, json, mtkd_cache.training.student; print(json.dumps([m for m in sys.modules if 'mtkd_cache' in m]))"
    modules = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout)
    assert "mtkd_cache.training.student" in modules
    assert not {"mtkd_cache.training.teachers", "mtkd_cache.cache.build", "mtkd_cache.cache.builder"} & set(modules)
