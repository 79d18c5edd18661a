"""A dataset folder in the Dresden layout: ``{anatomy}/{surgery}/imageNN.png`` beside ``maskNN.png``; and reading its pictures.

``multilabel/`` (the stomach images again, with masks of several anatomies) and the single raters' folders ``anno_*`` and
``merged`` are recognized and skipped; ``weak_labels.csv`` is read by `mtkd_cache.data.weak_labels`. The anatomies are the names
of the other folders, in alphabetical order.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile

from mtkd_cache.data.samples import LARGEST, Sample, check_anatomies
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
REFERENCE_SURGERIES = range(1, 33)
REFERENCE_VALIDATION = (3, 21, 26)  # Kolbinger et al. 2023, their public code
REFERENCE_TEST = (2, 7, 11, 13, 14, 18, 20, 32)
MULTILABEL = "multilabel"

_IMAGE = re.compile(r"image(\d+)\.png")
_MASK = re.compile(r"mask(\d+)\.png")
_SURGERY = re.compile(r"\d+")
_LISTED = 10_000  # files that are looked at to say what a folder holds instead of samples
FORMATS = ("PNG", "JPEG", "TIFF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # of Pillow
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


def find_samples(root: Path) -> tuple[list[Sample], dict[str, int]]:
    """Find all samples of a dataset folder.

    Returns:
        The samples, sorted by anatomy, surgery and frame, and how many files and folders of each kind were skipped.

    Raises:
        MtkdError: the folder is missing, a file, or holds no sample; an image has no mask.
    """
    if not root.exists():
        raise MtkdError(f"{root}: there is no such folder. Name the dataset's folder, with one folder per anatomy.")
    if not root.is_dir():
        raise MtkdError(f"{root} is a file. Name the dataset's folder (unpack an archive first).")
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    for anatomy in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if anatomy.name == MULTILABEL:
            skipped[MULTILABEL] += 1
            continue
        for surgery in sorted(path for path in anatomy.iterdir() if path.is_dir()):
            if _SURGERY.fullmatch(surgery.name):
                samples += _surgery_samples(anatomy.name, surgery, skipped)
            else:
                skipped["other folders"] += 1
    if not samples:
        raise MtkdError(
            f"{root} contains no samples; it holds {_content(root)}. Expected ANATOMY/SURGERY/imageNN.png beside maskNN.png, "
            "as liver/01/image00.png. List files with other names in a CSV: mtkd-cache ingest --csv."
        )
    check_anatomies((sample.anatomy for sample in samples), root)
    samples.sort(key=lambda sample: (sample.anatomy, int(sample.patient), sample.frame or 0))
    return samples, {kind: count for kind, count in sorted(skipped.items()) if count}


def _content(root: Path) -> str:
    """What a folder holds, as "99 .jpg, folders such as P014"."""
    files = sorted(path for path in islice(root.rglob("*"), _LISTED) if path.is_file())
    kinds = Counter(path.suffix or "files without suffix" for path in files).most_common(3)
    folders = [path.parent.name for path in files if path.suffix == kinds[0][0] and path.parent != root][:1]
    found = [*(f"{count} {kind}" for kind, count in kinds), *(f"folders such as {name}" for name in folders)]
    return ", ".join(found) or "no files"


def _surgery_samples(anatomy: str, folder: Path, skipped: Counter[str]) -> list[Sample]:
    names = {path.name for path in folder.iterdir()}
    patient = str(_number(folder.name, folder))
    skipped["single raters' folders"] += sum(name == "merged" or name.startswith("anno_") for name in names)
    samples = []
    for name in names:
        if match := _IMAGE.fullmatch(name):
            mask = f"mask{match[1]}.png"
            if mask not in names:
                raise MtkdError(f"{folder / name} has no mask: {mask} is missing. Restore the mask or remove the image.")
            image = folder / name
            frame = _number(match[1], image)
            samples.append(Sample(image=image, mask=folder / mask, anatomy=anatomy, patient=patient, frame=frame))
    skipped["masks without an image"] += sum(_MASK.fullmatch(name) is not None for name in names) - len(samples)
    return samples


def _number(digits: str, path: Path) -> int:
    if (number := int(digits)) > LARGEST:
        raise MtkdError(f"{path}: the number is larger than {LARGEST}, which a sample store cannot hold. Rename it.")
    return number


def patient_of(folder: str) -> str:
    """The patient whose images a folder of this name holds: a number without leading zeros, as "3" of "03", or the name."""
    return str(int(folder)) if folder.isdecimal() else folder


def with_split(samples: Iterable[Sample], split: Split) -> list[Sample]:
    """Samples of numbered surgeries, in their splits. Raises MtkdError for a surgery that the split does not know."""
    samples = list(samples)
    for sample in samples:
        if split.surgeries is not None and int(sample.patient) not in split.surgeries:
            raise MtkdError(
                f"{sample.image.parent}: surgery {sample.patient} is not one of the reference split's 1 to 32. "
                "Define another dataset's split with --validation and --test."
            )
    return [replace(sample, split=split.of(int(sample.patient))) for sample in samples]


def read_image(path: Path, size: tuple[int, int] | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image and resize it, bilinearly over the whole source area (Pillow's antialiasing).

    Args:
        path: file in one of `FORMATS`, RGB, grayscale or opaque RGBA.
        size: (width, height) in pixels; None keeps that of the file.

    Returns:
        The image, uint8 RGB (height, width, 3), and its (width, height) on disk.

    Raises:
        MtkdError: a damaged file or another format, 16 bits per channel, transparency, several frames, more than `MAX_PIXELS`, or
            colors other than RGB (CMYK), or an EXIF orientation (it is unknown whether the mask was drawn on the rotated image).
    """
    image = _open(path)
    return np.asarray(image.convert("RGB").resize(size or image.size, Image.Resampling.BILINEAR)), image.size


def read_mask(
    path: Path, size: tuple[int, int] | None = None, threshold: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
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
    return (np.asarray(binary.resize(size or image.size, Image.Resampling.NEAREST)) > 0).astype(np.uint8), image.size


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
    if image.mode not in MODES:
        raise MtkdError(f"{path} is in {image.mode} colors, whose conversion is ambiguous. Save it as RGB.")
    if image.width * image.height > MAX_PIXELS:
        raise MtkdError(f"{path} has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are read. Save it smaller.")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise MtkdError(f"{path} contains {frames} images; a sample has one. Save the right one alone.")
    if (orientation := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:
        raise MtkdError(f"{path} has the EXIF orientation {orientation}, which its mask may lack. Save both upright, without it.")
