"""Download the Dresden Surgical Anatomy Dataset: one zip, resumed after an interruption, checked, unpacked all or nothing.

    download(Path("data/dsad"))                                          # downloads data/dsad.zip, unpacks it into data/dsad
    download(Path("data/dsad"), archive=Path("~/Downloads/dsad.zip"))    # unpacks a zip that is already on this machine

On the disk, in order: TARGET.zip.part (the bytes received so far; TARGET.zip.part.json records the address and the server's
validator), TARGET.zip (complete, SHA-256 checked), .TARGET.unpacking, TARGET. Each is renamed to the next when it is complete, so
that the same call resumes after an interruption at any moment; .TARGET.lock excludes a second call meanwhile.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from mtkd_cache.data.unzip import CHUNK, RECORD, need_room, progress_bar, unpack
from mtkd_cache.errors import MtkdError
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
    with _disk_errors(target), ExitStack() as stack:
        record = _unpacked(target, sha256)
        if not record:
            stack.enter_context(locked_file(target.with_name(f".{target.name}.lock"), str(target)))
            record = _unpacked(target, sha256)
        if record:
            print(f"{target} exists already ({record['files']} files): nothing to do", file=sys.stderr)
        else:
            source = Path(archive).expanduser().resolve() if archive else target.with_name(target.name + ".zip")
            if archive:
                _check_archive(source, sha256)
            elif not _is_complete(source, sha256):
                resumed_from = _download(url, source, sha256)
            metadata = {"archive": str(source), "bytes": source.stat().st_size, "sha256": sha256}
            record = unpack(source, target, metadata)
    return {"path": str(target), **record, "resumed_from": resumed_from}


def _unpacked(target: Path, sha256: str) -> dict[str, Any]:
    """The record of an earlier call that unpacked into `target`, or {}; removes an empty folder. MtkdError for anything else."""
    if not target.exists():
        return {}
    record = _read_json(target / RECORD)
    if record.get("sha256") == sha256:
        return record
    if any(target.iterdir()):
        reason = f"holds another zip, of SHA-256 {record.get('sha256')}" if record else "was not unpacked by this command"
        raise MtkdError(f"{target} exists but {reason}\nIngest it as it is if it is complete, or name another folder.")
    target.rmdir()
    return {}


def _check_archive(archive: Path, sha256: str) -> None:
    if not archive.is_file():
        raise MtkdError(f"{archive}: there is no such file; give the path of the dataset's zip")
    actual = _sha256(archive).hexdigest()
    if actual != sha256:
        raise MtkdError(f"{archive}: SHA-256 expected {sha256}, actual {actual}\nMove it away and download it again.")


def _is_complete(archive: Path, sha256: str) -> bool:
    if not archive.exists() or _sha256(archive).hexdigest() == sha256:
        return archive.exists()
    print(f"{archive} is damaged or another zip, its SHA-256 is not {sha256}: downloading it again", file=sys.stderr)
    return False


def _sha256(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file, progress_bar(f"checking {path.name}", path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest


class _Part:
    """TARGET.zip.part, open for appending, with the digest and size of its content; `kept` bytes of it precede this call.

    `validator` is the server's ETag or Last-Modified, for If-Range.
    """

    def __init__(self, path: Path, url: str):
        self.path, self.url, self.note = path, url, path.with_name(path.name + ".json")
        note = _read_json(self.note)
        self.validator: str | None = note.get("validator")
        self.file = path.open("ab" if note.get("url", url) == url else "wb")
        self.digest = _sha256(path)
        self.size = self.kept = path.stat().st_size

    def append(self, chunk: bytes) -> None:
        with _disk_errors(self.path):
            self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def start_over(self, validator: str | None) -> None:
        with _disk_errors(self.path):
            self.file.truncate(0)
            self.note.write_text(json.dumps({"url": self.url, "validator": validator}), encoding="utf-8")
        self.digest, self.size, self.kept, self.validator = hashlib.sha256(), 0, 0, validator

    def close(self) -> None:
        self.file.close()
        if self.size == 0:
            self.remove()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _download(url: str, archive: Path, sha256: str) -> int:
    """Download `url` to `archive` through its part file; returns the byte at which the download resumed.

    A broken connection is retried at once as long as each attempt receives more than all before it.
    """
    with closing(_Part(archive.with_name(archive.name + ".part"), url)) as part:
        with progress_bar(f"downloading {archive.name}", None) as bar:
            furthest = part.size
            while part.digest.hexdigest() != sha256 and (problem := _receive(part, bar)):
                if part.size <= furthest:
                    advice = f"Check the network and run again to resume, {BY_HAND}."
                    raise MtkdError(f"{url}: {problem} ({part.size} bytes received)\n{advice}")
                furthest = part.size
        actual = part.digest.hexdigest()
        if actual == sha256:
            part.file.flush()
            os.fsync(part.file.fileno())
            part.path.replace(archive)
    part.remove()
    if actual != sha256:
        problem = f"the download has the wrong SHA-256: expected {sha256}, actual {actual}"
        raise MtkdError(f"{url}: {problem}\nIt was removed: run the same command again, {BY_HAND}.")
    return part.kept


def _receive(part: _Part, bar: tqdm) -> str | None:
    """Append to the part what one connection delivers. None when the file is complete, else the problem."""
    try:
        with _connect(part) as response:
            total = _align(response, part)
            bar.total, bar.n, bar.initial = total, part.size, part.size
            need_room(part.path.parent, (total or 0) - part.size, f"to download {part.url}")
            while chunk := response.read1(CHUNK):
                part.append(chunk)
                bar.update(len(chunk))
    except (OSError, HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return None if total is None or part.size >= total else f"the connection broke at byte {part.size} of {total}"


def _connect(part: _Part) -> HTTPResponse:
    """Request the missing bytes from the address itself each time, since a redirect may expire within seconds."""
    request = Request(part.url, headers={"User-Agent": "mtkd-cache"})
    if part.size:
        request.add_header("Range", f"bytes={part.size}-")
        if part.validator:
            request.add_header("If-Range", part.validator)
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT)
        return response
    except HTTPError as error:
        error.close()
        if error.code == 416 and part.size:  # the file is shorter than the part
            part.start_over(None)
            return _connect(part)
        raise MtkdError(f"{part.url} answered {error.code} {error.reason}\nTry again later, {BY_HAND}.") from error


def _align(response: HTTPResponse, part: _Part) -> int | None:
    """Empty the part unless the body continues it; returns the size of the whole file in bytes, None if unknown."""
    headers = response.headers
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
        if span and int(span[1]) == part.size:
            return int(span[2]) + 1 if span[3] == "*" else int(span[3])
        part.start_over(None)
    if response.status != 200 or headers.get_content_type() == "text/html":
        raise MtkdError(f"{part.url} answered {response.status} without the file\nTry again later, {BY_HAND}.")
    etag = headers.get("ETag", "")
    part.start_over(etag if etag.startswith('"') else headers.get("Last-Modified"))  # If-Range takes no weak ETag
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MtkdError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise MtkdError(f"{error.filename or path}: {error.strerror or error}; name a path you may use") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
