"""A dataset folder in the Dresden layout: ``{anatomy}/{surgery}/imageNN.png`` beside ``maskNN.png``.

``multilabel/`` (the stomach images again, with masks of several anatomies), the single raters' folders ``anno_*`` and ``merged``,
and ``weak_labels.csv`` are recognised and left alone. The anatomies are the names of the other folders, in alphabetical order.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from mtkd_cache.errors import MtkdError

SPLITS = ("train", "validation", "test")
REFERENCE_SURGERIES = range(1, 33)
REFERENCE_VALIDATION = (3, 21, 26)  # Kolbinger et al. 2023, their public code
REFERENCE_TEST = (2, 7, 11, 13, 14, 18, 20, 32)
MULTILABEL = "multilabel"

_IMAGE = re.compile(r"image(\d+)\.png")
_MASK = re.compile(r"mask(\d+)\.png")
_SURGERY = re.compile(r"\d+")
_PNG_DEPTH = 24  # the byte of a PNG file that holds the bits of a channel
_LARGEST = np.iinfo(np.int32).max  # the numbers that a sample store holds
FORMATS = ("PNG", "JPEG", "TIFF")
MAX_PIXELS = 50_000_000  # a small file may decode to any number of them


@dataclass(frozen=True)
class Split:
    """Which surgeries are for validation and for test; the others are for training.

    surgeries: the numbers that may appear at all; None lets any appear. Raises MtkdError where a surgery is in both.
    """

    validation: tuple[int, ...] = REFERENCE_VALIDATION
    test: tuple[int, ...] = REFERENCE_TEST
    surgeries: tuple[int, ...] | None = tuple(REFERENCE_SURGERIES)

    def __post_init__(self) -> None:
        if both := sorted(set(self.validation) & set(self.test)):
            raise MtkdError(f"Surgery {both[0]} is for validation and for test. Name it in one of --validation and --test.")

    def of(self, surgery: int) -> str:
        if surgery in self.validation:
            return "validation"
        return "test" if surgery in self.test else "train"


@dataclass(frozen=True, order=True)
class Source:
    """Where one sample's image and mask lie."""

    anatomy: str
    surgery: int
    frame: int
    image: Path
    mask: Path


def find_samples(root: Path) -> tuple[list[Source], dict[str, int]]:
    """All samples below a dataset folder in the order (anatomy, surgery, frame), and what was left alone, counted.

    Raises MtkdError where the folder is absent, a file, or empty, where an image has no mask, or two images have one number.
    """
    if not root.exists():
        raise MtkdError(f"{root}: there is no such folder. Name the dataset's folder, the one that holds a folder an anatomy.")
    if not root.is_dir():
        raise MtkdError(f"{root} is a file. Name the dataset's folder (unpack an archive first).")
    sources: list[Source] = []
    skipped: Counter[str] = Counter()
    for anatomy in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if anatomy.name == MULTILABEL:
            skipped[MULTILABEL] += 1
            continue
        for surgery in sorted(path for path in anatomy.iterdir() if path.is_dir()):
            if not _SURGERY.fullmatch(surgery.name):
                skipped["other folders"] += 1
                continue
            sources += _surgery_samples(anatomy.name, surgery, skipped)
    if not sources:
        raise MtkdError(
            f"{root} holds no sample. Expected ANATOMY/SURGERY/imageNN.png beside maskNN.png, as liver/01/image00.png."
        )
    check_anatomies((source.anatomy for source in sources), root)
    sources.sort()
    for one, other in pairwise(sources):
        if (one.anatomy, one.surgery, one.frame) == (other.anatomy, other.surgery, other.frame):
            raise MtkdError(f"{one.image} and {other.image} have the same number. Keep one of them.")
    return sources, {what: count for what, count in sorted(skipped.items()) if count}


def _surgery_samples(anatomy: str, folder: Path, skipped: Counter[str]) -> list[Source]:
    names = {path.name for path in folder.iterdir()}
    surgery = _number(folder.name, folder)
    skipped["weak_labels.csv"] += "weak_labels.csv" in names
    skipped["single raters' folders"] += sum(name == "merged" or name.startswith("anno_") for name in names)
    sources = []
    for name in names:
        if match := _IMAGE.fullmatch(name):
            mask = f"mask{match[1]}.png"
            if mask not in names:
                raise MtkdError(f"{folder / name} has no mask: {mask} is missing. Restore the mask or remove the image.")
            sources.append(Source(anatomy, surgery, _number(match[1], folder / name), folder / name, folder / mask))
    skipped["masks without an image"] += sum(_MASK.fullmatch(name) is not None for name in names) - len(sources)
    return sources


def _number(digits: str, path: Path) -> int:
    if (number := int(digits)) > _LARGEST:
        raise MtkdError(f"{path}: the number is larger than {_LARGEST}, which a sample store cannot hold. Rename it.")
    return number


def check_anatomies(names: Iterable[str], where: object) -> None:
    """Raises MtkdError where an anatomy's name cannot be that of one folder: the teachers' folders are named so."""
    for name in names:
        if name in ("", ".", "..") or name != name.strip() or set(name) & {"/", "\\"} or not name.isprintable():
            raise MtkdError(
                f"{where}: an anatomy cannot be named {name!r}, since folders are named by it. "
                "Use letters, digits, inner spaces, - and _ alone (in UTF-8)."
            )


def check_split(sources: list[Source], split: Split) -> None:
    """Raises MtkdError where a surgery is unknown, or a part of the split is empty that training or evaluation needs."""
    for source in sources:
        if split.surgeries is not None and source.surgery not in split.surgeries:
            raise MtkdError(
                f"{source.image.parent}: surgery {source.surgery} is not one of the reference split's 1 to 32. "
                "Name the split of another dataset with --validation and --test."
            )
    anatomies = sorted({source.anatomy for source in sources})
    found = {(source.anatomy, split.of(source.surgery)) for source in sources}
    for anatomy in anatomies:
        for part in ("train", "validation"):
            if (anatomy, part) not in found:
                raise MtkdError(
                    f"{anatomy}: no surgery of its {part} split is there. Add some, or choose --validation and --test."
                )
    if not any(part == "test" for _, part in found):
        raise MtkdError("The test split is empty. Add surgeries of it, or choose --test.")


def read_image(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """An image resized to size = (width, height), uint8 RGB (height, width, 3), and its size on disk.

    Bilinear with Pillow's support of the whole source area. Greyscale is repeated in three channels; opaque RGBA loses its alpha.
    Raises MtkdError for 16 bits a channel, for transparency, for a file that is torn or not one of `FORMATS`, that holds several
    pictures or more than `MAX_PIXELS`, and for an EXIF orientation: whether a mask was drawn on the turned picture is unknown.
    """
    image = _open(path)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)), image.size


def read_mask(path: Path, size: tuple[int, int], threshold: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """A binary mask resized to size = (width, height), uint8 0 or 1 (height, width), and its size on disk. Nearest neighbour.

    threshold: values above it are the anatomy, whatever the levels.
    Raises MtkdError for more than the two levels 0 and another, for colours, and as `read_image` does.
    """
    image = _open(path)
    colours = np.asarray(image.convert("RGB"))
    values = colours[..., 0]
    if (colours != values[..., None]).any():
        raise MtkdError(f"{path} is coloured; a mask has the two levels 0 and 255. Save it as greyscale.")
    if threshold is None:
        levels = np.unique(values)
        if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
            raise MtkdError(
                f"{path} is not binary: {len(levels)} levels from {levels[0]} to {levels[-1]}. "
                "Mend it, or take what lies above a level with --threshold 127."
            )
    binary = Image.fromarray(((values > (threshold or 0)) * 255).astype(np.uint8))
    return (np.asarray(binary.resize(size, Image.Resampling.NEAREST)) > 0).astype(np.uint8), image.size


def _open(path: Path) -> Image.Image:
    """A whole, opaque picture of 8 bits a channel; see `read_image` for the errors."""
    try:
        with path.open("rb") as file:
            head = file.read(_PNG_DEPTH + 1)
        with Image.open(path, formats=FORMATS) as image:
            _check_header(path, image)
            image.load()
    except MtkdError:
        raise
    except Exception as error:  # of damaged bytes Pillow raises nearly any
        raise MtkdError(f"{path} cannot be read as a picture ({error}). Restore the file, as PNG, JPEG or TIFF.") from error
    deep = head.startswith(b"\x89PNG") and head[_PNG_DEPTH] == 16
    if deep or image.mode[0] in "IF":
        raise MtkdError(f"{path} has 16 bits a channel or more; as 8 it would be another. Save it with 8 bits a channel.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise MtkdError(f"{path} is partly transparent; what lies behind is unknown. Save it without transparency.")
    return image


def _check_header(path: Path, image: Image.Image) -> None:
    """Raises MtkdError for what can be told without decoding; see `read_image`."""
    if image.width * image.height > MAX_PIXELS:
        raise MtkdError(f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read. Save it smaller.")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise MtkdError(f"{path} holds {frames} pictures; which of them is meant is unknown. Save the one.")
    if (turned := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:
        raise MtkdError(f"{path} has the EXIF orientation {turned}, which its mask may lack. Save both upright, without it.")


ANATOMIES = (
    "abdominal_wall",
    "colon",
    "inferior_mesenteric_artery",
    "intestinal_veins",
    "liver",
    "pancreas",
    "small_intestine",
    "spleen",
    "stomach",
    "ureter",
    "vesicular_glands",
)
