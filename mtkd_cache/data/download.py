"""Fetch the Dresden Surgical Anatomy Dataset: one zip, resumed after a break, checked, unpacked whole or not at all.

    download(Path("data/dsad"))                                          # fetch data/dsad.zip, unpack it into data/dsad
    download(Path("data/dsad"), archive=Path("~/Downloads/dsad.zip"))    # unpack a zip that is already here

On the disk, in order: TARGET.zip.part (what has come so far; TARGET.zip.part.json names the address and the server's
validator), TARGET.zip (whole, SHA-256 checked), .TARGET.unpacking, TARGET. Each is renamed to the next only when it is
whole, so that the same call resumes after a break at any moment; .TARGET.lock keeps a second call out meanwhile.
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
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from mtkd_cache.data.unzip import CHUNK, RECORD, need_room, progress_bar, unpack
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.lock import locked_file

# figshare.com/ndownloader/files/ID answers programs with an empty 202 (a test for browsers); the API has the same file
FIGSHARE_URL = "https://api.figshare.com/v2/file/download/38494425"
DSAD_SHA256 = "b8a8ade37d106fc1641a901d1c843806f2d27f9f8e18f4614b043e7e2ca2e40f"
MAX_BYTES = 64 * 10**9  # what a zip may unpack to, several times the Dresden set
TIMEOUT = 60  # seconds without a byte before a connection counts as broken
BY_HAND = "or fetch it with a browser and run again with --archive FILE"


def download(
    target: Path, *, url: str = FIGSHARE_URL, sha256: str = DSAD_SHA256, archive: Path | None = None, max_bytes: int = MAX_BYTES
) -> dict[str, str | int | None]:
    """Bring the dataset's zip to TARGET.zip and unpack it into the folder `target`.

    A target that this function has unpacked before is left as it is. The zip stays; it may be deleted afterwards.

    Args:
        target: the folder to make; it must be absent, empty, or the work of an earlier call.
        url: http(s) address of the zip.
        sha256: SHA-256 that the zip must have, in hexadecimal.
        archive: a zip that is already here; nothing is fetched then, and it stays where it is.
        max_bytes: the most that the zip may unpack to.

    Returns:
        path, archive: the folder and the zip; bytes, sha256: of the zip; files: number of files unpacked;
        resumed_from: the byte at which the download went on (0: it began anew), None where nothing was fetched.

    Raises:
        MtkdError: no network, a refusal or a break without progress (what has come stays for the next call), another
            SHA-256 than expected, no whole zip, an entry that is unsafe, more than `max_bytes`, a full disk, a target that
            is something else.
        LockedError: another call is bringing the same target.
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
            print(f"{target} is there already ({record['files']} files): nothing to do", file=sys.stderr)
        else:
            whole = Path(archive).expanduser().resolve() if archive else target.with_name(target.name + ".zip")
            if archive:
                _check_archive(whole, sha256)
            elif not whole.exists() or _is_another(whole, sha256):
                resumed_from = _fetch(url, whole, sha256)
            about = {"archive": str(whole), "bytes": whole.stat().st_size, "sha256": sha256}
            record = unpack(whole, target, about, max_bytes)
    return {"path": str(target), **record, "resumed_from": resumed_from}


def _unpacked(target: Path, sha256: str) -> dict | None:
    """The record of an earlier whole unpacking into `target`, None where the way is free; removes an empty folder."""
    if not target.exists():
        return None
    record = _read_json(target / RECORD)
    if record.get("sha256") == sha256:
        return record
    if any(target.iterdir()):
        what = f"holds another zip, of SHA-256 {record.get('sha256')}" if record else "was not unpacked by this command"
        raise MtkdError(f"{target} exists but {what}\nIngest it as it is if it is whole, or name another folder.")
    target.rmdir()
    return None


def _check_archive(archive: Path, sha256: str) -> None:
    if not archive.is_file():
        raise MtkdError(f"{archive}: there is no such file; give the path of the dataset's zip")
    actual = _sha256(archive).hexdigest()
    if actual != sha256:
        raise MtkdError(f"{archive}: SHA-256 expected {sha256}, actual {actual}\nMove it away and fetch it again.")


def _is_another(archive: Path, sha256: str) -> bool:
    another = _sha256(archive).hexdigest() != sha256
    if another:
        print(f"{archive} is damaged or another zip, it has not the SHA-256 {sha256}: fetching it again", file=sys.stderr)
    return another


def _sha256(path: Path) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file, progress_bar(f"checking {path.name}", path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest


class _Part:
    """TARGET.zip.part, open at its end: digest and size of what it holds, `kept` of it from before this call;
    `validator` is the server's ETag or Last-Modified, for If-Range."""

    def __init__(self, path: Path, url: str):
        self.path, self.url, self.note = path, url, path.with_name(path.name + ".json")
        note = _read_json(self.note)
        self.validator = note.get("validator")
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


def _fetch(url: str, archive: Path, sha256: str) -> int:
    """Fetch `url` into `archive` by way of its part file; returns the byte at which the download went on.

    A broken connection is taken up again at once for as long as each attempt brings more than all before it.
    """
    with closing(_Part(archive.with_name(archive.name + ".part"), url)) as part:
        with progress_bar(f"fetching {archive.name}", None) as bar:
            furthest = part.size
            while part.digest.hexdigest() != sha256 and (problem := _receive(part, bar)):
                if part.size <= furthest:
                    what = f"{url}: {problem} ({part.size} bytes are here)"
                    raise MtkdError(f"{what}\nCheck the network and run again, it goes on from there; {BY_HAND}.")
                furthest = part.size
        actual = part.digest.hexdigest()
        if actual == sha256:
            part.file.flush()
            os.fsync(part.file.fileno())
            part.path.replace(archive)
    part.remove()
    if actual != sha256:
        what = f"{url}: what came has the wrong SHA-256: expected {sha256}, actual {actual}"
        raise MtkdError(f"{what}\nIt was removed: run the same command again, {BY_HAND}.")
    return part.kept


def _receive(part: _Part, bar: tqdm) -> str | None:
    """One connection: append to the part what comes. None when the body has come whole, else what went wrong."""
    try:
        with _connect(part) as response:
            total = _line_up(response, part)
            bar.total, bar.n, bar.initial = total, part.size, part.size
            need_room(part.path.parent, (total or 0) - part.size, f"to fetch {part.url}")
            while chunk := response.read1(CHUNK):
                part.append(chunk)
                bar.update(len(chunk))
    except (OSError, HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return None if total is None or part.size >= total else f"the connection broke at byte {part.size} of {total}"


def _connect(part: _Part) -> HTTPResponse:
    """Ask for what is missing. The address itself is asked each time: where it redirects to may be good for seconds."""
    request = Request(part.url, headers={"User-Agent": "mtkd-cache"})
    if part.size:
        request.add_header("Range", f"bytes={part.size}-")
        if part.validator:
            request.add_header("If-Range", part.validator)
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and part.size:  # the part is no beginning of that file
            part.start_over(None)
            return _connect(part)
        raise MtkdError(f"{part.url} answered {error.code} {error.reason}\nTry again later, {BY_HAND}.") from error


def _line_up(response: HTTPResponse, part: _Part) -> int | None:
    """Make the part end where the body begins; returns the size of the whole file in bytes, None where not told."""
    headers = response.headers
    if response.status == 206:
        told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
        if told and int(told[1]) == part.size:
            return int(told[2]) + 1 if told[3] == "*" else int(told[3])
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


def _read_json(path: Path) -> dict:
    """The JSON object in a file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
