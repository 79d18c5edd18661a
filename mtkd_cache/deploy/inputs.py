"""What `mtkd-cache predict` is given: images, videos, and folders of both."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mtkd_cache.errors import MtkdError

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv")
MASK = re.compile(r"mask\d+(_.+)?\.png")  # of a dataset's folder, beside its images


@dataclass(frozen=True)
class Clip:
    """Consecutive frames: one video, or images in the order of their names.

    out: the folder of what is written about them.
    """

    paths: tuple[Path, ...]
    out: Path
    is_video: bool


def find_clips(inputs: Sequence[Path], out: Path) -> list[Clip]:
    """The clips in some files and folders, each video one and the images of each folder one.

    A file's outputs lie in `out`, those of a folder's files in `out` under the folder's name. In a folder, `out` itself, a
    dataset's masks (maskNN.png, maskNN_ANATOMY.png) and files of other kinds are passed over.

    Raises:
        MtkdError: an input is missing or holds no image and no video, or two files have the same name without its ending.
    """
    clips = [clip for path in inputs for clip in _clips(path, out)]
    stems = Counter(clip.out / path.stem for clip in clips for path in clip.paths)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise MtkdError(f"two inputs are called {twice[0].name}: the outputs of both would be {twice[0]}-*. Rename one.")
    return clips


def _clips(path: Path, out: Path) -> Iterator[Clip]:
    if not path.exists():
        raise MtkdError(f"{path}: there is no such file or folder. Name an image, a video or a folder of them.")
    if path.is_file():
        yield Clip((path,), out, path.suffix.lower() not in IMAGES)
        return
    named = [file for file in path.rglob("*") if file.suffix.lower() in (*IMAGES, *VIDEOS) and not MASK.fullmatch(file.name)]
    found = [file for file in named if file.is_file()]
    chosen = [file for file in found if out.resolve() not in file.resolve().parents]
    if found and not chosen:
        raise MtkdError(
            f"{path} holds images or videos only in {out}, the folder of the outputs, which is passed over. Name another."
        )
    if not chosen:
        raise MtkdError(f"{path} holds no image and no video ({' '.join((*IMAGES, *VIDEOS))}). Name another folder.")
    for folder, files in groupby(sorted(chosen, key=lambda file: (file.parent, file.name)), lambda file: file.parent):
        target, inside = out / path.resolve().name / folder.relative_to(path), list(files)
        if images := tuple(file for file in inside if file.suffix.lower() in IMAGES):
            yield Clip(images, target, False)
        yield from (Clip((file,), target, True) for file in inside if file not in images)
