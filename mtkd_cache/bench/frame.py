"""A whole frame: from the decoded picture to its masks, in torch and in the runtimes that execute an exported file.

Forms, each of which takes a frame uint8 (H, W, 3) and returns masks (A, H, W) at its size:

    plain         `Predictor`
    fastest       `Predictor.fastest`
    onnxruntime   what `export_onnx` writes, in ONNX Runtime
    openvino      the same file in OpenVINO

A frame consists of these parts: "resize" (to floats at the network's size), "network" (up to its native logits), "upsampling"
(to the frame's size, and the threshold) and "copy" (what remains: arrays handed in and out). Their shares are measured on a few
frames of their own, with a clock between the parts or by the runtime's profiler; normalizing colors counts in torch as the
network, in an exported file as the resizing.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mtkd_cache.bench.build import spread_out
from mtkd_cache.bench.machine import Result, Size
from mtkd_cache.deploy.export import export_onnx
from mtkd_cache.deploy.onnx_file import FRAME, MASKS, RUNTIMES, check_packages, onnxruntime_session, openvino_request
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.frames import to_network
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.checkpoints import WEIGHTS, save_network
from mtkd_cache.models.network import create_network
from mtkd_cache.models.records import RUN, TEACHER, write_json
from mtkd_cache.runtime.timing import interleaved, ratio, wait

TORCH = ("plain", "fastest")
FORMS = (*TORCH, *RUNTIMES)
PARTS = ("resize", "network", "upsampling", "copy")
PROFILED = 5  # frames that the shares are measured on
CONVOLUTION = re.compile("conv(?!ert)", re.IGNORECASE)
Steps = Sequence[tuple[str, float]]  # name of the operation and seconds, in order


@dataclass(frozen=True)
class Form:
    """segment: a frame -> masks. shares: frames -> the share of each part."""

    segment: Callable[[np.ndarray], np.ndarray]
    shares: Callable[[Sequence[np.ndarray]], dict[str, float]]


def bench_frame(
    arch: str,
    layouts: Sequence[str],
    frame: Size,
    size: Size | None,
    heads: int,
    frames: int,
    forms: Sequence[str],
    device: torch.device,
) -> Iterator[Result]:
    """Time frames through untrained networks, all layouts and forms in turn.

    Args:
        arch, layouts, heads: as `create_network` takes them, or "separate": a network a head.
        frame, size: (width, height) of the frames, and of the images that the network sees, None for the same.
        frames: how many are timed in each layout and form.
        forms: of FORMS.
        device: of torch; the runtimes take the CPU.

    Returns:
        A row for each layout. forms: {form: {p50_ms, p95_ms, p99_ms, max_ms, shares}}. over_fastest: {form: its time / that of
        fastest}, and shared_over: {form: time of the shared layout / this one's}, medians of the frames' ratios, where measured.

    Raises:
        MtkdError: a runtime is missing, or is to be measured on a GPU.
    """
    check_forms(forms, device)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (frame[1], frame[0], 3), np.uint8) for _ in range(PROFILED)]
    with TemporaryDirectory() as folder:
        made: dict[str, Form] = {}
        for layout in layouts:
            run = untrained_run(Path(folder, layout), arch, layout, size or frame, heads)
            predictor = Predictor.load(run, device, arch=arch)
            made |= {f"{layout} {name}": make_form(name, predictor, frame, Path(folder, f"{layout}.onnx")) for name in forms}
        actions = {name: partial(_next, form.segment, cycle(pictures)) for name, form in made.items()}
        times = interleaved(actions, frames, device)
        shares = {name: form.shares(pictures) for name, form in made.items()}
    for layout in layouts:
        conditions = {"arch": arch, "layout": layout, "heads": heads, "frame": [*frame], "size": [*(size or frame)]}
        figures = {name: _figures(times[f"{layout} {name}"], shares[f"{layout} {name}"]) for name in forms}
        yield {**conditions, "frames": frames, "forms": figures, **_ratios(times, layout, forms)}


def check_forms(forms: Sequence[str], device: torch.device) -> None:
    """Raises MtkdError where a form cannot be measured here."""
    exported = [name for name in forms if name in RUNTIMES]
    if exported and device.type != "cpu":
        raise MtkdError(f"{', '.join(exported)} are measured on the CPU only. On a GPU give --form plain --form fastest.")
    for name in exported:
        check_packages("onnx", "onnxscript", name)


def untrained_run(folder: Path, arch: str, layout: str, size: Size, heads: int) -> Path:
    """A run folder, or of "separate" networks a teachers folder, with random weights and records of what `Predictor` asks for."""
    torch.manual_seed(0)
    anatomies = [f"anatomy_{number:02d}" for number in range(heads)]
    record = {"arch": arch, "anatomies": anatomies, "size": [*size], "seed": 0, "best_epoch": 0, "val_dice": 0.0}
    if layout != "separate":
        save_network(folder / WEIGHTS, spread_out(create_network(arch, heads, layout)), anatomies)
        write_json(folder / RUN, {**record, "kind": "student", "layout": layout, "kd": False, "cache_fingerprint": None})
        return folder
    for anatomy in anatomies:
        save_network(folder / anatomy / WEIGHTS, spread_out(create_network(arch, 1)), [anatomy])
        write_json(folder / anatomy / TEACHER, {**record, "kind": "teacher", "anatomy": anatomy})
    return folder


def make_form(name: str, predictor: Predictor, frame: Size, path: Path) -> Form:
    """The form of this name; those of exported files share the file at `path`, which the first one writes."""
    if name in TORCH:
        chosen = predictor.fastest() if name == "fastest" else predictor
        return Form(lambda picture: chosen(picture).masks, partial(torch_shares, chosen))
    if not path.exists():
        export_onnx(predictor, path, (frame[1], frame[0]))
    segment = RUNTIMES[name](path, [MASKS], torch.get_num_threads())
    return Form(lambda picture: segment(picture)[MASKS], partial(exported_shares, PROFILES[name], path))


def torch_shares(predictor: Predictor, pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """The parts of `Predictor`'s call, with a clock between them."""
    thresholds = torch.tensor(list(predictor.thresholds.values()), device=predictor.device)[:, None, None]
    seconds = dict.fromkeys(PARTS, 0.0)
    for picture in pictures:
        with torch.inference_mode():
            clock = _Clock(predictor.device, seconds)
            image = to_network(picture, predictor.size, predictor.device)
            clock("resize")
            maps, upsampling = predictor.maps(image, frame=(picture.shape[0], picture.shape[1]))
            clock("network")
            masks = upsampling.above(maps[0], thresholds)
            clock("upsampling")
            masks.cpu().numpy()
            clock("copy")
    return _normalized(seconds)


def exported_shares(
    profile: Callable[[Path, Sequence[np.ndarray]], tuple[Steps, float]], path: Path, pictures: Sequence[np.ndarray]
) -> dict[str, float]:
    """The parts of an exported file: what runs before the first, up to the last, and after the last convolution."""
    steps, total = profile(path, pictures)
    network = [number for number, (operation, _) in enumerate(steps) if CONVOLUTION.search(operation)]
    if not network:
        raise MtkdError(f"{path}: the profile names no convolution, so that the shares of the parts are not known.")
    first, last = network[0], network[-1] + 1
    inside = [sum(seconds for _, seconds in part) for part in (steps[:first], steps[first:last], steps[last:])]
    return _normalized(dict(zip(PARTS, [*inside, max(0.0, total - sum(inside))], strict=True)))


def profile_onnxruntime(path: Path, pictures: Sequence[np.ndarray]) -> tuple[Steps, float]:
    """The operations of one run, the mean over pictures, and the seconds of a whole run; the first picture does not count."""
    with TemporaryDirectory() as folder:
        session, only_these = onnxruntime_session(path, torch.get_num_threads(), str(Path(folder, "profile")))
        total = _seconds(lambda picture: session.run([MASKS], {FRAME: picture}, only_these), pictures)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    kernels.sort(key=lambda event: event["ts"])
    return _mean_steps([(event["args"]["op_name"], event["dur"] / 1e6) for event in kernels], len(pictures)), total


def profile_openvino(path: Path, pictures: Sequence[np.ndarray]) -> tuple[Steps, float]:
    """See `profile_onnxruntime`."""
    request = openvino_request(path, [MASKS], torch.get_num_threads(), profile=True)
    steps: list[tuple[str, float]] = []

    def run(picture: np.ndarray) -> None:
        request.infer([picture], share_inputs=True, share_outputs=True)
        steps.extend((each.node_type, each.real_time.total_seconds()) for each in request.profiling_info)

    total = _seconds(run, pictures)
    return _mean_steps(steps, len(pictures)), total


PROFILES = {"onnxruntime": profile_onnxruntime, "openvino": profile_openvino}


class _Clock:
    """Adds the seconds since its last call to a part's."""

    def __init__(self, device: torch.device, seconds: dict[str, float]):
        self.device, self.seconds = device, seconds
        wait(device)
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        wait(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now


def _next(segment: Callable[[np.ndarray], np.ndarray], pictures: Iterator[np.ndarray]) -> np.ndarray:
    return segment(next(pictures))


def _seconds(run: Callable[[np.ndarray], object], pictures: Sequence[np.ndarray]) -> float:
    """The mean seconds of a run, after the first."""
    run(pictures[0])
    start = time.perf_counter()
    for picture in pictures[1:]:
        run(picture)
    return (time.perf_counter() - start) / (len(pictures) - 1)


def _mean_steps(steps: Steps, runs: int) -> Steps:
    """The steps of one run from those of all, of which the first does not count."""
    length = len(steps) // runs
    later = np.array([seconds for _, seconds in steps])[length : length * runs].reshape(runs - 1, length).mean(0)
    return [(operation, float(seconds)) for (operation, _), seconds in zip(steps[:length], later, strict=True)]


def _normalized(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {part: value / total for part, value in seconds.items()}


def _figures(times: Sequence[float], shares: dict[str, float]) -> Result:
    p50, p95, p99 = (1e3 * float(value) for value in np.percentile(times, [50, 95, 99]))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": 1e3 * max(times), "shares": shares}


def _ratios(times: Mapping[str, list[float]], layout: str, forms: Sequence[str]) -> dict[str, dict[str, float]]:
    found = {}
    if "fastest" in forms:
        found["over_fastest"] = {
            name: ratio(times, f"{layout} {name}", f"{layout} fastest") for name in forms if name not in TORCH
        }
    if layout != "shared" and f"shared {forms[0]}" in times:
        found["shared_over"] = {name: ratio(times, f"shared {name}", f"{layout} {name}") for name in forms}
    return found
