"""Masks, probabilities and overlays of images and videos, as files."""

import io
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtkd_cache.data.dresden import read_image
from mtkd_cache.deploy.inputs import Clip, find_clips
from mtkd_cache.deploy.overlay import colors_of, overlay
from mtkd_cache.deploy.video import open_video, write_video
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.frames import Prediction
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.runtime.progress import Bar, progress_bar
from mtkd_cache.storage.folder import write_durably


@dataclass(frozen=True)
class Outputs:
    """What is written about a frame called STEM.

    masks: "indexed": STEM-mask.png, 0 where no head claims the pixel, else 1 + the number of the anatomy on top; "separate":
        STEM-mask-ANATOMY.png, 0 or 255, one of each anatomy; "none".
    probabilities: STEM-probabilities.npz, an array float16 (H, W) of each anatomy, by name.
    overlays: STEM-overlay.png, and STEM-overlay.mp4 of a video instead.
    """

    masks: str = "indexed"
    probabilities: bool = False
    overlays: bool = True

    def maps(self, prediction: Prediction) -> Iterator[tuple[str, bytes]]:
        """The files of masks and probabilities: ending and content."""
        if self.masks == "indexed":
            yield "mask.png", png(prediction.labels, colors_of(len(prediction.anatomies)))
        elif self.masks == "separate":
            for anatomy, mask in zip(prediction.anatomies, prediction.masks, strict=True):
                yield f"mask-{anatomy}.png", png(mask * np.uint8(255))
        if self.probabilities:
            maps = dict(zip(prediction.anatomies, prediction.probabilities.astype(np.float16), strict=True))
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **maps)
            yield "probabilities.npz", buffer.getvalue()


def predict(predictor: Predictor, inputs: Sequence[Path], out: Path, outputs: Outputs, smooth: float = 0) -> dict[str, Any]:
    """Segment images and videos and write what is asked for, every file whole or not at all.

    Args:
        predictor: what segments them.
        inputs: images, videos and folders, see `find_clips`, which also says where the outputs lie.
        out: the folder of the outputs; files of the same names in it are replaced.
        outputs: what is written.
        smooth: how many frames the exponential mean over a clip lags, see `Predictor.sequence`.

    Returns:
        {"inputs": images and videos, "frames", "files": [path], "ms": median milliseconds from a decoded frame to its masks,
        "damaged": [a message for each video that could not be read to its end]}.

    Raises:
        MtkdError: an input is missing, unreadable or without a frame; PyAV is missing and there is a video.
    """
    clips = find_clips(inputs, out)
    frames = sum(map(_length, clips))
    with progress_bar("predict", "frame", frames or None) as progress:
        run = _Run(predictor, outputs, smooth, progress)
        for clip in clips:
            (run.video if clip.is_video else run.images)(clip)
    return {
        "inputs": sum(len(clip.paths) for clip in clips),
        "frames": len(run.seconds),
        "files": run.files,
        "ms": 1000 * statistics.median(run.seconds),
        "damaged": run.damaged,
    }


def _length(clip: Clip) -> int:
    """The number of frames. Opens a video, so that one which cannot be read is told before anything is written."""
    if not clip.is_video:
        return len(clip.paths)
    with open_video(clip.paths[0]) as video:
        return video.expected


@dataclass
class _Run:
    """One call of `predict`. files: those written; seconds: of each frame; damaged: what is wrong with videos."""

    predictor: Predictor
    outputs: Outputs
    smooth: float
    progress: Bar
    files: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def images(self, clip: Clip) -> None:
        frames = (read_image(path)[0] for path in clip.paths)
        for path, (frame, prediction) in zip(clip.paths, self._predictions(frames), strict=True):
            self._write_maps(clip.out / path.stem, prediction)
            if self.outputs.overlays:
                self._write(clip.out / f"{path.stem}-overlay.png", png(overlay(frame, prediction)))

    def video(self, clip: Clip) -> None:
        [path] = clip.paths
        target = clip.out / f"{path.stem}-overlay.mp4"
        with open_video(path) as video, ExitStack() as stack:
            write, number = None, 0
            for number, (frame, prediction) in enumerate(self._predictions(video), start=1):
                self._write_maps(clip.out / path.stem / f"{number - 1:06}", prediction)
                if self.outputs.overlays:
                    drawn = overlay(frame, prediction)
                    if write is None:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        write = stack.enter_context(write_video(target, drawn.shape[1::-1], video))
                        self.files.append(str(target))
                    write(video.stamp, drawn)
            if not number:
                raise MtkdError(f"{path} holds no frame that can be read. Restore the file or name another.")
            self.damaged += [video.damage] if video.damage else []

    def _predictions(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Prediction]]:
        own, copies = tee(frames)
        predictions = self.predictor.sequence(copies, self.smooth)
        for frame in own:
            start = time.perf_counter()
            prediction = next(predictions)
            prediction.masks.any()  # waits for the device
            self.seconds.append(time.perf_counter() - start)
            yield frame, prediction
            self.progress.update()

    def _write_maps(self, stem: Path, prediction: Prediction) -> None:
        for ending, data in self.outputs.maps(prediction):
            self._write(stem.with_name(f"{stem.name}-{ending}"), data)

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data)
        self.files.append(str(path))


def png(picture: np.ndarray, colors: np.ndarray | None = None) -> bytes:
    """A PNG file of uint8 RGB (H, W, 3) or gray (H, W), or of the numbers (H, W) of `colors` (N, 3)."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if colors is not None:
        image.putpalette(colors.tobytes())
    image.save(buffer, format="PNG")
    return buffer.getvalue()
