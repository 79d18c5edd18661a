"""Small JSON files that reveal damage, and the manifest that lists every file of a finished folder.

A checked file is canonical JSON whose last member is the SHA-256 of the content before it, so that any flipped bit shows.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypedDict, TypeVar, TypeVarTuple

from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.folder import ABSENT, Folder
from mtkd_cache.storage.record import JsonRecord
from mtkd_cache.storage.shard_writer import group_metadata

MANIFEST = "manifest.json"
GROUP = "zarr.json"
Arguments = TypeVarTuple("Arguments")
Content = TypeVar("Content")
Record = TypeVar("Record", bound=JsonRecord)


class FileEntry(TypedDict):
    """What a manifest holds of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(JsonRecord):
    """What makes a folder a finished one; kind and format have the class's values. files: every other file in it, by key.

    LONG: the members that `brief` leaves out.
    """

    LONG: ClassVar[tuple[str, ...]] = ("files",)
    kind: str = ""
    format: int = 0
    fingerprint: str
    files: dict[str, FileEntry]

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: object) -> Self:
        """See `JsonRecord`. Raises MtkdError also for a manifest of another kind or a newer format."""
        kind, version = content.get("kind", cls.kind), content.get("format", cls.format)
        if kind != cls.kind or not isinstance(version, int) or version > cls.format:
            raise MtkdError(f"{where} is of a {kind} of format {version}; a {cls.kind} of format {cls.format} is needed.")
        return super().from_json(content, where)

    def brief(self) -> dict[str, Any]:
        """The content without its long members, as it stands in the group's attributes too."""
        return {key: value for key, value in self.to_json().items() if key not in self.LONG}


Finished = TypeVar("Finished", bound=Manifest)


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON of a value, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def dump_checked_json(content: Mapping[str, Any]) -> bytes:
    """The bytes of a checked file."""
    return canonical({"content": content, "sha256": digest(content)}) + b"\n"


def load_checked_json(data: bytes) -> dict[str, Any]:
    """The content of a checked file. Raises ValueError where a single bit of it is not as it was written."""
    content: dict[str, Any] = json.loads(data)["content"]
    if dump_checked_json(content) != data:
        raise ValueError("the checksum does not fit")
    return content


def read_checked_json(folder: Folder, key: str, *members: str) -> dict[str, Any] | None:
    """The content of a checked file, or None where it is absent.

    Raises MtkdError where it is damaged, or another checked file that lacks one of the members, or the folder is a file.
    """
    try:
        content = load_checked_json(folder.read(key))
        if missing := set(members) - content.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        return content
    except FileNotFoundError:
        return None
    except (IsADirectoryError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        root = Path(folder.path)
        if isinstance(error, NotADirectoryError) and not root.is_dir():
            file = next(path for path in (root, *root.parents) if path.exists())
            raise MtkdError(f"{file} is a file. Name a folder.") from error
        raise MtkdError(
            f"{folder}/{key} is damaged ({error}). Run the command that wrote {folder} again, or verify --repair."
        ) from error


def read_record(folder: Folder, key: str, kind: type[Record]) -> Record | None:
    """The record in a checked file, or None where it is absent. Raises MtkdError where it is damaged or of another kind."""
    content = read_checked_json(folder, key)
    return None if content is None else kind.from_json(content, f"{folder}/{key}")


def if_intact(read: Callable[[*Arguments], Content | None], *arguments: *Arguments) -> Content | None:
    """What a read returns; None where the file is damaged or cannot be read."""
    try:
        return read(*arguments)
    except (MtkdError, OSError):
        return None


def file_entry(data: bytes) -> FileEntry:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_whole(folder: Folder, key: str, entry: FileEntry) -> bool:
    """Whether every byte of a file is as its entry in a manifest or a record says."""
    try:
        return file_entry(folder.read(key)) == entry
    except ABSENT:
        return False


def check_files(folder: Folder, files: Mapping[str, FileEntry], skip: tuple[str, ...], remedy: str) -> None:
    """Raises MtkdError, saying what to do, where a file of a manifest is damaged or missing.

    skip: keys that start with one of these are not checked.
    """
    for key, entry in files.items():
        if not key.startswith(skip) and not is_whole(folder, key, entry):
            raise MtkdError(f"{folder}/{key} is damaged or missing. {remedy}")


def mark_incomplete(folder: Folder) -> None:
    """Make a finished folder an unfinished one, for this project and, without its group's metadata, for every Zarr reader."""
    folder.delete(MANIFEST)
    folder.delete(GROUP)


def finalize(
    folder: Folder, manifest: Finished, arrays: Mapping[str, bytes], attributes: Mapping[str, Any] = MappingProxyType({})
) -> Finished:
    """Write the small files of a Zarr group and, last, the manifest that makes it a finished one. Returns the manifest.

    A file that holds the right bytes already is not written again.

    Args:
        manifest: with the files that are written already.
        arrays: metadata and columns of the arrays, by key.
        attributes: of the group, beside the brief content of the manifest.
    """
    metadata = {key: data for key, data in arrays.items() if key.endswith(GROUP)}
    small = {**arrays, GROUP: group_metadata({**manifest.brief(), **attributes, "complete": True}, metadata)}
    manifest = replace(manifest, files=manifest.files | {key: file_entry(data) for key, data in small.items()})
    small[MANIFEST] = dump_checked_json(manifest.to_json())
    changed = {key for key, data in small.items() if not is_whole(folder, key, file_entry(data))}
    if changed:
        mark_incomplete(folder)
        for key, data in small.items():
            if key in changed | {GROUP, MANIFEST}:
                folder.write(key, data)
    return manifest
