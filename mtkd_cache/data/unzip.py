"""Unpack a zip completely or not at all, and nothing outside its target."""

import json
import shutil
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime.progress import file_size, progress_bar

RECORD = ".mtkd-download.json"  # in the target: what was unpacked; written last, so it exists only in a complete target
CHUNK = 1 << 18  # bytes read at a time
MAX_BYTES = 64 * 10**9  # unpacked; several times the Dresden set
SAME_PATH = (FileExistsError, NotADirectoryError, IsADirectoryError)  # of two entries, as the staging folder is new
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, *SAME_PATH)


def unpack(archive: Path, target: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Unpack into a hidden sibling of `target`, add the record, rename it; returns the record with `files`."""
    staging = target.with_name(f".{target.name}.unpacking")
    try:
        with zipfile.ZipFile(archive) as source:
            entries = members(source)
            size = sum(info.file_size for info, _ in entries)
            if size > MAX_BYTES:
                sizes = f"{file_size(size)}, at most {file_size(MAX_BYTES)} are allowed"
                advice = "Nothing was unpacked: check that it is the dataset's zip."
                raise MtkdError(f"{archive} would unpack to {sizes}\n{advice}")
            shutil.rmtree(staging, ignore_errors=True)
            need_room(target.parent, size, f"to unpack {archive}")
            staging.mkdir()
            with progress_bar(f"unpacking {archive.name}", "byte", size) as bar:
                for info, parts in entries:
                    path = staging.joinpath(*parts)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with source.open(info) as entry, path.open("xb") as file:
                        while chunk := entry.read(CHUNK):  # at most the declared size, with its CRC checked
                            file.write(chunk)
                            bar.update(len(chunk))
        record = {**record, "files": len(entries)}
        (staging / RECORD).write_text(json.dumps(record), encoding="utf-8")
        staging.rename(target)
    except BROKEN_ZIP as error:
        raise MtkdError(f"{archive} is not a valid zip ({error}): remove it and download it again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return record


def members(archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """The files of a zip, each with the components of its path below the target; nothing is written.

    A single top-level folder is stripped from the paths; empty folders and macOS's `__MACOSX` are skipped.
    Raises MtkdError for an absolute path, a drive letter, `..`, a symbolic link or other special file, or no file at all.
    """
    entries = [(info, _safe_parts(archive, info)) for info in archive.infolist()]
    files = [(info, parts) for info, parts in entries if parts and parts[0] != "__MACOSX" and not info.is_dir()]
    if not files:
        raise MtkdError(f"{archive.filename} contains no files: it is not the dataset's zip, download that one")
    strip = len({parts[0] for _, parts in files}) == 1 and all(len(parts) > 1 for _, parts in files)
    return [(info, parts[1:] if strip else parts) for info, parts in files]


def _safe_parts(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[str, ...]:
    """The components of an entry's path. Raises MtkdError where unpacking it could touch anything outside the target."""
    name = info.orig_filename.replace("\\", "/")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    kind = stat.S_IFMT(info.external_attr >> 16)
    outside = name.startswith("/") or ".." in parts or ":" in name or "\0" in name
    if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        reason = "would land outside the target" if outside else "is a symbolic link or a special file"
        advice = "Nothing was unpacked: do not trust this zip, download the dataset's own."
        raise MtkdError(f"{archive.filename}: entry {info.orig_filename!r} {reason}\n{advice}")
    return parts


def need_room(folder: Path, size: int, purpose: str) -> None:
    """Raises MtkdError where a folder's disk has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        sizes = f"{file_size(size)} needed {purpose}, {file_size(free)} free"
        raise MtkdError(f"{folder}: {sizes}\nFree some space or name a folder on another disk, and run the same command again.")
