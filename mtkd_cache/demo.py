"""`make demo`: every command in turn on a phantom, each as a user would type it, and at the end the table and the pictures."""

import argparse
import subprocess
import sys
import time
from pathlib import Path


def run(*arguments: str | Path) -> None:
    """One mtkd-cache command, shown and run."""
    print(f"\n$ mtkd-cache {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", "mtkd_cache.cli", *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the phantom and of every training")
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"))
    options = parser.parse_args()
    start = time.time()
    phantom, store, teachers, cache = (options.data / name for name in ("phantom", "samples.zarr", "teachers", "logits.zarr"))
    report = options.runs / "report"
    training = ("--recipe", "demo", "--seed", options.seed, "--store", store)
    if not phantom.exists():
        run("phantom", phantom, "--size", "160x128", "--images-per-surgery", "3", "--seed", options.seed)
    run("ingest", phantom, "--store", store, "--size", "128x96")
    run("train-teachers", *training, "--teachers", teachers)
    run("build", *training, "--teachers", teachers, "--cache", cache)
    run("train-student", *training, "--run", options.runs / "baseline", "--no-kd")
    run("train-student", *training, "--run", options.runs / "distilled", "--cache", cache)
    run("evaluate", "--teachers", teachers, "--store", store)
    for name in ("baseline", "distilled"):
        run("evaluate", "--run", options.runs / name, "--store", store)
    run("report", teachers, options.runs / "baseline", options.runs / "distilled", "--store", store, "--out", report)
    print(f"\n{(report / 'report.md').read_text()}")
    print(f"{(time.time() - start) / 60:.1f} minutes. The page with the pictures: {report / 'report.html'}")


if __name__ == "__main__":
    main()
