"""A dataset folder in the Dresden layout: ``{anatomy}/{surgery}/imageNN.png`` beside ``maskNN.png``.

``multilabel/`` (the stomach images again, with masks of several anatomies), the single raters' folders ``anno_*`` and ``merged``,
and ``weak_labels.csv`` are recognized and skipped. The anatomies are the names of the other folders, in alphabetical order.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile

from mtkd_cache.errors import MtkdError

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
SPLITS = ("train", "validation", "test")
REFERENCE_SURGERIES = range(1, 33)
REFERENCE_VALIDATION = (3, 21, 26)  # Kolbinger et al. 2023, their public code
REFERENCE_TEST = (2, 7, 11, 13, 14, 18, 20, 32)
MULTILABEL = "multilabel"

_IMAGE = re.compile(r"image(\d+)\.png")
_MASK = re.compile(r"mask(\d+)\.png")
_SURGERY = re.compile(r"\d+")
_LARGEST = np.iinfo(np.int32).max  # of the numbers that a sample store holds
FORMATS = ("PNG", "JPEG", "TIFF")
MAX_PIXELS = 50_000_000  # guards against a small file that decodes to a huge image


@dataclass(frozen=True)
class Split:
    """The surgeries of the validation and the test split; all others are training.

    surgeries: the numbers that a dataset may contain; None for any. Raises MtkdError for a surgery in both splits.
    """

    validation: tuple[int, ...] = REFERENCE_VALIDATION
    test: tuple[int, ...] = REFERENCE_TEST
    surgeries: tuple[int, ...] | None = tuple(REFERENCE_SURGERIES)

    def __post_init__(self) -> None:
        if both := sorted(set(self.validation) & set(self.test)):
            raise MtkdError(f"Surgery {both[0]} is for validation and for test. Name it in one of --validation and --test.")

    def of(self, surgery: int) -> str:
        """The split of a surgery, one of `SPLITS`."""
        if surgery in self.validation:
            return "validation"
        return "test" if surgery in self.test else "train"


@dataclass(frozen=True, order=True)
class Source:
    """The files of one sample."""

    anatomy: str
    surgery: int
    frame: int
    image: Path
    mask: Path


def find_samples(root: Path) -> tuple[list[Source], dict[str, int]]:
    """Find all samples of a dataset folder.

    Returns:
        The samples, sorted by (anatomy, surgery, frame), and how many files and folders of each kind were skipped.

    Raises:
        MtkdError: the folder is missing, a file, or empty; an image has no mask; two images have the same number.
    """
    if not root.exists():
        raise MtkdError(f"{root}: there is no such folder. Name the dataset's folder, with one folder per anatomy.")
    if not root.is_dir():
        raise MtkdError(f"{root} is a file. Name the dataset's folder (unpack an archive first).")
    sources: list[Source] = []
    skipped: Counter[str] = Counter()
    for anatomy in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if anatomy.name == MULTILABEL:
            skipped[MULTILABEL] += 1
            continue
        for surgery in sorted(path for path in anatomy.iterdir() if path.is_dir()):
            if _SURGERY.fullmatch(surgery.name):
                sources += _surgery_samples(anatomy.name, surgery, skipped)
            else:
                skipped["other folders"] += 1
    if not sources:
        raise MtkdError(
            f"{root} contains no samples. Expected ANATOMY/SURGERY/imageNN.png beside maskNN.png, as liver/01/image00.png."
        )
    check_anatomies((source.anatomy for source in sources), root)
    sources.sort()
    for source, other in pairwise(sources):
        if (source.anatomy, source.surgery, source.frame) == (other.anatomy, other.surgery, other.frame):
            raise MtkdError(f"{source.image} and {other.image} have the same number. Keep one of them.")
    return sources, {kind: count for kind, count in sorted(skipped.items()) if count}


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


def patient_of(folder: str) -> str:
    """The patient whose images a folder of this name holds: a number without leading zeros, as "3" of "03", or the name."""
    return str(int(folder)) if folder.isdecimal() else folder


def check_anatomies(names: Iterable[str], where: object) -> None:
    """Raises MtkdError where an anatomy's name is no valid folder name: its teacher's folder has the same name."""
    for name in names:
        if name in ("", ".", "..") or name != name.strip() or set(name) & {"/", "\\"} or not name.isprintable():
            raise MtkdError(
                f"{where}: an anatomy cannot be named {name!r}, as folders get its name. "
                "Use only letters, digits, inner spaces, - and _ (in UTF-8)."
            )


def check_split(sources: list[Source], split: Split) -> None:
    """Raises MtkdError for an unknown surgery, or where a split that training or evaluation needs is empty."""
    for source in sources:
        if split.surgeries is not None and source.surgery not in split.surgeries:
            raise MtkdError(
                f"{source.image.parent}: surgery {source.surgery} is not one of the reference split's 1 to 32. "
                "Define another dataset's split with --validation and --test."
            )
    anatomies = sorted({source.anatomy for source in sources})
    filled = {(source.anatomy, split.of(source.surgery)) for source in sources}
    for anatomy, part in product(anatomies, ("train", "validation")):
        if (anatomy, part) not in filled:
            raise MtkdError(f"{anatomy} has no surgery of the {part} split. Add some, or set --validation and --test.")
    if "test" not in {part for _, part in filled}:
        raise MtkdError("The test split is empty. Add surgeries of it, or set --test.")


def read_image(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image and resize it, bilinearly over the whole source area (Pillow's antialiasing).

    Args:
        path: file in one of `FORMATS`, RGB, grayscale or opaque RGBA.
        size: (width, height) in pixels.

    Returns:
        The image, uint8 RGB (height, width, 3), and its (width, height) on disk.

    Raises:
        MtkdError: a damaged file or another format, 16 bits per channel, transparency, several frames, more than `MAX_PIXELS`, or
            an EXIF orientation (it is unknown whether the mask was drawn on the rotated image).
    """
    image = _open(path)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)), image.size


def read_mask(path: Path, size: tuple[int, int], threshold: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Read a binary mask and resize it by nearest neighbor.

    Args:
        path, size: see `read_image`.
        threshold: values above it are foreground. None: the mask must have at most two levels, 0 and one other.

    Returns:
        The mask, uint8 0 or 1 (height, width), and its (width, height) on disk.

    Raises:
        MtkdError: more levels, colors, or as `read_image`.
    """
    image = _open(path)
    rgb = np.asarray(image.convert("RGB"))
    values = rgb[..., 0]
    if (rgb != values[..., None]).any():
        raise MtkdError(f"{path} is colored; a mask has the two levels 0 and 255. Save it as grayscale.")
    if threshold is None:
        levels = np.unique(values)
        if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
            raise MtkdError(
                f"{path} is not binary: {len(levels)} levels from {levels[0]} to {levels[-1]}. "
                "Correct it, or count all values above a level as foreground with --threshold 127."
            )
    binary = Image.fromarray(((values > (threshold or 0)) * 255).astype(np.uint8))
    return (np.asarray(binary.resize(size, Image.Resampling.NEAREST)) > 0).astype(np.uint8), image.size


def _open(path: Path) -> Image.Image:
    """A whole, opaque image of 8 bits per channel; see `read_image` for the errors."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            _check_header(path, file)
            file.load()
    except MtkdError:
        raise
    except Exception as error:  # Pillow raises almost any exception for damaged bytes
        raise MtkdError(f"{path} cannot be read as an image ({error}). Restore the file, as PNG, JPEG or TIFF.") from error
    if not file.has_transparency_data:
        return file
    image = file.convert("RGBA")
    if np.asarray(image.getchannel("A")).min() < 255:
        raise MtkdError(f"{path} is partly transparent; its background is unknown. Save it without transparency.")
    return image


def _check_header(path: Path, image: ImageFile.ImageFile) -> None:
    """Raises MtkdError for what can be checked without decoding; see `read_image`."""
    if image.mode[0] in "IF" or ";16" in str(image.tile):  # how the file's pixels are decoded, as RGB;16B
        raise MtkdError(
            f"{path} has 16 bits per channel or more, which 8 bits cannot represent. Save it with 8 bits per channel."
        )
    if image.width * image.height > MAX_PIXELS:
        raise MtkdError(f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read. Save it smaller.")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise MtkdError(f"{path} contains {frames} images; a sample has one. Save the right one alone.")
    if (orientation := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:
        raise MtkdError(f"{path} has the EXIF orientation {orientation}, which its mask may lack. Save both upright, without it.")
