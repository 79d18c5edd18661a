"""What is known of other subsets' pictures: negatives of teachers and students, corrected targets, and what is recorded."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import build

from mtkd_cache.cache.loader import BatchReader, epoch_batches
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cli.main import main
from mtkd_cache.data.augment import apply_views, draw_views
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.weak_labels import FILE
from mtkd_cache.errors import MtkdError
from mtkd_cache.losses import absent_cross_entropy, channelwise_kl, exclusive_cross_entropy, kl_by_head, move_to_known
from mtkd_cache.models.checkpoints import STATE, WEIGHTS
from mtkd_cache.models.records import read_run, read_teacher
from mtkd_cache.recipe import seed_for
from mtkd_cache.training.negatives import negatives_of, with_negatives
from mtkd_cache.training.signal import CachedTeachers, NoTeachers
from mtkd_cache.training.student import student_config, student_task, train_student
from mtkd_cache.training.teachers import teacher_task, train_teachers

SIZE = (32, 32)
MOVED = "augmentation.affine_p=1.0"


def write_labels(dataset: Path, surgeries: tuple[str, ...] = ("30", "40")) -> None:
    """The kidneys' pictures of these surgeries: the first lacks the tongue, the second shows it, the third has no label."""
    for surgery in surgeries:
        (dataset / "kidney" / surgery / FILE).write_text("image,kidney,tongue\n0,1,0\n1,1,1\n")


@pytest.fixture(scope="module")
def labelled(organ_folder, organ_split, tmp_path_factory) -> SampleStore:
    root = tmp_path_factory.mktemp("labelled")
    shutil.copytree(organ_folder, root / "organs")
    write_labels(root / "organs")
    ingest(root / "organs", str(root / "s.zarr"), size=SIZE, split=organ_split)
    return SampleStore.open(str(root / "s.zarr"))


def answering(logits: torch.Tensor):
    """A network that answers `logits` whatever it sees."""
    return lambda _: logits


def test_a_share_of_every_batch_is_negatives():
    batches = [np.arange(8), np.arange(8, 16), np.arange(16, 19)]
    negatives = np.arange(100, 103)
    mixed = with_negatives(batches, negatives, 0.25, 7, 0)
    assert [len(batch) for batch in mixed] == [8, 8, 3]
    assert [int((batch >= 100).sum()) for batch in mixed] == [2, 2, 1]
    assert all(
        np.array_equal(batch[batch < 100], whole[: (batch < 100).sum()]) for batch, whole in zip(mixed, batches, strict=True)
    )
    drawn = np.concatenate(mixed)
    drawn = drawn[drawn >= 100]
    assert set(drawn[:3]) == set(negatives) == set(drawn[2:])  # none again before all others
    assert all(np.array_equal(*pair) for pair in zip(mixed, with_negatives(batches, negatives, 0.25, 7, 0), strict=True))
    assert any(not np.array_equal(*pair) for pair in zip(mixed, with_negatives(batches, negatives, 0.25, 7, 1), strict=True))
    assert [(batch >= 100).sum() for batch in with_negatives(batches, negatives, 0.99, 7, 0)] == [7, 7, 2]
    assert with_negatives(batches, negatives[:0], 0.25, 7, 0) is batches


def test_negatives_are_training_samples_of_other_subsets(labelled):
    kidneys, tongues = (labelled.rows("train", organ) for organ in ("kidney", "tongue"))
    assert np.array_equal(negatives_of(labelled, "tongue", "absent"), kidneys[:1])
    for kind in ("exclusive", "both"):
        assert np.array_equal(negatives_of(labelled, "tongue", kind), kidneys)
    assert not len(negatives_of(labelled, "tongue", "own"))
    assert not len(negatives_of(labelled, "kidney", "absent"))
    assert np.array_equal(negatives_of(labelled, "kidney", "exclusive"), tongues)


@pytest.mark.parametrize("kind", ["own", "exclusive", "absent", "both"])
def test_a_teachers_loss_is_the_naive_loop(kind, labelled, recipe, accelerator):
    settings = recipe(MOVED, f"teacher.negatives={kind}")
    task = teacher_task(labelled, "tongue", settings, accelerator, "off")
    plain = teacher_task(labelled, "tongue", recipe(MOVED), accelerator, "off")
    assert task.steps == plain.steps
    if kind == "own":
        assert all(np.array_equal(*pair) for pair in zip(task.rows_of_epoch(1), plain.rows_of_epoch(1), strict=True))
    head = labelled.anatomies.index("tongue")
    rows = np.concatenate(
        [labelled.rows("train", "tongue")[:2], labelled.rows("train", "kidney")[:3]][: 1 if kind == "own" else 2]
    )
    batch = BatchReader(labelled).read(rows)
    views = draw_views(settings.augmentation, task.seed, labelled.hashes[rows], 2, labelled.size)
    _, masks, valid = apply_views(batch.images, batch.masks, views)
    logits = torch.randn(len(rows), 1, *SIZE)
    terms = []
    for b, row in enumerate(rows):
        absent = kind in ("absent", "both") and labelled.present[row, head] == 0
        z, mask = logits[b, 0][valid[b]], masks[b][valid[b]]
        if labelled.anatomy[row] == head:
            terms += [math.log1p(math.exp(-v if m else v)) for v, m in zip(z.tolist(), mask.tolist(), strict=True)]
        elif kind != "own":
            terms += [math.log1p(math.exp(v)) for v, m in zip(z.tolist(), mask.tolist(), strict=True) if m or absent]
    assert float(task.losses(answering(logits), batch, 1)["loss"]) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def student_losses(store, cache, settings, accelerator, rows, logits):
    """A student's loss by parts where the network answers `logits`; batch, teachers' maps, masks, valid pixels of its view."""
    signal = CachedTeachers(cache, settings, store.size) if cache else NoTeachers(settings, store.size)
    batch = BatchReader(store, cache).read(rows)
    views = draw_views(settings.augmentation, seed_for(settings.seed, "student"), store.hashes[rows], 1, store.size)
    images, masks, valid = apply_views(batch.images, batch.masks, views)
    teachers = signal.logits(batch, images, views)
    parts = student_task(store, settings, accelerator, signal, "off").losses(answering(logits), batch, 0)
    return {name: float(value) for name, value in parts.items()}, batch, teachers, masks, valid


@pytest.fixture(scope="module")
def labelled_cache(labelled, organ_teachers, recipe, accelerator, tmp_path_factory) -> LogitCache:
    url = str(tmp_path_factory.mktemp("labelled_cache") / "c.zarr")
    build(labelled, organ_teachers, url, recipe(), accelerator)
    return LogitCache.open(url)


def test_a_students_loss_follows_its_recipe(labelled, labelled_cache, recipe, accelerator):
    rows = np.concatenate([labelled.rows("train", "kidney")[:3], labelled.rows("train", "tongue")[:1]])
    logits, absent = torch.randn(4, 2, *SIZE), torch.zeros(4, 2, dtype=torch.bool)
    absent[0, labelled.anatomies.index("tongue")] = True
    assert np.array_equal(labelled.present[rows] == 0, absent.numpy())

    def said(*overrides: str, cache=labelled_cache):
        return student_losses(labelled, cache, recipe(MOVED, *overrides), accelerator, rows, logits)

    plain, batch, teachers, masks, valid = said()
    exclusive = float(exclusive_cross_entropy(logits, masks, batch.anatomy, valid))
    background = float(absent_cross_entropy(logits, batch.anatomy, absent, valid))
    mixed = 0.6 * exclusive + 0.4 * background
    with_labels = ("student.negatives=absent", "student.negative_share=0.4")
    assert said(*with_labels, cache=None)[0]["loss"] == pytest.approx(mixed)
    assert said(*with_labels)[0] == pytest.approx({**plain, "cross_entropy": mixed, "loss": mixed + 3 * plain["kl"]})
    assert said(*with_labels, "student.cross_entropy=heads")[0]["kl"] == plain["kl"]

    moved = move_to_known(teachers, masks, batch.anatomy, absent, 2.5)
    corrected = said("distillation.correct=move", "distillation.correct_margin=2.5")[0]
    assert corrected["kl"] == pytest.approx(float(channelwise_kl(logits, moved, 4.0, valid)))
    assert corrected["kl"] != pytest.approx(plain["kl"])
    left_out = said("distillation.correct=leave_out")[0]
    assert left_out["kl"] == pytest.approx(float(kl_by_head(logits, teachers, 4.0, valid, kept=~absent).mean()))
    assert left_out["kl"] < plain["kl"]
    assert said("distillation.combine=printed", *with_labels)[0]["kl"] == pytest.approx(plain["kl"])


@pytest.mark.parametrize(
    "setting",
    ["teacher.negatives=absent", "teacher.negatives=both", "student.negatives=absent", "distillation.correct=leave_out"],
)
def test_a_store_without_labels_is_refused_in_a_line(setting, organ_store, organ_cache, recipe, accelerator, tmp_path):
    key = setting.partition("=")[0]
    with pytest.raises(
        MtkdError, match=rf"{key}: .* has no labels of what its pictures show\. Ingest .*weak_labels\.csv"
    ) as error:
        if key.startswith("teacher"):
            train_teachers(organ_store, tmp_path, recipe(setting), accelerator)
        else:
            train_student(organ_store, tmp_path / "run", recipe(setting), accelerator, organ_cache)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.rglob(WEIGHTS))


def test_who_learns_from_labels_records_them_and_refuses_others(labelled, organ_split, recipe, accelerator, copy_of):
    root = copy_of(Path(labelled.url).parent)
    settings = recipe("teacher.negatives=both", "student.negatives=absent", "teacher.epochs=1", "student.epochs=1")
    run, teachers = root / "run", root / "teachers"
    train_student(labelled, run, settings, accelerator, None)
    train_teachers(labelled, teachers, settings, accelerator, ["tongue"])
    records = read_run(run), read_teacher(teachers / "tongue")
    assert [record.labels_fingerprint for record in records] == [labelled.labels_fingerprint] * 2
    own, negatives = labelled.rows("train", "tongue"), labelled.rows("train", "kidney")
    seen = {sha256[: len(next(iter(records[1].seen.samples("train"))))] for sha256 in labelled.hashes[[*own, *negatives]]}
    assert records[1].seen.samples("train") == seen
    assert records[1].recipe["teacher"]["negatives"] == "both" and "negative_share" not in records[1].recipe["teacher"]

    write_labels(root / "organs", ("31",))
    ingest(root / "organs", str(root / "s.zarr"), size=SIZE, split=organ_split)
    changed = SampleStore.open(str(root / "s.zarr"))
    assert changed.fingerprint == labelled.fingerprint
    message = r"other settings: labels of what pictures show [0-9a-f]{12} \(now [0-9a-f]{12}\)\."
    with pytest.raises(MtkdError, match=message):
        train_student(changed, run, settings, accelerator, None)
    with pytest.raises(MtkdError, match=message):
        train_teachers(changed, teachers, settings, accelerator, ["tongue"])
    (run / "run.json").unlink()  # as after an interruption
    assert (run / STATE).exists()
    with pytest.raises(MtkdError, match=message.removeprefix("other settings: ").removesuffix(r"\.")):
        train_student(changed, run, settings, accelerator, None)


def test_defaults_take_nothing_from_labels(labelled, recipe, accelerator):
    """Batches, losses and records are those of the code before there were labels, to the bit."""
    student = student_task(labelled, recipe(), accelerator, NoTeachers(recipe(), labelled.size), "off")
    teacher = teacher_task(labelled, "kidney", recipe(), accelerator, "off")
    for task, heads in ((student, 2), (teacher, 1)):
        plain = epoch_batches(task.rows, 4, task.seed, 0)
        assert all(np.array_equal(*pair) for pair in zip(task.rows_of_epoch(0), plain, strict=True))
        batch = BatchReader(labelled).read(plain[0])
        views = draw_views(recipe().augmentation, task.seed, labelled.hashes[batch.rows], 1, labelled.size)
        _, masks, valid = apply_views(batch.images, batch.masks, views)
        logits = torch.randn(4, heads, *SIZE)
        anatomy = batch.anatomy if heads > 1 else torch.zeros_like(batch.anatomy)
        said = task.losses(answering(logits), batch, 0)["loss"]
        assert torch.equal(said, exclusive_cross_entropy(logits, masks, anatomy, valid))
    assert "labels_fingerprint" not in student_config(labelled, recipe(), kd=True)


def test_the_command_line_refuses_with_one_line(organ_store, tmp_path):
    options = ["--store", organ_store.url, "--run", str(tmp_path / "run"), "--no-kd", "--set", "student.weights=none"]
    done = CliRunner().invoke(main, ["train-student", *options, "--device", "cpu", "--set", "student.negatives=absent"])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1 and "student.negatives: " in done.stderr
