"""Shows on a dataset what is claimed of the safety of a cache and its sample store; by hand, some 30 minutes on two cores, as
root for the full disk:

    python tests/evidence_cache.py DATASET [--mixed] [--out docs/measurements/cache-trust.json] [--flips 200] [--kills 50]

The dataset's training samples at 32x32 with untrained MiniNetV2 teachers make a cache; with --mixed the teachers are of three
architectures and strides in turn, and the cache has three arrays. Then: bits flipped, files truncated,
deleted and swapped, of which `verify` must find every one and a reader must never get a wrong map; builds killed at random
moments, a build on a full disk, builds by several processes and onto an S3 server, which must all end with the undisturbed
build's values and fingerprint. The sample store is damaged in the same ways, and by files of a store with another split: a
reader must get the right values or a refusal, and `ingest` must make the store again to the byte, or refuse in words. Two
processes of one command started at once must leave what one leaves. Exits with 1 where anything of this does not hold.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: builds are forked
sys.path.append(str(Path(__file__).parent / "cache"))

import numpy as np
import test_processes
import torch
from conftest import _untrained_teacher
from support import build, finished_shards, same_cache, served_bucket

from mtkd_cache.bench.machine import machine
from mtkd_cache.cache import layout
from mtkd_cache.cache.card import CARD
from mtkd_cache.cache.layout import ShardRecord
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.cache.verify import verify_cache
from mtkd_cache.data.dresden import Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import WEIGHTS, file_sha256
from mtkd_cache.recipe import load_recipe
from mtkd_cache.runtime.accelerator import make_accelerator
from mtkd_cache.runtime.timing import CPU
from mtkd_cache.storage.checked_json import MANIFEST, read_record
from mtkd_cache.storage.folder import Folder

SIZE = (32, 32)
ARCHITECTURES = ("mininetv2", "segformer-mit_b0", "deeplabv3-resnet18")  # of strides 2, 4 and 8


def start(*arguments: object) -> subprocess.Popen:
    """A command of mtkd-cache in a process of its own."""
    command = [sys.executable, "-m", "mtkd_cache.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def maps_written(target: Path) -> int:
    """The maps in the finished shard files of a cache."""
    folder = Folder(target)
    records = [read_record(folder, key, ShardRecord) for key in folder.keys() if key.startswith("records/")]
    return sum(len(record.rows) * len(record.teachers) for record in records if record)


class Victim:
    """A folder that is damaged file by file, how all of it is read, and what finds damages in some of its files."""

    def __init__(
        self,
        folder: Path,
        read: Callable[[], list[np.ndarray]],
        finds: Callable[[set[str]], bool],
        files: list[Path] | None = None,
    ):
        self.folder, self.read, self.finds = folder, read, finds
        self.truth = read()
        self.files = files or [folder / key for key in Folder(folder).keys() if key != CARD]  # which anyone may edit


class Evidence:
    """One dataset's store, teachers and undisturbed cache in a folder, and what is done to copies of it."""

    def __init__(self, dataset: Path, root: Path, architectures: tuple[str, ...] = ARCHITECTURES[:1]):
        self.root, self.teachers = root, root / "teachers"
        self.random = np.random.default_rng(0)
        self.ingest = partial(ingest, dataset, size=SIZE)
        self.ingest(str(root / "samples.zarr"))
        self.store = SampleStore.open(str(root / "samples.zarr"))
        for seed, anatomy in enumerate(self.store.anatomies):
            _untrained_teacher(self.teachers, anatomy, architectures[seed % len(architectures)], seed)
        self.accelerator = make_accelerator("cpu")
        self.whole = root / "whole.zarr"
        self.build(self.whole)
        self.hashes = sorted(LogitCache.open(str(self.whole)).row_of)
        self.maps = len(self.hashes) * len(self.store.anatomies)
        self.files = [self.whole / key for key in Folder(self.whole).keys()]

    def build(self, target: Path | str) -> dict:
        return build(self.store, self.teachers, str(target), load_recipe("paper"), self.accelerator)

    def equal(self, target: Path | str) -> bool:
        """Has a cache the undisturbed one's values and fingerprint, and is every byte of it as written?"""
        return same_cache(Path(self.whole), target) and verify_cache(str(target))["ok"]

    @staticmethod
    def reader(values: Callable[[], list[np.ndarray]], truth: list[np.ndarray]) -> str:
        """What a reader of all of a damaged folder gets."""
        try:
            right = all(np.array_equal(one, other) for one, other in zip(values(), truth, strict=True))
        except MtkdError:
            return "refused"
        except Exception as error:
            return f"NOT IN WORDS: {error!r}"
        return "right values" if right else "WRONG VALUES"

    def damages(self, victim: "Victim", count: int, files: int, change: Callable[..., None]) -> dict:
        """Do something to random files, ask a reader and what finds damages, put the files back; `count` times."""
        readers, kinds, missed = Counter(), Counter(), []
        for _ in range(count):
            paths = [victim.files[index] for index in self.random.choice(len(victim.files), files, replace=False)]
            kept = [path.read_bytes() for path in paths]
            change(*paths)
            readers[self.reader(victim.read, victim.truth)] += 1
            hit = {str(path.relative_to(victim.folder)) for path in paths}
            if not victim.finds(hit):
                missed.append(sorted(hit))
            kinds[min(hit).split("/")[0]] += 1
            for path, data in zip(paths, kept, strict=True):
                path.write_bytes(data)
        ok = not missed and readers.keys() <= {"refused", "right values"}
        return {
            "done": count,
            "found": count - len(missed),
            "missed": missed,
            "reader": dict(readers),
            "in": dict(kinds),
            "ok": ok,
        }

    def damaged_cache(self) -> "Victim":
        folder = Path(shutil.copytree(self.whole, self.root / "victim.zarr"))

        def finds(hit: set[str]) -> bool:
            reported = {problem["where"] for problem in verify_cache(str(folder))["problems"]}
            return hit <= reported or MANIFEST in hit & reported

        return Victim(folder, lambda: list(LogitCache.open(str(folder)).read_arrays(self.hashes)), finds)

    def damaged_store(self) -> "Victim":
        folder = Path(shutil.copytree(self.store.url, self.root / "victim-samples.zarr"))

        def read() -> list[np.ndarray]:
            store = SampleStore.open(str(folder))
            columns = [store.anatomy, store.surgery, store.frame, store.split, store.hashes]
            return [*columns, np.array(store.anatomies), *store.read(np.arange(len(store)))]

        def finds(hit: set[str]) -> bool:
            try:
                self.ingest(str(folder))
            except MtkdError:
                return True
            except Exception:
                return False
            return all((folder / key).read_bytes() == Path(self.store.url, key).read_bytes() for key in hit)

        return Victim(folder, read, finds)

    def other_stores_files(self, victim: "Victim", count: int) -> dict:
        """Files of a store of the same dataset, split in another way, in place of the victim's."""
        other = self.root / "other-samples.zarr"
        surgeries = sorted(map(int, set(self.store.surgery)))
        self.ingest(str(other), split=Split(validation=(surgeries[0],), test=(surgeries[1],), surgeries=None))
        pairs = [(path, other / path.relative_to(victim.folder)) for path in victim.files]
        differing = [path for path, foreign in pairs if path.read_bytes() != foreign.read_bytes()]
        some = Victim(victim.folder, victim.read, victim.finds, differing)
        return self.damages(some, count, 1, lambda path: shutil.copy(other / path.relative_to(victim.folder), path))

    def at_once(self, count: int, commands: list[list[str]], right: Callable[[Path], bool]) -> dict:
        """Two processes started together onto one target: one is refused, or finds the work done by the other."""
        target, ends, equal = self.root / "at-once", Counter(), 0
        for _ in range(count):
            started = [start(*command, target) for command in commands]
            errors = [process.communicate()[1] for process in started]
            refused = ["is being written by" in text or "was trained with another" in text for text in errors]
            each = zip(started, refused, errors, strict=True)
            words = ["finished" if not process.returncode else "refused" if no else text[-200:] for process, no, text in each]
            ends[" and ".join(sorted(words))] += 1
            equal += right(target)
            shutil.rmtree(target)
        ok = equal == count and ends.keys() <= {"finished and finished", "finished and refused"}
        return {"done": count, "ends": dict(ends), "equal": equal, "ok": ok}

    def builders(self, count: int) -> dict:
        command = ["build", "--store", self.store.url, "--teachers", self.teachers, "--device", "cpu", "--cache"]
        return self.at_once(count, [command, command], self.equal)

    def students(self, count: int) -> dict:
        """Of two seeds: what is there in the end is one's record with its own weights."""
        at = ["train-student", "--store", self.store.url, "--cache", self.whole, "--device", "cpu", "--arch", "mininetv2"]
        settings = ["--set", "student.epochs=1", "--set", "student.batch=8", "--set", "student.weights=none"]
        commands = [[*at, *settings, "--seed", seed, "--run"] for seed in (0, 1)]
        alone = [self.root / "alone-0", self.root / "alone-1"]
        for command, run in zip(commands, alone, strict=True):
            start(*command, run).communicate()

        def right(run: Path) -> bool:
            record = json.loads((run / "run.json").read_text())
            weights = file_sha256(run / WEIGHTS)
            return weights == record["weights_sha256"] == file_sha256(alone[record["seed"]] / WEIGHTS)

        return self.at_once(count, commands, right)

    def flip(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        bit = int(self.random.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)

    def truncate(self, path: Path) -> None:
        os.truncate(path, int(self.random.integers(path.stat().st_size)))

    @staticmethod
    def swap(one: Path, other: Path) -> None:
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)

    def forked(self, target: Path) -> int:
        """The process id of a build in a fork of this process, which has paid the imports."""
        child = os.fork()
        if not child:
            try:
                self.build(target)
                os._exit(0)
            finally:
                os._exit(1)
        return child

    def kills(self, count: int) -> dict:
        """Builds killed after a random share of the time that an undisturbed one takes, each finished by a second build."""
        start = time.perf_counter()
        undisturbed = os.waitpid(self.forked(self.root / "timed.zarr"), 0)[1]
        whole_seconds = time.perf_counter() - start
        killed, ended, equal, repeated, written = 0, 0, 0, 0, []
        while killed < count:
            target = self.root / "killed.zarr"
            child = self.forked(target)
            time.sleep(self.random.uniform(0, whole_seconds))
            os.kill(child, signal.SIGKILL)
            if os.waitpid(child, 0)[1] == signal.SIGKILL:
                killed += 1
                written.append(finished_shards(target))
                left = self.maps - maps_written(target)
                repeated += self.build(target)["maps_computed"] - left
                equal += self.equal(target)
                print(f"kill {killed}: {written[-1]} shard files were written, {equal} equal in the end", flush=True)
            else:
                ended += 1
            shutil.rmtree(target)
        return {
            "done": killed,
            "ended_before_their_moment_and_not_counted": ended,
            "seconds_undisturbed": round(whole_seconds, 1),
            "shard_files_written_when_killed": sorted(written),
            "shard_files": finished_shards(self.whole),
            "maps_computed_twice": repeated,
            "equal": equal,
            "ok": not undisturbed and equal == count and not repeated,
        }

    def full_disk(self) -> dict | None:
        """A build onto a tmpfs that holds half the cache, and again when there is room; None where it cannot be mounted."""
        disk = self.root / "disk"
        disk.mkdir()
        size = sum(path.stat().st_size for path in self.files)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size // 2}", "tmpfs", str(disk)]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            return None
        try:
            message = "nothing"
            try:
                self.build(disk / "logits.zarr")
            except MtkdError as error:
                message = str(error).removeprefix(str(disk))
            done, left = finished_shards(disk / "logits.zarr"), self.maps - maps_written(disk / "logits.zarr")
            subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(disk)], check=True)
            repeated = self.build(disk / "logits.zarr")["maps_computed"] - left
            equal = self.equal(disk / "logits.zarr")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        return {
            "said": message,
            "shard_files_written": done,
            "maps_computed_twice": repeated,
            "equal": equal,
            "ok": equal and "disk is full" in message and not repeated,
        }

    def processes(self, count: int, base: Path | str = "") -> dict:
        """A build by several processes, as torchrun starts them."""
        target = f"{base or self.root}/by-{count}.zarr"
        test_processes.BLOCK = layout.BLOCK
        printed = test_processes.builds(count, self.store, self.teachers, self.root, target)
        maps = [int(line.split()[-1]) for line in printed]
        equal = self.equal(target)
        return {"maps_by_process": maps, "equal": equal, "ok": equal and len(maps) == count and min(maps) > 0}

    def s3(self, processes: int) -> dict:
        """Build, by one process or several, and verify against an S3 server on the loopback."""
        with served_bucket() as bucket:
            return self.processes(processes, bucket)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--mixed", action="store_true", help="teachers of three architectures and strides")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=20, help="truncations, deletions and swaps of the cache, each")
    parser.add_argument("--store", type=int, default=80, help="damages of each kind of the sample store")
    parser.add_argument("--writers", type=int, default=5, help="times that two processes are started at once, each command")
    parser.add_argument("--only", action="append", help="an experiment by its name in the table; repeatable")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        architectures = ARCHITECTURES if asked.mixed else ARCHITECTURES[:1]
        evidence = Evidence(asked.dataset, Path(folder), architectures)
        cache, store = evidence.damaged_cache(), evidence.damaged_store()
        experiments = {
            "flipped bits": partial(evidence.damages, cache, asked.flips, 1, evidence.flip),
            "truncated files": partial(evidence.damages, cache, asked.others, 1, evidence.truncate),
            "deleted files": partial(evidence.damages, cache, asked.others, 1, Path.unlink),
            "swapped files": partial(evidence.damages, cache, asked.others, 2, evidence.swap),
            "store: flipped bits": partial(evidence.damages, store, asked.store, 1, evidence.flip),
            "store: truncated files": partial(evidence.damages, store, asked.store, 1, evidence.truncate),
            "store: deleted files": partial(evidence.damages, store, asked.store, 1, Path.unlink),
            "store: swapped files": partial(evidence.damages, store, asked.store, 2, evidence.swap),
            "store: another's files": partial(evidence.other_stores_files, store, asked.store),
            "two builds at once": partial(evidence.builders, asked.writers),
            "two students at once": partial(evidence.students, asked.writers),
            "killed builds": partial(evidence.kills, asked.kills),
            "full disk": evidence.full_disk,
            "2 processes": partial(evidence.processes, 2),
            "3 processes": partial(evidence.processes, 3),
            "S3 server, 1 process": partial(evidence.s3, 1),
            "S3 server, 2 processes": partial(evidence.s3, 2),
        }
        results = {}
        for name in asked.only or experiments:
            results[name] = experiments[name]()
            print(f"{name:24}{json.dumps(results[name])}", flush=True)
        record = {
            "what": f"the cache of {asked.dataset.name}'s training samples at {SIZE[0]}x{SIZE[1]}, "
            + (
                "untrained MiniNetV2, SegFormer and DeepLabV3 teachers in turn" if asked.mixed else "untrained MiniNetV2 teachers"
            ),
            "command": f"python tests/evidence_cache.py {asked.dataset.name}{' --mixed' * asked.mixed}",
            "samples": len(evidence.hashes),
            "anatomies": len(evidence.store.anatomies),
            "files": len(evidence.files),
            "bytes": sum(path.stat().st_size for path in evidence.files),
            "results": results,
            "machine": machine(CPU),
        }
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    if not all(result["ok"] for result in results.values() if result):
        sys.exit("something does not hold")


if __name__ == "__main__":
    main()
