"""A student trained by two processes: the same loss as of one process with the same global batch, and one lock for both."""

import json
from pathlib import Path

import pytest
from support import launch

from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked

SCRIPT = """
import json, sys
from dataclasses import replace
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.training.signal import CachedTeachers
from mtkd_cache.training.student import student_task

accelerator = make_accelerator("cpu")
store, cache, *overrides = sys.argv[1:]
store, recipe = SampleStore.open(store), load_recipe("paper", overrides)
for combine, term in (("sum", "sigmoid+kl"), ("product", "kl"), ("printed", "pearson+standardized")):
    recipe = replace(recipe, distillation=replace(recipe.distillation, combine=combine, term=term))
    task = student_task(store, recipe, accelerator, CachedTeachers(LogitCache.open(cache), recipe, store.size), "off")
    forward = accelerator.prepare(task.network)
    forward.eval()  # batch statistics and dropout are each process's own
    for batch in task.batches(0):
        forward.zero_grad()
        parts = task.losses(forward, batch, 0)
        accelerator.backward(parts["loss"])
        gradient = sum(p.grad.square().sum() for p in forward.parameters() if p.grad is not None).sqrt()
        values = {name: float(accelerator.reduce(value.detach(), "mean")) for name, value in parts.items()}
        print(json.dumps({**values, "gradient": float(gradient), "samples": len(batch.rows)}), flush=True)
accelerator.end_training()
"""

LOCKED = """
import json, sys
from mtkd_cache.errors import LockedError
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.training.student import train_student
from pathlib import Path

accelerator = make_accelerator("cpu")
store, run, *overrides = sys.argv[1:]
try:
    record = train_student(SampleStore.open(store), Path(run), load_recipe("paper", overrides), accelerator, None)
    said = {key: getattr(record, key) for key in ("processes", "weights_sha256")} | {"loss": record.history[0]["loss"]}
except LockedError as error:
    said = {"refused": str(error)}
print(json.dumps(said))
accelerator.end_training()
"""


def told(count: int, folder: Path, code: str, *arguments: str) -> list[list[dict]]:
    """The JSON lines that each process printed, see `launch`."""
    return [[json.loads(line) for line in lines if line.startswith("{")] for lines in launch(count, folder, code, *arguments)]


@pytest.fixture(scope="module")
def losses(organ_store, organ_cache, tmp_path_factory):
    """Two batches of five samples with each objective, of one process and of two, which share them unequally."""
    arguments = (
        tmp_path_factory.mktemp("printed"),
        SCRIPT,
        organ_store.url,
        organ_cache.url,
        "student.batch=5",
        "student.weights=none",
    )
    return told(1, *arguments)[0], told(2, *arguments)


def test_the_loss_is_that_of_one_process(losses):
    alone, together = losses
    assert len(alone) == 6
    for one, first, second in zip(alone, *together, strict=True):
        assert (one["samples"], first["samples"], second["samples"]) == (5, 3, 2)
        assert one.keys() == first.keys()
        for part in one.keys() - {"samples"}:
            assert first[part] == pytest.approx(one[part], rel=1e-4), part


def test_a_lock_that_is_refused_ends_every_process(organ_store, tmp_path):
    arguments = (organ_store.url, str(tmp_path / "run"), "student.weights=none", "student.batch=4", "student.epochs=1")
    with locked(Folder(tmp_path / "run")):
        (first,), (second,) = told(2, tmp_path, LOCKED, *arguments)
    assert first == second
    assert first["refused"].startswith(f"{tmp_path / 'run'} is being written")
    (first,), (second,) = told(2, tmp_path, LOCKED, *arguments)
    assert first == second  # the loss too is that of both
    assert (first["processes"], first["weights_sha256"]) == (2, file_sha256(tmp_path / "run" / WEIGHTS))
