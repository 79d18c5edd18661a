"""The synthetic dataset: the real one's layout, the same pixels for a seed, and a learnable problem."""

import csv
import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtkd_cache.data.dresden import ANATOMIES, REFERENCE_TEST, REFERENCE_VALIDATION, find_samples
from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.phantom.canvas import BACKGROUND, Canvas, linear
from mtkd_cache.phantom.dataset import MULTILABEL_ANATOMIES, _surgeries_of, write_phantom
from mtkd_cache.phantom.scene import render
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked

SIZE = (64, 48)
VESSELS = ("inferior_mesenteric_artery", "intestinal_veins", "ureter")
LARGE = ("abdominal_wall", "colon", "liver", "stomach")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Path, dict]:
    """A small synthetic dataset, and what writing it returned."""
    root = tmp_path_factory.mktemp("phantom") / "dataset"
    return root, write_phantom(root, size=SIZE, images_per_surgery=2, surgeries=(3, 1))


@pytest.fixture(scope="module")
def gallery() -> dict[str, list[tuple[np.ndarray, dict]]]:
    """Six rendered images of each anatomy, from six surgeries."""
    return {name: [render(0, surgery, name, 0, (160, 128)) for surgery in range(1, 7)] for name in ANATOMIES}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def eroded(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask without what lies within `by` pixels, along rows and columns, of its border."""
    for axis in (0, 1):
        mask = np.logical_and.reduce([np.roll(mask, shift, axis) for shift in range(-by, by + 1)])
    return mask


def test_layout_is_the_real_datasets(dataset):
    root, counts = dataset
    assert {path.name for path in root.iterdir() if not path.name.startswith(".")} == {*ANATOMIES, "multilabel"}
    for anatomy in ANATOMIES:
        assert {path.name for path in (root / anatomy).iterdir()} == {"01", "03"}
    sources, skipped = find_samples(root)
    assert len(sources) == counts["images"] == sum(counts["by_anatomy"].values())
    assert {name: sum(s.anatomy == name for s in sources) for name in ANATOMIES} == counts["by_anatomy"]
    assert skipped["multilabel"] == 1
    assert skipped["single raters' folders"] == 4 * len(ANATOMIES)
    assert counts["surgeries"] == [1, 3]
    assert counts["size"] == list(SIZE)
    assert counts["seed"] == 0
    assert counts["bytes"] == sum(len(data) for name, data in contents(root).items() if not name.startswith("."))


def test_images_have_the_size_and_masks_are_0_and_255(dataset):
    root, _ = dataset
    foregrounds = []
    for source in find_samples(root)[0]:
        image, mask = pixels(source.image), pixels(source.mask)
        assert image.shape == (SIZE[1], SIZE[0], 3)
        assert mask.shape == (SIZE[1], SIZE[0])
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        foregrounds.append(mask.any())
    assert np.mean(foregrounds) > 0.95


def test_multilabel_holds_the_stomach_images_with_seven_masks(dataset):
    root, _ = dataset
    visible = []
    for image in sorted((root / "stomach").glob("*/image*.png")):
        twin = root / "multilabel" / image.parent.name / image.name
        assert twin.read_bytes() == image.read_bytes()
        masks = {path.stem: pixels(path) > 0 for path in twin.parent.glob(f"mask{image.stem[5:]}_*.png")}
        assert set(masks) == {f"mask{image.stem[5:]}_{name}" for name in MULTILABEL_ANATOMIES}
        assert (sum(mask.astype(int) for mask in masks.values()) <= 1).all()
        own = pixels(image.with_name(image.name.replace("image", "mask"))) > 0
        assert (masks[f"mask{image.stem[5:]}_stomach"] == own).all()
        visible.append(sum(mask.any() for mask in masks.values()))
    assert np.mean(visible) >= 2


def test_every_image_can_have_all_its_masks(tmp_path):
    for name, options in (("plain", {}), ("all", {"all_multilabel": True})):
        write_phantom(tmp_path / name, size=SIZE, images_per_surgery=1, surgeries=(3,), **options)
    own, plain = (
        {key: value for key, value in contents(tmp_path / name).items() if not key.startswith(("multilabel/", "."))}
        for name in ("all", "plain")
    )
    assert own == plain
    copies = sorted((tmp_path / "all" / "multilabel" / "03").glob("image*.png"))
    assert len(copies) == len(list((tmp_path / "all").glob("[!m]*/03/image*.png")))
    for copy in copies:
        anatomy, index = divmod(int(copy.stem.removeprefix("image")), 10_000)
        image = tmp_path / "all" / ANATOMIES[anatomy] / "03" / f"image{index:02d}.png"
        assert copy.read_bytes() == image.read_bytes()
        masks = {path.stem.partition("_")[2]: path for path in copy.parent.glob(f"mask{copy.stem.removeprefix('image')}_*.png")}
        assert set(masks) == set(ANATOMIES)
        assert masks[ANATOMIES[anatomy]].read_bytes() == image.with_name(f"mask{index:02d}.png").read_bytes()
        with (image.parent / "weak_labels.csv").open() as file:
            labels = list(csv.DictReader(file))[index]
        assert {name: labels[name] == "1" for name in ANATOMIES} == {name: pixels(path).any() for name, path in masks.items()}
    with pytest.raises(MtkdError, match="all_multilabel"):
        write_phantom(tmp_path / "all", size=SIZE, images_per_surgery=1, surgeries=(3,))


def test_weak_labels_say_what_is_visible(dataset):
    root, _ = dataset
    with (root / "stomach" / "01" / "weak_labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == sorted(path.name for path in (root / "stomach" / "01").glob("image*.png"))
    for row in rows:
        for name in MULTILABEL_ANATOMIES:
            mask = root / "multilabel" / "01" / row["image"].replace("image", "mask").replace(".", f"_{name}.")
            assert row[name] == str(int(pixels(mask).any()))


def test_pixels_depend_on_the_seed_alone(dataset, tmp_path):
    root, _ = dataset
    write_phantom(tmp_path, size=SIZE, images_per_surgery=2, surgeries=[3], workers=2)
    same = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("[im]*[0-9].png") if path.parent.name == "03")
    assert len(same) > 2 * len(ANATOMIES)
    for path in same:
        assert (pixels(tmp_path / path) == pixels(root / path)).all(), path
    assert (render(1, 3, "liver", 0, SIZE)[0] != render(0, 3, "liver", 0, SIZE)[0]).any()


def test_pixels_are_the_same_on_every_machine():
    image, masks = render(0, 5, "ureter", 0, SIZE)
    digest = hashlib.sha256(image.tobytes() + b"".join(masks[name].tobytes() for name in ANATOMIES)).hexdigest()
    assert digest[:16] == "e173b3b931996ea6"  # renew it when the drawing is changed on purpose


def test_every_anatomy_has_20_to_23_surgeries_in_all_three_parts():
    chosen = {name: set(_surgeries_of(0, name)) for name in ANATOMIES}
    for numbers in chosen.values():
        assert 20 <= len(numbers) <= 23
        assert numbers <= set(range(1, 33))
        assert numbers & set(REFERENCE_VALIDATION)
        assert numbers & set(REFERENCE_TEST)
        assert len(numbers - set(REFERENCE_VALIDATION) - set(REFERENCE_TEST)) >= 10
    assert len({frozenset(numbers) for numbers in chosen.values()}) > 1


def test_the_annotated_anatomy_is_visible_among_others(gallery):
    for name, images in gallery.items():
        assert sum(masks[name].any() for _, masks in images) >= 5, name
    visible = [sum(mask.any() for mask in masks.values()) for images in gallery.values() for _, masks in images]
    assert np.mean(visible) >= 2
    unlabeled = [~np.logical_or.reduce(list(m.values())) for images in gallery.values() for _, m in images]
    assert 0.2 < np.mean(unlabeled) < 0.8


def test_vessels_are_thin_and_walls_are_large(gallery):
    def survives(name: str) -> float:
        masks = [all_masks[name] for _, all_masks in gallery[name]]
        return sum(eroded(mask, 4).sum() for mask in masks) / sum(mask.sum() for mask in masks)

    def area(name: str) -> float:
        return float(np.mean([all_masks[name].mean() for _, all_masks in gallery[name]]))

    for name in VESSELS:
        assert survives(name) < 0.05, name
        assert 0.004 < area(name) < 0.06, name
    for name in LARGE:
        assert survives(name) > 0.4, name
        assert area(name) > 0.08, name
    assert area("vesicular_glands") < area("spleen") < area("liver")


def test_surgeries_differ_more_than_the_images_of_one():
    def balance(surgery: int, index: int) -> np.ndarray:
        image, masks = render(0, surgery, "stomach", index, SIZE)
        color = image[masks["stomach"]].mean(axis=0)
        return color / color.sum()

    balances = np.array([[balance(surgery, index) for index in range(4)] for surgery in range(1, 9)])
    assert balances.mean(axis=1).var(axis=0).sum() > 2 * balances.var(axis=1).mean(axis=0).sum()


def test_what_lies_in_front_hides_what_is_behind():
    canvas = Canvas((4, 6))
    everywhere, left = np.ones((4, 6), np.float32), np.repeat(np.float32([[1, 1, 1, -1, -1, -1]]), 4, axis=0)
    canvas.paint(2, everywhere, everywhere, linear((200, 100, 100)))
    canvas.paint(BACKGROUND, left, everywhere, linear((90, 90, 90)))
    assert (canvas.label[:, :3] == BACKGROUND).all()
    assert (canvas.label[:, 3:] == 2).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": (31, 64)}, "31"),
        ({"images_per_surgery": 0}, "images_per_surgery"),
        ({"workers": 0}, "workers"),
        ({"seed": -1}, "seed"),
        ({"surgeries": (1, 33)}, "33"),
        ({"surgeries": ()}, "1 to 32"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, wrong, words):
    with pytest.raises(MtkdError, match=words):
        write_phantom(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_full_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(MtkdError, match="not empty"):
        write_phantom(tmp_path)
    with pytest.raises(MtkdError, match="is a file"):
        write_phantom(tmp_path / "mine.txt")
    with pytest.raises(MtkdError, match="cannot be created"):
        write_phantom(tmp_path / "mine.txt" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.fixture
def killed(tmp_path) -> Path:
    """The folder of a call with two workers that was killed half-way; the workers have ended, or this fails."""
    root = tmp_path / "dataset"
    options = ("--size", "64x48", "--images-per-surgery", "2", "--surgeries", "3,1", "--workers", "2")
    process = subprocess.Popen([sys.executable, "-m", "mtkd_cache.cli", "phantom", root, *options], stdout=subprocess.PIPE)
    while len(list(root.glob("*/*/weak_labels.csv"))) < 3:
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)  # the workers hold its standard output until they end
    assert process.returncode == -signal.SIGKILL
    return root


def test_a_killed_call_is_finished_by_the_next_one(dataset, killed):
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*.png") if ".unfinished" not in path.parts}
    assert 3 <= len(list(killed.glob("*/*/weak_labels.csv"))) < 2 * len(ANATOMIES)
    assert write_phantom(killed, size=SIZE, images_per_surgery=2, surgeries=(3, 1)) == dataset[1]
    assert contents(killed) == contents(dataset[0])
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert not (killed / ".unfinished").exists()


def test_a_folder_of_other_settings_or_that_is_being_written_is_refused(dataset):
    root, counts = dataset
    whole = contents(root)
    with pytest.raises(MtkdError, match=r"started with other settings: seed 0 \(now 1\). Name another"):
        write_phantom(root, size=SIZE, images_per_surgery=2, surgeries=(3, 1), seed=1)
    with locked(Folder(root)), pytest.raises(LockedError):
        write_phantom(root, size=SIZE, images_per_surgery=2, surgeries=(3, 1))
    assert write_phantom(root, size=SIZE, images_per_surgery=2, surgeries=(1, 3)) == counts
    assert contents(root) == whole


def test_a_stomach_killed_between_its_two_folders_is_made_again(dataset, copy_of):
    root = copy_of(dataset[0])
    shutil.rmtree(root / "stomach" / "03")
    write_phantom(root, size=SIZE, images_per_surgery=2, surgeries=(3, 1))
    assert contents(root) == contents(dataset[0])
