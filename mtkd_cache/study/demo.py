"""`make demo`: runs every command on a phantom, as a user would type it, and prints the resulting tables."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from mtkd_cache.data.dresden import ANATOMIES


def run(*commands: tuple[object, ...]) -> None:
    """Print mtkd-cache commands and run them. Several run at once, on one core each: networks this small can use no more.

    The first shows its progress, the others their messages at the end.
    """
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if len(commands) > 1 else {})}
    running = []
    for number, arguments in enumerate(commands):
        print(f"\n$ mtkd-cache {' '.join(map(str, arguments))}{' &' if number < len(commands) - 1 else ''}", flush=True)
        output = subprocess.PIPE if number else None
        command = [sys.executable, "-m", "mtkd_cache.cli", *map(str, arguments)]
        running.append(subprocess.Popen(command, env=environment, stderr=output, text=True))
    messages = [process.communicate()[1] for process in running]
    for message in filter(None, messages):
        print(message, file=sys.stderr, flush=True)
    if any(process.returncode for process in running):
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="Seed of the phantom and of every training.")
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"))
    options = parser.parse_args()
    start = time.time()
    phantom, store, teachers, cache = (options.data / name for name in ("phantom", "samples.zarr", "teachers", "logits.zarr"))
    report = options.runs / "report"
    training = ("--recipe", "demo", "--seed", options.seed, "--store", store)
    if not phantom.exists():
        run(("phantom", phantom, "--size", "160x128", "--images-per-surgery", "3", "--seed", options.seed))
    run(("ingest", phantom, "--store", store, "--size", "128x96"))
    halves = [[word for anatomy in half for word in ("--anatomy", anatomy)] for half in (ANATOMIES[::2], ANATOMIES[1::2])]
    run(*(("train-teachers", *training, "--teachers", teachers, *half) for half in halves))
    run(("build", *training, "--teachers", teachers, "--cache", cache))
    run(
        ("train-student", *training, "--run", options.runs / "distilled", "--cache", cache),
        ("train-student", *training, "--run", options.runs / "baseline", "--no-kd"),
    )
    run(("evaluate", "--teachers", teachers, "--store", store))
    for name in ("baseline", "distilled"):
        run(("evaluate", "--run", options.runs / name, "--store", store))
    run(("report", teachers, options.runs / "baseline", options.runs / "distilled", "--store", store, "--out", report))
    print(f"\n{(report / 'report.md').read_text()}")
    print(f"{(time.time() - start) / 60:.1f} minutes. The report with its figures: {report / 'report.html'}")


if __name__ == "__main__":
    main()
