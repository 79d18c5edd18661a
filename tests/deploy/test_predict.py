"""mtkd-cache predict: which files it writes about images, folders and videos, and that a failure leaves nothing half-written."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import untrained_student
from test_video import make_video, moving

from mtkd_cache.cli.main import main
from mtkd_cache.deploy.overlay import colors_of, overlay
from mtkd_cache.deploy.video import open_video
from mtkd_cache.evaluation.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_student(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with two images, a mask of a dataset, a note, a video in a folder below; and an odd-sized image outside of it."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "folder" / "below").mkdir(parents=True)
    for name, frame in zip(("folder/image01.png", "folder/image00.png", "single.png"), moving(3, 31, 45), strict=True):
        Image.fromarray(frame).save(root / name)
    Image.new("L", (45, 31)).save(root / "folder/mask00.png")
    (root / "folder/note.txt").write_text("no image")
    make_video(root / "folder/below/clip.mp4", moving(5))
    return root


def call(*arguments, status: int = 0):
    result = CliRunner().invoke(main, ["predict", *map(str, arguments), "--device", "cpu", "--json"])
    assert result.exit_code == status, result.stderr or result.exception
    return json.loads(result.stdout.splitlines()[-1]) if status == 0 else result.stderr


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_folders_and_videos(run, inputs, tmp_path):
    said = call(run, inputs / "folder", inputs / "single.png", "--out", tmp_path / "out")
    frames = [f"folder/below/clip/{number:06}-mask.png" for number in range(5)]
    images = [f"{name}-{kind}.png" for name in ("folder/image00", "folder/image01", "single") for kind in ("mask", "overlay")]
    assert below(tmp_path / "out") == sorted([*frames, *images, "folder/below/clip-overlay.mp4"])
    assert sorted(said["files"]) == [str(tmp_path / "out" / name) for name in below(tmp_path / "out")]
    assert (said["inputs"], said["frames"], said["damaged"]) == (4, 8, [])
    assert said["ms"] > 0
    predictor, frame = Predictor.load(run), pixels(inputs / "single.png")
    expected = predictor(frame)
    with Image.open(tmp_path / "out/single-mask.png") as image:
        assert np.array_equal(np.asarray(image), expected.labels)
        assert np.array_equal(np.reshape(image.getpalette()[:9], (3, 3)), colors_of(2))
    assert np.array_equal(pixels(tmp_path / "out/single-overlay.png"), overlay(frame, expected))
    below_out = tmp_path / "out/folder/below"
    with open_video(inputs / "folder/below/clip.mp4") as source, open_video(below_out / "clip-overlay.mp4") as drawn:
        for number, (frame, picture) in enumerate(zip(source, drawn, strict=True)):
            assert source.stamp * source.time_base == drawn.stamp * drawn.time_base
            expected = predictor(frame)
            assert np.abs(overlay(frame, expected).astype(int) - picture).mean() < 12
            assert np.array_equal(pixels(below_out / f"clip/{number:06}-mask.png"), expected.labels)


def test_separate_masks_and_probabilities_keep_what_overlaps(run, inputs, tmp_path):
    call(run, inputs / "single.png", "--out", tmp_path, "--masks", "separate", "--probabilities", "--no-overlays")
    names = ["single-mask-kidney.png", "single-mask-tongue.png", "single-probabilities.npz"]
    assert below(tmp_path) == names
    expected = Predictor.load(run)(pixels(inputs / "single.png"))
    assert expected.masks.all(0).any()  # both heads claim some pixels
    for name, mask in zip(names[:2], expected.masks, strict=True):
        assert np.array_equal(pixels(tmp_path / name), mask * 255)
    with np.load(tmp_path / names[2]) as maps:
        assert list(maps) == ["kidney", "tongue"]
        assert np.allclose(np.stack(list(maps.values())), expected.probabilities, atol=1e-3)


def test_smoothing_runs_over_the_images_of_a_folder(run, inputs, tmp_path):
    call(run, inputs / "folder", "--out", tmp_path, "--smooth", "3", "--no-overlays")
    frames = [pixels(inputs / f"folder/image0{number}.png") for number in range(2)]
    first, second = Predictor.load(run).sequence(frames, smooth=3)
    assert np.array_equal(pixels(tmp_path / "folder/image00-mask.png"), first.labels)
    assert np.array_equal(pixels(tmp_path / "folder/image01-mask.png"), second.labels)
    assert not np.array_equal(second.labels, Predictor.load(run)(frames[1]).labels)


def test_outputs_within_the_folder_are_no_inputs(run, inputs, tmp_path):
    Image.fromarray(moving(1)[0]).save(tmp_path / "a.png")
    for _ in range(2):
        assert call(run, tmp_path, "--out", tmp_path / "out")["inputs"] == 1


def test_a_folder_that_is_its_own_output_is_not_called_empty(run, tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(moving(1)[0]).save(tmp_path / "images" / "a.png")
    for out in (tmp_path / "images", tmp_path):
        said = call(run, tmp_path / "images", "--out", out, status=1)
        assert f"images holds images or videos only in {out}, the folder of the outputs, which is passed over" in said


def test_bad_input_is_told_before_anything_is_written(run, inputs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    Image.new("RGB", (8, 8)).save(tmp_path / "single.jpg")
    out = tmp_path / "out"
    for bad, message in (
        ([tmp_path / "nowhere"], "nowhere: there is no such file or folder"),
        ([tmp_path / "empty"], "empty holds no image and no video"),
        ([tmp_path / "text.mp4"], "text.mp4 cannot be read as a video"),
        ([tmp_path / "single.jpg"], "two inputs are called single"),
    ):
        assert message in call(run, inputs / "single.png", *bad, "--out", out, status=1)
        assert not out.exists()
    out.write_text("a file")
    assert "out" in (told := call(run, inputs / "single.png", "--out", out, status=1))
    assert len(told.splitlines()) <= 2


def test_a_torn_video_is_predicted_as_far_as_it_goes(run, tmp_path):
    path = make_video(tmp_path / "torn.mkv", moving(16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = call(run, path, "--out", tmp_path / "out", "--masks", "none")
    assert below(tmp_path / "out") == ["torn-overlay.mp4"]
    assert 3 < said["frames"] < 16
    assert said["damaged"] == [message := said["damaged"][0]]
    assert "torn.mkv is damaged or cut off" in message


def test_a_video_without_frames_leaves_nothing(run, tmp_path):
    path = make_video(tmp_path / "short.mkv", moving(1), codec="ffv1")
    path.write_bytes(path.read_bytes()[:700])
    assert "short.mkv holds no frame that can be read" in call(run, path, "--out", tmp_path / "out", status=1)
    assert not (tmp_path / "out").exists()
