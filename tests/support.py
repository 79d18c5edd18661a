"""Functions that several test files call; what they share as fixtures is in conftest.py."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer

from mtkd_cache.bench.build import spread_out
from mtkd_cache.cache.build import build_cache
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.models.checkpoints import WEIGHTS, save_network
from mtkd_cache.models.network import Network, create_network
from mtkd_cache.models.records import RUN, RunRecord, write_json
from mtkd_cache.recipe import Recipe
from mtkd_cache.storage.folder import Folder

KILL_AT_FLUSH = """
flush, flushes = os.fsync, 0

def fsync(file):
    global flushes
    flushes += 1
    if flushes == last:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(file)

os.fsync = fsync
"""  # of a script, whose process then dies at the flush to the disk whose number is `last`


def build(store: SampleStore, teachers: Path, url: str, recipe: Recipe, accelerator, splits=("train",)) -> dict:
    """What `mtkd-cache build` does."""
    loaded = Teachers.load(teachers, store)
    spec = CacheSpec.of(store, loaded.stride, recipe, accelerator.mixed_precision)
    temperature = recipe.distillation.temperature
    return build_cache(store, loaded, spec, url, accelerator, temperature=temperature, splits=splits)


def launch(count: int, folder: Path, code: str, *arguments: str, killed: int = 0) -> list[list[str]]:
    """Run code in several processes that find each other as torchrun's do, and of which so many do not survive.

    They are forked from one that has imported the package and done nothing else. Returns the lines that each one printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mtkd_cache.cache.build", "mtkd_cache.training.student"])
    printed = [folder / f"printed-{port}-{rank}" for rank in range(count)]
    started = []
    for rank, file in enumerate(printed):
        environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(context.Process(target=_run, args=(code, arguments, environment, file)))
    for process in started:
        process.start()
    for process in started:
        process.join(600)
        process.kill()
    assert sorted(process.exitcode for process in started) == [-signal.SIGKILL] * killed + [0] * (count - killed)
    return [file.read_text().splitlines() for file in printed]


def _run(code: str, arguments: tuple[str, ...], environment: dict[str, str], printed: Path) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["-c", *arguments]
    with printed.open("w") as sys.stdout:
        exec(code, {"__name__": "__main__"})


@contextmanager
def served_bucket() -> Iterator[str]:
    """The URL of a new S3 bucket, served on the loopback interface."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir(f"anatomy-{port}")  # moto's servers share what one process holds
        yield f"s3://anatomy-{port}"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def split_dice(heads, store: SampleStore, split: str) -> dict[str, float]:
    """Mean Dice at probability 0.5 of each anatomy's own images, all of which show it. heads: {anatomy: (network, head)}."""
    found = {}
    for anatomy, (network, head) in heads.items():
        images, masks = (torch.from_numpy(values) for values in store.read(store.rows(split, anatomy)))
        with torch.inference_mode():
            predicted = network(images.permute(0, 3, 1, 2).float() / 255)[:, head] > 0
        dice = [float(2 * (p & t).sum() / (p.sum() + t.sum())) for p, t in zip(predicted, masks > 0, strict=True)]
        found[anatomy] = sum(dice) / len(dice)
    return found


def same_cache(left: Path, right: Path) -> bool:
    """Whether two caches have one fingerprint, and equal maps of every sample in every view."""
    one, other = LogitCache.open(str(left)), LogitCache.open(str(right))
    hashes = sorted(one.row_of)
    return (
        one.fingerprint == other.fingerprint
        and hashes == sorted(other.row_of)
        and all(
            np.array_equal(left, right)
            for view in range(one.views)
            for left, right in zip(one.read_arrays(hashes, view), other.read_arrays(hashes, view), strict=True)
        )
    )


def finished_shards(path: Path) -> int:
    return sum(key.startswith("records/") for key in Folder(path).keys())


def settled(arch: str, heads: int, layout: str = "shared") -> Network:
    """A network whose batch norms have seen something, so that folding them matters."""
    torch.manual_seed(0)
    network = create_network(arch, heads, layout)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


def untrained_student(folder: Path, size: tuple[int, int] = (48, 32), anatomies: tuple[str, ...] = ("kidney", "tongue")) -> Path:
    """A run folder with random weights and a record that says the size of the training images."""
    torch.manual_seed(0)
    save_network(folder / WEIGHTS, spread_out(create_network("mininetv2", len(anatomies))), anatomies)
    record = RunRecord(
        kind="student",
        arch="mininetv2",
        anatomies=anatomies,
        size=size,
        seed=0,
        best_epoch=0,
        val_dice=0.0,
        layout="shared",
        kd=False,
        cache_fingerprint=None,
    )
    write_json(folder / RUN, record.to_json())
    return folder
