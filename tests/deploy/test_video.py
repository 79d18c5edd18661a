"""Videos in and out: time stamps, colors, and files that are torn, empty or no videos."""

import errno
import io
import sys
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest

from mtkd_cache.deploy.video import open_video, write_video
from mtkd_cache.errors import MtkdError

av = pytest.importorskip("av")
STAMPS = (0, 3600, 9000, 9100, 20000)  # in units of 1/90000 s: frames that do not come at a constant rate


def make_video(path, frames, codec="libx264", pixels="yuv420p", stamps=None, **options):
    """Write frames, uint8 (H, W, 3), at 25 a second or at these time stamps."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "4"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        stream.codec_context.time_base = Fraction(1, 90000)
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = (stamps[number] if stamps else 3600 * number), Fraction(1, 90000)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def moving(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A bright square that moves over noise."""
    random = np.random.default_rng(0)
    frames = [random.integers(0, 90, (height, width, 3), np.uint8) for _ in range(count)]
    for number, frame in enumerate(frames):
        frame[10:20, number : number + 10] = (230, 40, 60)
    return frames


def read(path):
    with open_video(path) as video:
        frames = [(video.stamp * video.time_base, frame) for frame in video]
        return frames, video.damage


def test_time_stamps_and_colors_come_out_as_they_went_in(tmp_path):
    flat = [
        np.full((48, 64, 3), color, np.uint8) for color in ((200, 40, 60), (20, 180, 40), (30, 60, 220), (0, 0, 0), (255,) * 3)
    ]
    source = make_video(tmp_path / "in.mp4", flat, stamps=STAMPS)
    with open_video(source) as video:
        with write_video(tmp_path / "out.mp4", (64, 48), video) as write:
            for frame, color in zip(video, flat, strict=True):
                write(video.stamp, color if video.stamp else frame)
    frames, damage = read(tmp_path / "out.mp4")
    assert [stamp for stamp, _ in frames] == [Fraction(stamp, 90000) for stamp in STAMPS]
    assert damage is None
    for (_, frame), color in zip(frames[1:], flat[1:], strict=True):
        assert np.abs(frame.astype(int) - color).max() <= 6
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_nothing_is_left_of_a_video_that_fails(tmp_path):
    source = make_video(tmp_path / "in.mp4", moving(3))
    with (
        pytest.raises(ZeroDivisionError),
        open_video(source) as video,
        write_video(tmp_path / "out.mp4", (64, 48), video) as write,
    ):
        write(0, next(iter(video)))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_disk_that_fills_up_while_a_video_is_written_is_told(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 500:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    @contextmanager
    def full_file(target):
        yield Full()

    source = make_video(tmp_path / "in.mp4", moving(60))
    monkeypatch.setattr("mtkd_cache.deploy.video.durable_file", full_file)
    with pytest.raises(OSError, match="No space left"), open_video(source) as video:
        with write_video(tmp_path / "out.mp4", (64, 48), video) as write:
            for frame in video:
                write(video.stamp, frame)


@pytest.mark.parametrize(("name", "options"), [("torn.mkv", {}), ("torn.mp4", {"options": {"movflags": "faststart"}})])
def test_of_a_torn_video_what_is_there_is_read_and_said(tmp_path, name, options):
    path = make_video(tmp_path / name, moving(40), **options)
    whole, damage = read(path)
    assert (len(whole), damage) == (40, None)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    frames, damage = read(path)
    assert 10 < len(frames) < 40
    assert damage.startswith(f"{path} is damaged or cut off: {len(frames)} frames")
    assert all(np.array_equal(frame, other) for (_, frame), (_, other) in zip(frames[:10], whole, strict=False))


def test_a_video_damaged_in_its_middle_is_read_on(tmp_path):
    path = make_video(tmp_path / "damaged.mp4", moving(40))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    frames, damage = read(path)
    assert len(frames) > 20
    assert frames[-1][0] == Fraction(39, 25)  # up to the end
    assert damage.startswith(f"{path} is damaged or cut off: {len(frames)} frames, 1.60 s")


def test_ten_bit_color_becomes_eight_bit(tmp_path):
    gray = np.full((48, 64, 3), 128, np.uint8)
    frames, damage = read(make_video(tmp_path / "ten.mkv", [gray, gray], codec="ffv1", pixels="yuv420p10le"))
    assert damage is None
    assert all(frame.dtype == np.uint8 and np.abs(frame.astype(int) - 128).max() <= 2 for _, frame in frames)


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MtkdError, match=r"text.mp4 cannot be read as a video \(.+\)\. Restore the file"):
        read(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(MtkdError, match=r"sound.wav holds no pictures"):
        read(tmp_path / "sound.wav")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MtkdError, match=r"videos need PyAV.*pip install 'mtkd-cache\[video\]'"):
        read(tmp_path / "any.mp4")
