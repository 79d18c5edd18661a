"""Whether an exported file says what the network it was made of says."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtkd_cache.data.dresden import read_image
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.deploy.inputs import find_clips
from mtkd_cache.deploy.onnx_file import MASKS, PROBABILITIES, RUNTIMES
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.frames import Prediction
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.runtime.progress import progress_bar

NEAR = 1e-3  # of a threshold, in logits: within it rounding may decide


@dataclass
class Parity:
    """Pixels of all anatomies' masks, counted over frames.

    near_threshold: those whose logit in torch lies within `NEAR` of the threshold. differing: whose mask is another than torch's.
    unexplained: those differing that are not near the threshold. claimed: those in torch's masks. probability_difference: the
    largest.
    """

    frames: int = 0
    pixels: int = 0
    claimed: int = 0
    near_threshold: int = 0
    differing: int = 0
    unexplained: int = 0
    probability_difference: float = 0.0

    def add(self, expected: Prediction, near: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Count one frame. near: bool (N, H, W). outputs: of the file."""
        differs = (outputs[MASKS] != 0) != expected.masks
        self.frames += 1
        self.pixels += near.size
        self.claimed += int(expected.masks.sum())
        self.near_threshold += int(near.sum())
        self.differing += int(differs.sum())
        self.unexplained += int((differs & ~near).sum())
        difference = float(np.abs(outputs[PROBABILITIES] - expected.probabilities).max())
        self.probability_difference = max(self.probability_difference, difference)

    def __add__(self, other: "Parity") -> "Parity":
        largest = max(self.probability_difference, other.probability_difference)
        counts = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Parity(**{**counts, "probability_difference": largest})


def compare(
    predictor: Predictor, path: Path, frames: Iterable[np.ndarray], runtimes: Sequence[str], label: str = "compare"
) -> dict[str, Parity]:
    """Run frames through a network in torch and through the file that `export_onnx` wrote of it, in several runtimes.

    Args:
        predictor: what was exported.
        path: of the file.
        frames: uint8 RGB (H, W, 3), of the size that the file takes.
        runtimes: some of `RUNTIMES`.
        label: of the progress bar.
    """
    exported = {name: RUNTIMES[name](path) for name in runtimes}
    found = {name: Parity() for name in runtimes}
    with progress_bar(label, "frame", None) as progress:
        for frame in frames:
            expected = predictor(frame)
            near = expected.margins.abs().cpu().numpy() < NEAR
            for name, segment in exported.items():
                found[name].add(expected, near, segment(frame))
            progress.update()
    return found


def check(
    predictor: Predictor, path: Path, frame: tuple[int, int], sources: Sequence[Path], count: int, runtimes: Sequence[str]
) -> dict[str, Any]:
    """`compare` on pictures of each source.

    Args:
        predictor, path, runtimes: see `compare`.
        frame: (height, width) that the pictures are resized to.
        sources: images, folders of images and sample stores.
        count: pictures of each source at most, spread evenly over it.

    Returns:
        the fields of `Parity` over all sources, of the runtime that differs most; near; ok, whether every differing pixel is near
        its threshold; and by_runtime: {runtime: {source: fields of `Parity`}}.
    """
    found: dict[str, dict[str, Parity]] = {name: {} for name in runtimes}
    for source in sources:
        for name, parity in compare(predictor, path, frames_of(source, frame, count), runtimes, str(source)).items():
            found[name][str(source)] = parity
    totals = [sum(each.values(), Parity()) for each in found.values()]
    worst = max(totals, key=lambda total: (total.unexplained, total.differing))
    by_runtime = {name: {source: vars(parity) for source, parity in each.items()} for name, each in found.items()}
    return {**vars(worst), "near": NEAR, "ok": worst.unexplained == 0, "by_runtime": by_runtime}


def frames_of(source: Path, frame: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """Pictures of a sample store, of a folder or of a file, as uint8 RGB arrays of the size frame = (height, width)."""
    height, width = frame
    if (source / "zarr.json").exists():
        store = SampleStore.open(str(source))
        for row in _spread(range(len(store.hashes)), count):
            [image], _ = store.read(np.array([row]))
            yield np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return
    clips = [clip for clip in find_clips([source], source / "outputs") if not clip.is_video]
    if not clips:
        raise MtkdError(f"{source} holds no image. Name a folder of images or a sample store.")
    for path in _spread([path for clip in clips for path in clip.paths], count):
        yield read_image(path, (width, height))[0]


def _spread(found: Sequence[Any], count: int) -> list[Any]:
    return [found[index] for index in np.linspace(0, len(found) - 1, min(len(found), count)).round().astype(int)]
