"""Small JSON files that know when they are damaged, and the seal that lists every file of a finished folder.

A sealed file is canonical JSON whose last member is the SHA-256 of all before it, so that any flipped bit shows.
"""

import hashlib
import json

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.folder import Folder

MANIFEST = "manifest.json"


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of a value, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def dump_checked_json(value: dict) -> bytes:
    """The bytes of a sealed file."""
    return canonical({"content": value, "sha256": digest(value)}) + b"\n"


def load_checked_json(data: bytes) -> dict:
    """The value of a sealed file. Raises ValueError where a single bit of it is not as it was written."""
    value = json.loads(data)["content"]
    if dump_checked_json(value) != data:
        raise ValueError("the checksum does not fit")
    return value


def read_checked_json(folder: Folder, key: str, *members: str) -> dict | None:
    """The value of a sealed file, or None where it is absent.

    Raises MtkdError where it is damaged, or another sealed file that lacks one of the members.
    """
    try:
        value = load_checked_json(folder.read(key))
        if lacking := set(members) - value.keys():
            raise ValueError(f"it has no {', '.join(sorted(lacking))}")
        return value
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MtkdError(
            f"{folder}/{key} is damaged ({error}). Run the command that wrote {folder} again, or verify --repair."
        ) from error


def mark_incomplete(folder: Folder) -> None:
    """Make a finished folder an unfinished one, for this project and, without its group's metadata, for every Zarr reader."""
    folder.delete(MANIFEST)
    folder.delete("zarr.json")


def file_entry(data: bytes) -> dict:
    """What the manifest holds of one file."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_whole(folder: Folder, key: str, entry: dict) -> bool:
    """Is every byte of a file what its entry in a manifest or a record says?"""
    try:
        return file_entry(folder.read(key)) == entry
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False


def check_files(folder: Folder, manifest: dict, unless: tuple[str, ...], remedy: str) -> None:
    """Raises MtkdError, saying what to do, where a file in a manifest is damaged or missing; keys that start with one of `unless`
    are not looked at.
    """
    for key, entry in manifest["files"].items():
        if not key.startswith(unless) and not is_whole(folder, key, entry):
            raise MtkdError(f"{folder}/{key} is damaged or missing. {remedy}")
