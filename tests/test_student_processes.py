"""A student trained by two processes descends the same loss as one process with the same global batch."""

import json
import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from mtkd_cache.cache import LogitCache
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runs import make_accelerator
from mtkd_cache.samples import SampleStore
from mtkd_cache.student import student_task

accelerator = make_accelerator("cpu")
store, cache, *overrides = sys.argv[1:]
task = student_task(SampleStore.open(store), load_recipe("paper", overrides), accelerator, LogitCache.open(cache), "off")
forward = accelerator.prepare(task.network)
forward.eval()  # batch statistics and dropout are each process's own
for number, batch in enumerate(task.batches(0)):
    forward.zero_grad()
    parts = task.losses(forward, batch, 0)
    accelerator.backward(parts["loss"])
    gradient = sum(p.grad.square().sum() for p in forward.parameters() if p.grad is not None).sqrt()
    said = {name: float(accelerator.reduce(value.detach(), "mean")) for name, value in parts.items()}
    if accelerator.is_main_process:
        print(json.dumps({**said, "gradient": float(gradient), "samples": len(batch.rows)}), flush=True)
    if number == 1:
        break
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def losses(organ_store, organ_cache, tmp_path_factory):
    script = tmp_path_factory.mktemp("script") / "losses.py"
    script.write_text(SCRIPT)

    def run(processes: int) -> list[dict]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(script), organ_store.url, organ_cache.url, "student.batch=4", "student.weights=none"]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        started = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]
        printed = [process.communicate(timeout=600)[0] for process in started]
        assert [process.returncode for process in started] == [0] * processes
        return [json.loads(line) for text in printed for line in text.splitlines() if line.startswith("{")]

    return run(1), run(2)


def test_the_loss_is_that_of_one_process(losses):
    alone, together = losses
    assert len(alone) == len(together) == 2
    for one, two in zip(alone, together, strict=True):
        assert two["samples"] * 2 == one["samples"]
        for part in ("loss", "cross_entropy", "kl", "gradient"):
            assert two[part] == pytest.approx(one[part], rel=1e-4), part
