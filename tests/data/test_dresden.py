"""Finding a dataset's samples, and what is said of bad ones."""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile

from mtkd_cache.data import dresden as dataset
from mtkd_cache.data.dresden import ANATOMIES, Split, find_samples, read_image, read_mask
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError

SIZE = (64, 64)


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def picture(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def broken(copy_of, organ_folder):
    """A copy of the two organs to break; its first sample's image and mask."""
    root = copy_of(organ_folder)
    return root, root / "kidney/30/image00.png", root / "kidney/30/mask00.png"


def refused(root: Path, split: Split, tmp_path: Path, **options) -> str:
    """The message of a failed ingest; nothing that can be opened is left behind."""
    url = str(tmp_path / "refused.zarr")
    with pytest.raises(MtkdError) as caught:
        ingest(root, url, size=SIZE, split=split, **options)
    with pytest.raises(MtkdError):
        SampleStore.open(url)
    message = str(caught.value)
    assert len(message) < 400
    assert "\n" not in message
    return message


# --- finding


def test_every_sample_is_found_in_order(phantom_folder):
    sources, skipped = find_samples(phantom_folder)
    order = [(s.anatomy, int(s.patient), s.frame) for s in sources]
    assert order == sorted(order)
    assert {s.anatomy for s in sources} == set(ANATOMIES)
    expected = {p for p in phantom_folder.glob("*/*/image*.png") if p.parts[-3] != "multilabel"}
    assert {s.image for s in sources} == expected
    for source in sources:
        assert source.image.parent == source.mask.parent == phantom_folder / source.anatomy / f"{int(source.patient):02d}"
        assert int(re.findall(r"\d+", source.image.name)[0]) == int(re.findall(r"\d+", source.mask.name)[0]) == source.frame
    assert skipped == {"multilabel": 1, "single raters' folders": 4 * 11}


def test_hidden_folders_and_other_folders_are_left_alone(organ_folder, copy_of):
    root = copy_of(organ_folder)
    shutil.copytree(root / "kidney/30", root / ".cache/30")
    shutil.copytree(root / "kidney/30", root / "kidney/notes")
    (root / "README.txt").write_text("x")
    sources, skipped = find_samples(root)
    assert len(sources) == len(find_samples(organ_folder)[0])
    assert skipped["other folders"] == 1


def test_surgeries_may_be_written_without_the_zero(organ_folder, copy_of):
    root = copy_of(organ_folder)
    (root / "kidney/30").rename(root / "kidney/3")
    sources, _ = find_samples(root)
    assert len(sources) == len(find_samples(organ_folder)[0])
    assert sources[0].patient == "3"


def test_masks_without_an_image_are_counted(broken):
    root, image, _ = broken
    image.rename(image.with_suffix(".jpg"))
    assert find_samples(root)[1] == {"masks without an image": 1}


def test_two_images_of_one_number(broken, organ_split, tmp_path):
    root, image, _ = broken
    shutil.copytree(image.parent, root / "kidney/030")
    assert f"{image} and {root}/kidney/030/image00.png are both kidney, patient 30, frame 0." in refused(
        root, organ_split, tmp_path
    )


@pytest.mark.parametrize("name", ["kidney/2147483648", "kidney/30/image2147483648.png"])
def test_numbers_that_a_store_cannot_hold_are_told_before_a_picture_is_read(broken, organ_split, tmp_path, monkeypatch, name):
    root, image, mask = broken
    if name.endswith("png"):
        image.rename(root / name)
        mask.rename(root / name.replace("image", "mask"))
    else:
        image.parent.rename(root / name)
    monkeypatch.setattr("mtkd_cache.data.store_writer.read_image", lambda *arguments: pytest.fail("a picture was read"))
    assert f"{root / name}: the number is larger than 2147483647" in refused(root, organ_split, tmp_path)


@pytest.mark.parametrize("name", [b"\xff", b" kidney", b"kidney ", b"a\\b", b"a\nb", b"a\x7fb"])
def test_folders_whose_name_no_anatomy_can_have(broken, organ_split, tmp_path, name):
    root, *_ = broken
    (root / "kidney").rename(root / os.fsdecode(name))
    message = refused(root, organ_split, tmp_path)
    assert f"{root}: an anatomy cannot be named {os.fsdecode(name)!r}" in message
    message.encode()


def test_the_reference_split_is_the_public_codes():
    parts = {part: [n for n in range(1, 33) if Split().of(n) == part] for part in ("train", "validation", "test")}
    assert parts["validation"] == [3, 21, 26]
    assert parts["test"] == [2, 7, 11, 13, 14, 18, 20, 32]
    assert len(parts["train"]) == 21


# --- bad datasets


def test_a_folder_that_is_absent(tmp_path, organ_split):
    message = refused(tmp_path / "nowhere", organ_split, tmp_path)
    assert f"{tmp_path}/nowhere: there is no such folder. Name the dataset's folder" in message


def test_a_folder_that_is_a_file(tmp_path, organ_split):
    (tmp_path / "dsad.zip").write_bytes(b"PK")
    assert "dsad.zip is a file. Name the dataset's folder (unpack an archive first)" in refused(
        tmp_path / "dsad.zip", organ_split, tmp_path
    )


@pytest.mark.parametrize("inside", [(), ("liver",), ("liver/01", "multilabel/01"), ("some/where/01",)])
def test_an_empty_dataset(tmp_path, organ_split, inside):
    root = tmp_path / "dataset"
    root.mkdir()
    for name in inside:
        (root / name).mkdir(parents=True)
    message = refused(root, organ_split, tmp_path)
    assert "dataset contains no samples; it holds no files. Expected ANATOMY/SURGERY/imageNN.png beside maskNN.png" in message


def test_a_dataset_in_another_layout_is_told_what_it_holds(tmp_path, organ_split):
    root = tmp_path / "dataset"
    for patient, count in (("P014", 3), ("P015", 2)):
        (root / "liver" / patient).mkdir(parents=True)
        for number in range(count):
            (root / "liver" / patient / f"{number}.jpg").touch()
    (root / "notes.txt").touch()
    message = refused(root, organ_split, tmp_path)
    assert "it holds 5 .jpg, 1 .txt, folders such as P014." in message
    assert "mtkd-cache ingest --csv" in message


def test_a_missing_mask(broken, organ_split, tmp_path):
    root, image, mask = broken
    mask.unlink()
    message = refused(root, organ_split, tmp_path)
    assert f"{image} has no mask: mask00.png is missing. Restore the mask or remove the image." in message


def test_a_mask_of_another_size(broken, organ_split, tmp_path):
    root, _, mask = broken
    save(mask, np.zeros((32, 48), np.uint8))
    message = refused(root, organ_split, tmp_path)
    assert f"{mask} is 48x32, its image 64x64." in message


def test_a_surgery_that_the_reference_split_does_not_know(organ_folder, tmp_path):
    message = refused(organ_folder, Split(), tmp_path)
    assert "kidney/40: surgery 40 is not one of the reference split's 1 to 32" in message
    assert "--validation and --test" in message


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(validation=(99,), test=(50,), surgeries=None), "kidney has no sample in the validation split"),
        (Split(validation=(40,), test=(99,), surgeries=None), "The test split is empty"),
        (Split(validation=(40,), test=(30, 31, 50), surgeries=None), "kidney has no sample in the train split"),
    ],
)
def test_a_part_of_the_split_that_is_empty(organ_folder, tmp_path, split, message):
    error = refused(organ_folder, split, tmp_path)
    assert message in error
    assert "choose the split differently" in error


def test_one_anatomy_without_a_validation_surgery_is_named(broken, organ_split, tmp_path):
    root, *_ = broken
    shutil.rmtree(root / "tongue/40")
    assert "tongue has no sample in the validation split" in refused(root, organ_split, tmp_path)


def test_one_anatomy_may_be_without_test_surgeries(broken, organ_split, tmp_path):
    root, *_ = broken
    shutil.rmtree(root / "tongue/50")
    result = ingest(root, str(tmp_path / "s.zarr"), size=SIZE, split=organ_split)
    assert result["by_split"] == {"train": 12, "validation": 6, "test": 3}


def test_a_surgery_in_two_parts_of_the_split_is_refused():
    with pytest.raises(MtkdError, match="Surgery 50 is for validation and for test"):
        Split(validation=(40, 50), test=(50,), surgeries=None)


# --- bad pictures


def test_a_truncated_picture(broken, organ_split, tmp_path):
    root, image, _ = broken
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    message = refused(root, organ_split, tmp_path)
    assert f"{image} cannot be read as an image" in message
    assert "Restore the file, as PNG, JPEG or TIFF." in message


def test_a_truncated_mask(broken, organ_split, tmp_path):
    root, _, mask = broken
    mask.write_bytes(mask.read_bytes()[:-40])
    assert f"{mask} cannot be read as an image" in refused(root, organ_split, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_picture(tmp_path, content):
    path = tmp_path / "image00.png"
    path.write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(MtkdError, match=r"image00\.png cannot be read as an image"):
            read(path, SIZE)


def test_a_png_cut_anywhere_is_an_error_in_words(tmp_path):
    """No cut may end in another exception than ours, or in a picture with made-up pixels."""
    whole = io.BytesIO()
    Image.fromarray(picture(8, 8)).save(whole, "PNG")
    data = whole.getvalue()
    path = tmp_path / "image00.png"
    path.write_bytes(data)
    expected = read_image(path, (8, 8))[0]
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            assert np.array_equal(read_image(path, (8, 8))[0], expected), length
        except MtkdError:
            continue
        assert length >= len(data) - 20, length  # what follows the pixels may be missing


def test_a_mask_that_is_not_binary_says_how_it_is_and_what_helps(broken, organ_split, tmp_path):
    root, _, mask = broken
    values = np.zeros((64, 64), np.uint8)
    values[:8], values[8:16], values[16:24] = 255, 128, 7
    save(mask, values)
    message = refused(root, organ_split, tmp_path)
    assert f"{mask} is not binary: 4 levels from 0 to 255." in message
    assert "--threshold 127" in message
    ingest(root, str(tmp_path / "good.zarr"), size=SIZE, split=organ_split, threshold=127)
    store = SampleStore.open(str(tmp_path / "good.zarr"))
    assert np.array_equal(store.read([0])[1][0], values > 127)


def test_two_levels_that_are_not_0_and_another(tmp_path):
    path = save(tmp_path / "mask00.png", np.repeat(np.array([[100], [200]], np.uint8), 8, 1))
    with pytest.raises(MtkdError, match="2 levels from 100 to 200"):
        read_mask(path, SIZE)
    assert read_mask(path, (8, 2), 150)[0].tolist() == [[0] * 8, [1] * 8]


@pytest.mark.parametrize("level", [1, 128, 255])
def test_any_second_level_is_the_anatomy(tmp_path, level):
    values = np.zeros((4, 4), np.uint8)
    values[1, 2] = level
    assert np.array_equal(read_mask(save(tmp_path / "mask00.png", values), (4, 4))[0], values > 0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA"])
def test_a_mask_in_any_mode_is_the_same_mask(tmp_path, mode):
    values = np.zeros((6, 8), np.uint8)
    values[1:4, 2:6] = 255
    assert np.array_equal(read_mask(save(tmp_path / "mask00.png", values, mode), (8, 6))[0], values > 0)


def test_a_coloured_mask(tmp_path):
    values = np.zeros((6, 8, 3), np.uint8)
    values[2, 2] = (0, 255, 0)
    with pytest.raises(MtkdError, match=r"mask00\.png is colored.*Save it as grayscale"):
        read_mask(save(tmp_path / "mask00.png", values), SIZE)


def test_an_all_black_mask_is_a_sample_like_any(broken, organ_split, tmp_path):
    root, _, mask = broken
    save(mask, np.zeros((64, 64), np.uint8))
    assert ingest(root, str(tmp_path / "s.zarr"), size=SIZE, split=organ_split)["samples"] == 24
    assert not SampleStore.open(str(tmp_path / "s.zarr")).read([0])[1].any()


def test_greyscale_is_repeated_in_three_channels(tmp_path):
    values = picture()[..., 0]
    image, size = read_image(save(tmp_path / "image00.png", values), (32, 24))
    assert size == (32, 24)
    assert np.array_equal(image, np.repeat(values[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_dropped(tmp_path, mode):
    plain = Image.fromarray(picture()).convert(mode.removesuffix("A").replace("RGB", "RGB") or "RGB")
    plain.convert(mode).save(tmp_path / "image00.png")
    assert np.array_equal(read_image(tmp_path / "image00.png", (32, 24))[0], np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_refused(broken, organ_split, tmp_path, mode):
    root, image, _ = broken
    see_through = Image.fromarray(picture(64, 64)).convert(mode)
    if mode == "P":
        see_through.save(image, transparency=int(np.asarray(see_through)[0, 0]))
    else:
        see_through.putalpha(Image.fromarray(np.full((64, 64), 254, np.uint8)))
        see_through.save(image)
    message = refused(root, organ_split, tmp_path)
    assert f"{image} is partly transparent" in message
    assert "Save it without transparency." in message


def test_a_mask_drawn_in_the_alpha_channel_is_refused(tmp_path):
    """Its colours alone would be a mask that is full."""
    white = Image.new("RGBA", (8, 6), "white")
    white.putalpha(Image.fromarray(np.eye(6, 8, dtype=np.uint8) * 255))
    white.save(tmp_path / "mask00.png")
    with pytest.raises(MtkdError, match=r"mask00\.png is partly transparent"):
        read_mask(tmp_path / "mask00.png", (8, 6))


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "image00.png", picture())
    monkeypatch.setattr(dataset, "MAX_PIXELS", 24 * 32)
    assert read_image(path, SIZE)[1] == (32, 24)
    monkeypatch.setattr(dataset, "MAX_PIXELS", 24 * 32 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    for read in (read_image, read_mask):
        with pytest.raises(MtkdError, match=r"image00\.png has 32x24 pixels; at most 767 are read"):
            read(path, SIZE)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_jpeg_or_tiff_may_have_the_name_of_a_png(tmp_path, kind):
    Image.new("RGB", (32, 24), (9, 9, 9)).save(tmp_path / "image00.png", kind)
    assert (read_image(tmp_path / "image00.png", (8, 8))[0] == 9).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_colors_for_print_are_refused(tmp_path, kind):
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "image00.png", kind)
    with pytest.raises(MtkdError, match=r"image00\.png is in CMYK colors.*Save it as RGB"):
        read_image(tmp_path / "image00.png", SIZE)


@pytest.mark.parametrize("kind", ["EPS", "GIF"])
def test_other_formats_start_no_program_and_are_refused(tmp_path, monkeypatch, kind):
    image = Image.fromarray(picture())
    image.save(tmp_path / "image00.png", kind)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: image.im)
    with pytest.raises(MtkdError, match=r"image00\.png cannot be read as an image .*Restore the file, as PNG, JPEG or TIFF"):
        read_image(tmp_path / "image00.png", SIZE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_file_of_several_pictures_is_refused(tmp_path, kind):
    frames = [Image.fromarray(picture()), Image.fromarray(picture()[::-1])]
    frames[0].save(tmp_path / "image00.png", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(MtkdError, match=r"image00\.png contains 2 images"):
        read_image(tmp_path / "image00.png", SIZE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_exif_orientation_is_refused_unless_it_is_upright(tmp_path, kind):
    exif = Image.Exif()
    for turned in (3, 6, 1):
        exif[ExifTags.Base.Orientation] = turned
        Image.new("L", (32, 24)).save(tmp_path / "mask00.png", kind, exif=exif)
        for read in (read_image, read_mask):
            if turned == 1:
                assert read(tmp_path / "mask00.png", SIZE)[1] == (32, 24)
                continue
            with pytest.raises(MtkdError, match=rf"mask00\.png has the EXIF orientation {turned}"):
                read(tmp_path / "mask00.png", SIZE)


def test_floating_point_pictures_are_refused(tmp_path):
    Image.fromarray(np.eye(8, dtype=np.float32)).save(tmp_path / "mask00.png", "TIFF")
    with pytest.raises(MtkdError, match="16 bits per channel or more"):
        read_mask(tmp_path / "mask00.png", (8, 8))


@pytest.mark.parametrize("what", ["image", "mask"])
def test_16_bits_are_refused(broken, organ_split, tmp_path, what):
    root, image, mask = broken
    path = image if what == "image" else mask
    save(path, (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    message = refused(root, organ_split, tmp_path)
    assert f"{path} has 16 bits per channel or more" in message
    assert "Save it with 8 bits per channel." in message


# --- resizing


def test_a_picture_at_training_size_is_untouched(tmp_path):
    values = picture()
    assert np.array_equal(read_image(save(tmp_path / "image00.png", values), (32, 24))[0], values)


def test_images_are_averaged_and_masks_are_picked(tmp_path):
    """Halved, an even area's pixel is the mean of its neighbourhood, and a mask stays 0 or 1."""
    flat = np.full((24, 32, 3), 100, np.uint8)
    flat[:, 16:] = 200
    image, size = read_image(save(tmp_path / "image00.png", flat), (16, 12))
    assert size == (32, 24)
    assert image.shape == (12, 16, 3)
    assert (image[:, :7] == 100).all()
    assert (image[:, 9:] == 200).all()
    mask, _ = read_mask(save(tmp_path / "mask00.png", (flat[..., 0] > 150) * np.uint8(255)), (16, 12))
    assert np.array_equal(mask, np.repeat(np.arange(16)[None] >= 8, 12, 0))
