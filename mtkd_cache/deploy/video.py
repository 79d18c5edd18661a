"""Videos in and out with PyAV, which brings FFmpeg: frames as RGB arrays with their time stamps, H.264 in an MP4 file out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.folder import durable_file

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

BT709, LIMITED = 1, 1  # as FFmpeg numbers colors and their range
ENCODER = {"preset": "veryfast", "crf": "20"}


class Video:
    """A video file that is being read.

    path: its file.
    rate: frames a second on average, for an encoder to plan with.
    time_base: seconds of one unit of the time stamps.
    expected: the number of frames that the file states, 0 where it states none.
    stamp: of the frame read last, in units of the time base.
    """

    def __init__(self, path: Path, container: "InputContainer", stream: "VideoStream"):
        self.path, self._container, self._stream = path, container, stream
        self.rate = stream.average_rate or Fraction(25)
        self.time_base = stream.time_base or 1 / self.rate
        self.expected = stream.frames
        self.stamp = 0
        self._read, self._damaged, self._seconds = 0, 0, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every frame that can be decoded, uint8 RGB (H, W, 3), all of the first one's size."""
        size: tuple[int, int] | None = None
        step, start = max(1, round(1 / (self.rate * self.time_base))), 0
        for frame in self._frames():
            size = size or (frame.width, frame.height)
            following = self.stamp + step if self._read else 0
            self.stamp = following if frame.pts is None else frame.pts
            start = start if self._read else self.stamp
            self._read += 1
            self._seconds = float((self.stamp + (frame.duration or step) - start) * self.time_base)
            yield frame.to_ndarray(format="rgb24", width=size[0], height=size[1])

    def _frames(self) -> Iterator["VideoFrame"]:
        from av.error import FFmpegError

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = packet.decode()
            except FFmpegError:
                self._damaged += 1
                continue
            for frame in frames:
                self._damaged += frame.is_corrupt
                yield frame

    @property
    def damage(self) -> str | None:
        """After reading: what is wrong with the file, None where nothing is.

        A file is cut off where its frames end more than two frames before the length that it states.
        """
        lengths = [self._container.duration and self._container.duration / 1e6]
        lengths += [self._stream.duration and float(self._stream.duration * self.time_base)]
        missing = min((length for length in lengths if length), default=0.0) - self._seconds
        if not self._damaged and missing <= 2 / self.rate:
            return None
        return f"{self.path} is damaged or cut off: {self._read} frames, {self._seconds:.2f} s, could be read and were predicted."


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video for reading.

    Raises MtkdError where PyAV is missing, the file is no readable video, or it holds no video stream.
    """
    av = _pyav()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise MtkdError(
            f"{path} cannot be read as a video ({error.strerror}). Restore the file: without its index an MP4 holds no frames."
        ) from error
    with container:
        if not container.streams.video:
            raise MtkdError(f"{path} holds no pictures. Name a video.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield Video(path, container, stream)


@contextmanager
def write_video(target: Path, size: tuple[int, int], like: Video) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Write H.264 in an MP4 file, whole or not at all: a function of time stamp and frame, uint8 RGB (H, W, 3).

    size: (width, height) of the frames, even both. like: whose time base and rate it has.
    """
    av = _pyav()
    with durable_file(target) as file:
        container = av.open(file, "w", format="mp4")
        try:
            stream = container.add_stream("libx264", rate=like.rate, options=ENCODER)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            context = stream.codec_context
            context.time_base = like.time_base
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED

            def write(stamp: int, frame: np.ndarray) -> None:
                encoded = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p", dst_colorspace=BT709)
                encoded.pts, encoded.time_base = stamp, like.time_base
                container.mux(stream.encode(encoded))

            yield write
            container.mux(stream.encode(None))
        except BaseException:
            with suppress(Exception):  # of a file that cannot be finished: the first error is told
                container.close()
            raise
        container.close()


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise MtkdError("videos need PyAV, which is not installed. Install it: pip install 'mtkd-cache[video]'.") from error
    return av
