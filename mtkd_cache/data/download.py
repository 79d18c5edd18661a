"""Download the Dresden Surgical Anatomy Dataset: one zip, resumed after an interruption, checked, unpacked all or nothing.

    download(Path("data/dsad"))                                          # downloads data/dsad.zip, unpacks it into data/dsad
    download(Path("data/dsad"), archive=Path("~/Downloads/dsad.zip"))    # unpacks a zip that is already on this machine

On the disk, in order: TARGET.zip.part (the bytes received so far), TARGET.zip (complete, SHA-256 checked), .TARGET.unpacking,
TARGET. Each is renamed to the next when it is complete, so that the same call resumes after an interruption at any moment;
.TARGET.lock excludes a second call meanwhile. The zip's SHA-256 is known, so that it alone decides whether a part was of use.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mtkd_cache.data.unzip import CHUNK, RECORD, need_room, unpack
from mtkd_cache.errors import MtkdError
from mtkd_cache.runtime.progress import Bar, progress_bar
from mtkd_cache.storage.folder import NO_SPACE
from mtkd_cache.storage.lock import locked_file

# figshare.com/ndownloader/files/ID answers programs with an empty 202 (a browser check); the API serves the same file
FIGSHARE_URL = "https://api.figshare.com/v2/file/download/38494425"
DSAD_SHA256 = "b8a8ade37d106fc1641a901d1c843806f2d27f9f8e18f4614b043e7e2ca2e40f"
TIMEOUT = 60  # seconds without a byte after which a connection counts as broken
BY_HAND = "or download it with a browser and run again with --archive FILE"


def download(
    target: Path, *, url: str = FIGSHARE_URL, sha256: str = DSAD_SHA256, archive: Path | None = None
) -> dict[str, str | int | None]:
    """Download the dataset's zip to TARGET.zip and unpack it into the folder `target`.

    A target that an earlier call has unpacked is left as it is. The zip is kept; it may be deleted afterwards.

    Args:
        target: the folder to create; it must be absent, empty, or the result of an earlier call.
        url: http(s) address of the zip.
        sha256: expected SHA-256 of the zip, in hexadecimal.
        archive: a zip on this machine, used in place instead of a download.

    Returns:
        path, archive: the folder and the zip; bytes, sha256: of the zip; files: number of files unpacked;
        resumed_from: the byte at which the download resumed (0: from the start), None where nothing was downloaded.

    Raises:
        MtkdError: no network, a refusal, or a connection that breaks without progress (what was received is kept for the next
            call); a wrong SHA-256; an invalid, unsafe or too large zip; a full disk; a target that is something else.
        LockedError: another call is writing the same target.
    """
    target = Path(target).expanduser().resolve()
    sha256 = sha256.lower()
    resumed_from = None
    with _disk_errors(target):
        if record := _unpacked(target, sha256):
            print(f"{target} exists already ({record['files']} files): nothing to do", file=sys.stderr)
            return {"path": str(target), **record, "resumed_from": None}
        with locked_file(target.with_name(f".{target.name}.lock"), str(target)):
            record = _unpacked(target, sha256)  # by a call that has ended meanwhile
            if not record:
                source = Path(archive).expanduser().resolve() if archive else target.with_name(target.name + ".zip")
                if not _is_complete(source, sha256, required=archive is not None):
                    resumed_from = _download(url, source, sha256)
                metadata = {"archive": str(source), "bytes": source.stat().st_size, "sha256": sha256}
                record = unpack(source, target, metadata)
    return {"path": str(target), **record, "resumed_from": resumed_from}


def _unpacked(target: Path, sha256: str) -> dict[str, Any]:
    """The record of an earlier call that unpacked into `target`, or {}; removes an empty folder. MtkdError for anything else."""
    if not target.exists():
        return {}
    record: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
    if record.get("sha256") == sha256:
        return record
    if any(target.iterdir()):
        reason = f"holds another zip, of SHA-256 {record.get('sha256')}" if record else "was not unpacked by this command"
        raise MtkdError(f"{target} exists but {reason}\nIngest it as it is if it is complete, or name another folder.")
    target.rmdir()
    return {}


def _is_complete(archive: Path, sha256: str, required: bool) -> bool:
    """Whether a zip is there and the expected one. Raises MtkdError where it is `required` and is not."""
    if not archive.is_file():
        if required:
            raise MtkdError(f"{archive}: there is no such file. Give the path of the dataset's zip.")
        return False
    actual = _sha256(archive).hexdigest()
    if actual != sha256 and required:
        raise MtkdError(f"{archive}: SHA-256 expected {sha256}, actual {actual}\nMove it away and download it again.")
    if actual != sha256:
        print(f"{archive} is damaged or another zip, its SHA-256 is not {sha256}: downloading it again", file=sys.stderr)
    return actual == sha256


def _sha256(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file, progress_bar(f"checking {path.name}", "byte", path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest


class _Part:
    """TARGET.zip.part, open for appending, with the digest and size of its content; `kept` bytes of it precede this call."""

    def __init__(self, path: Path):
        self.path, self.file = path, path.open("ab")
        self.digest = _sha256(path)
        self.size = self.kept = path.stat().st_size

    def append(self, chunk: bytes) -> None:
        with _disk_errors(self.path):
            self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def start_over(self) -> None:
        with _disk_errors(self.path):
            self.file.truncate(0)
        self.digest, self.size, self.kept = hashlib.sha256(), 0, 0

    def close(self) -> None:
        self.file.close()
        if self.size == 0:
            self.path.unlink(missing_ok=True)


def _download(url: str, archive: Path, sha256: str) -> int:
    """Download `url` to `archive` through its part file; returns the byte at which the download resumed.

    A broken connection is retried at once as long as each attempt receives more than all before it. A part that turns out to be
    the beginning of another file is downloaded again from the start.
    """
    with (
        closing(_Part(archive.with_name(archive.name + ".part"))) as part,
        progress_bar(f"downloading {archive.name}", "byte", None) as bar,
    ):
        furthest = part.size
        while part.digest.hexdigest() != sha256:
            problem = _receive(url, part, bar)
            if problem and part.size <= furthest:
                advice = f"Check the network and run again to resume, {BY_HAND}."
                raise MtkdError(f"{url}: {problem} ({part.size} bytes received)\n{advice}")
            furthest = part.size
            if not problem and (actual := part.digest.hexdigest()) != sha256:
                kept, furthest = part.kept, 0
                part.start_over()
                if not kept:
                    problem = f"the download has the wrong SHA-256: expected {sha256}, actual {actual}"
                    raise MtkdError(f"{url}: {problem}\nIt was removed: run the same command again, {BY_HAND}.")
        part.file.flush()
        os.fsync(part.file.fileno())
        part.path.replace(archive)
        return part.kept


def _receive(url: str, part: _Part, bar: Bar) -> str | None:
    """Append to the part what one connection delivers. None when the file is complete, else the problem.

    Each connection starts at the address itself, since a redirect may expire within seconds.
    """
    try:
        request = Request(url, headers={"User-Agent": "mtkd-cache"})
        if part.size:
            request.add_header("Range", f"bytes={part.size}-")
        with urlopen(request, timeout=TIMEOUT) as response:
            total = _align(response, url, part)
            bar.total, bar.n, bar.initial = total, part.size, part.size
            need_room(part.path.parent, (total or 0) - part.size, f"to download {url}")
            while chunk := response.read1(CHUNK):
                part.append(chunk)
                bar.update(len(chunk))
    except HTTPError as error:
        error.close()
        if error.code == 416 and part.size:  # the file has no more bytes than the part
            return None
        raise MtkdError(f"{url} answered {error.code} {error.reason}\nTry again later, {BY_HAND}.") from error
    except (OSError, HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return None if total is None or part.size >= total else f"the connection broke at byte {part.size} of {total}"


def _align(response: HTTPResponse, url: str, part: _Part) -> int | None:
    """Empty the part unless the body continues it; returns the size of the whole file in bytes, None if unknown."""
    headers = response.headers
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
        if span and int(span[1]) == part.size:
            return int(span[2]) + 1 if span[3] == "*" else int(span[3])
        part.start_over()
    elif response.status == 200 and headers.get_content_type() != "text/html":
        part.start_over()
        length = headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None
    raise MtkdError(f"{url} answered {response.status} without the file\nTry again later, {BY_HAND}.")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise MtkdError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise MtkdError(f"{error.filename or path}: {error.strerror or error}; name a path you may use") from error
