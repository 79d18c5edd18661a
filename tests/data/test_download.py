"""download: against a server on 127.0.0.1 that can resume, ignore ranges, drop the connection and refuse."""

import errno
import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from mtkd_cache.data import download as module
from mtkd_cache.data.download import DSAD_SHA256, RECORD, download
from mtkd_cache.errors import LockedError, MtkdError
from mtkd_cache.storage.lock import locked_file

FILES = {
    "liver/03/image00.png": Random(0).randbytes(300_000),
    "liver/03/mask00.png": b"\0\xff" * 500,
    "ureter/21/image01.png": Random(1).randbytes(200_000),
    "ureter/weak_labels.csv": b"",
}


def make_zip(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    """A zip of these files; `mode` is the Unix mode of the last one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.infolist()[-1].external_attr |= mode << 16
    return buffer.getvalue()


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


ZIP = make_zip(FILES)
SHA = sha(ZIP)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, headers, start, status = self.server, {}, 0, self.server.status
        server.asked.append(self.headers.get("Range"))
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if self.path == "/redirect":
            status, headers = 302, {"Location": "/file"}
        elif status == 200 and wanted and server.ranges:
            start = int(wanted[1])
            status = 206 if start < len(server.body) else 416
            headers = {"Content-Range": f"bytes {start + server.shift}-{len(server.body) - 1}/{len(server.body)}"}
        body = server.body[start:] if status in (200, 206) else b""
        headers |= {"Content-Type": server.kind, **({"Content-Length": len(body)} if server.length else {})}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[: server.limits.pop(0) if server.limits else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    """Its knobs: body and status, whether ranges are honored and the length is sent, after how many bytes the next answers
    break off (limits), an error in their range (shift)."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.status, server.kind = ZIP, 200, "application/zip"
        server.ranges, server.length, server.limits, server.shift, server.asked = True, True, [], 0, []
        server.url = f"http://127.0.0.1:{server.server_port}/file"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "dsad"


def put_part(target: Path, content: bytes) -> Path:
    part = target.with_name("dsad.zip.part")
    part.write_bytes(content)
    return part


def by_hand(target: Path, body: bytes) -> dict:
    archive = target.parents[1] / "brought.zip"
    archive.write_bytes(body)
    return download(target, archive=archive, sha256=sha(body), url="http://127.0.0.1:9/never")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".dsad.lock"}


def unpacked(folder: Path) -> dict[str, bytes]:
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert json.loads(files.pop(RECORD))["files"] == len(files)
    return files


def test_whole_download(server, target, capfd):
    got = download(target, url=server.url, sha256=SHA.upper())
    archive = target.with_name("dsad.zip")
    assert got.pop("resumed_from") == 0
    assert got == {"path": str(target), "archive": str(archive), "bytes": len(ZIP), "sha256": SHA, "files": len(FILES)}
    assert unpacked(target) == FILES
    assert archive.read_bytes() == ZIP
    assert names(target.parent) == {"dsad", "dsad.zip"}
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""  # lines come after half a minute


def test_resumes_from_a_part_through_a_redirect(server, target):
    url = server.url.replace("/file", "/redirect")
    put_part(target, ZIP[:100_000])
    assert download(target, url=url, sha256=SHA)["resumed_from"] == 100_000
    assert server.asked == ["bytes=100000-"] * 2
    assert unpacked(target) == FILES
    assert names(target.parent) == {"dsad", "dsad.zip"}


def test_a_whole_part_needs_no_network(target):
    put_part(target, ZIP)
    assert download(target, url="http://127.0.0.1:9/never", sha256=SHA)["resumed_from"] == len(ZIP)
    assert unpacked(target) == FILES


@pytest.mark.parametrize(
    ("content", "ranges", "later"),
    [(ZIP[:1000], False, []), (b"of another file", True, [None]), (bytes(len(ZIP)), True, [None]), (ZIP + b"more", True, [None])],
    ids=["range ignored", "another file", "another whole file", "longer than the file"],
)
def test_a_part_of_no_use_is_downloaded_from_the_start(server, target, content, ranges, later):
    put_part(target, content)
    server.ranges = ranges
    assert download(target, url=server.url, sha256=SHA)["resumed_from"] == 0
    assert server.asked == [f"bytes={len(content)}-", *later]
    assert target.with_name("dsad.zip").read_bytes() == ZIP


def test_a_dropped_connection_is_taken_up_in_the_same_call(server, target):
    server.limits = [1000, 50_000]
    assert download(target, url=server.url, sha256=SHA)["resumed_from"] == 0
    assert server.asked == [None, "bytes=1000-", "bytes=51000-"]
    assert unpacked(target) == FILES


def test_no_progress_ends_the_call_and_the_next_one_completes(server, target):
    server.limits = [1000, 0]
    with pytest.raises(MtkdError, match=r"byte 1000 of \d+.*\n.*run again"):
        download(target, url=server.url, sha256=SHA)
    assert names(target.parent) == {"dsad.zip.part"}
    assert download(target, url=server.url, sha256=SHA)["resumed_from"] == 1000
    assert server.asked[-1] == "bytes=1000-"
    assert unpacked(target) == FILES


def test_drops_without_ranges_do_not_go_on_for_ever(server, target):
    server.ranges, server.limits = False, [5000] * 9
    with pytest.raises(MtkdError, match="byte 5000 of"):
        download(target, url=server.url, sha256=SHA)
    assert len(server.asked) == 2


def test_without_a_length_the_hash_decides(server, target):
    server.length, server.limits = False, [1000]
    with pytest.raises(MtkdError, match=f"wrong SHA-256: expected {SHA}, actual {sha(ZIP[:1000])}\n.*run the same command"):
        download(target, url=server.url, sha256=SHA)
    assert names(target.parent) == set()
    download(target, url=server.url, sha256=SHA)
    assert unpacked(target) == FILES


def test_a_wrong_range_starts_anew_at_the_next_call(server, target):
    put_part(target, ZIP[:1000])
    server.shift = 1
    with pytest.raises(MtkdError, match="206"):
        download(target, url=server.url, sha256=SHA)
    assert download(target, url=server.url, sha256=SHA)["resumed_from"] == 0


@pytest.mark.parametrize("status", [200, 202, 403, 404, 503])
def test_a_refusal_or_a_web_page_keeps_the_part(server, target, status):
    part = put_part(target, ZIP[:1000])
    server.status, server.ranges, server.kind = status, False, "text/html; charset=utf-8"
    with pytest.raises(MtkdError, match=rf"answered {status}.*\n.*--archive"):
        download(target, url=server.url, sha256=SHA)
    assert part.read_bytes() == ZIP[:1000]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/file", "nonsense"])
def test_no_network(target, url, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(MtkdError, match=r"Check the network.*--archive"):
        download(target, url=url, sha256=SHA)
    assert names(target.parent) == set()


def test_already_there(server, target, capfd):
    first = download(target, url=server.url, sha256=SHA)
    target.with_name("dsad.zip").unlink()
    capfd.readouterr()
    assert download(target, url=server.url, sha256=SHA) == {**first, "resumed_from": None}
    assert "nothing to do" in capfd.readouterr().err
    assert len(server.asked) == 1
    with pytest.raises(MtkdError, match=f"another zip, of SHA-256 {SHA}"):
        download(target, url=server.url, sha256="1" * 64)


def test_a_target_of_other_origin_is_left_alone(target):
    target.mkdir()
    by_hand(target, ZIP)  # an empty folder is in nobody's way
    (target / RECORD).unlink()
    with pytest.raises(MtkdError, match="not unpacked by this command"):
        by_hand(target, ZIP)
    file = target.with_name("file")
    file.write_text("mine")
    with pytest.raises(MtkdError, match="Not a directory"):
        by_hand(file, ZIP)
    assert file.read_text() == "mine"


def test_archive_by_hand(target):
    got = by_hand(target, ZIP)
    assert (Path(got["archive"]).name, got["resumed_from"]) == ("brought.zip", None)
    assert unpacked(target) == FILES
    assert names(target.parent) == {"dsad"}
    assert Path(got["archive"]).read_bytes() == ZIP


def test_archive_by_hand_that_is_another_or_missing(target, tmp_path):
    (tmp_path / "other.zip").write_bytes(ZIP)
    with pytest.raises(MtkdError, match=f"expected {DSAD_SHA256}, actual {SHA}"):
        download(target, archive=tmp_path / "other.zip")
    with pytest.raises(MtkdError, match="there is no such file"):
        download(target, archive=tmp_path / "absent.zip")
    assert names(target.parent) == set()


def test_a_single_top_folder_is_stripped(target):
    by_hand(target, make_zip({f"DSAD/{name}": content for name, content in FILES.items()} | {"__MACOSX/._DSAD": b"x"}))
    assert unpacked(target) == FILES


@pytest.mark.parametrize("files", [{"DSAD/a": b"1", "README": b"2"}, {"README": b"2"}])
def test_a_top_folder_that_does_not_hold_all_is_kept(target, files):
    by_hand(target, make_zip(files))
    assert unpacked(target) == files


UNSAFE = ["../out", "a/../../out", "/etc/out", "C:/out", "C:out", "..\\out", "a\\..\\..\\out", "\\\\host\\out", "a/.."]


@pytest.mark.parametrize(
    ("body", "why"),
    [(make_zip({**FILES, name: b"x"}), "would land outside the target") for name in UNSAFE]
    + [(make_zip({**FILES, "link": b"/etc"}, mode=kind | 0o777), "'link' is a symbolic link or a special file")
       for kind in (stat.S_IFLNK, stat.S_IFIFO)],
)  # fmt: skip
def test_an_unsafe_entry_is_refused_before_anything_is_written(target, body, why, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("an entry was read"))
    with pytest.raises(MtkdError, match=f"{why}\nNothing was unpacked"):
        by_hand(target, body)
    assert names(target.parent) == set()
    assert names(target.parents[1]) == {"brought.zip", "data"}


STORED = make_zip(FILES, zipfile.ZIP_STORED)
AT = STORED.index(FILES["liver/03/image00.png"]) + 10


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>no zip</html>", "not a valid zip"),
        (ZIP[:-100_000], "not a valid zip"),
        (STORED[:AT] + bytes([STORED[AT] ^ 1]) + STORED[AT + 1 :], "not a valid zip .*CRC"),
        (make_zip({"a/b": b"1", "a//b": b"2", "c": b"3"}), "not a valid zip"),
        (make_zip({"a": b"1", "a/b": b"2", "c": b"3"}), "not a valid zip"),
        (make_zip({"folder/": b""}), "contains no files"),
    ],
    ids=["no zip", "truncated", "a bit flipped", "one place twice", "file and folder", "no files"],
)
def test_an_invalid_zip(target, body, why):
    with pytest.raises(MtkdError, match=why):
        by_hand(target, body)
    assert names(target.parent) == set()


@pytest.mark.parametrize("damage", [b"", ZIP[:-1], ZIP + b"more", bytes(len(ZIP))])
def test_a_damaged_zip_under_the_final_name_is_downloaded_again(server, target, damage, capfd):
    target.with_name("dsad.zip").write_bytes(damage)
    assert download(target, url=server.url, sha256=SHA)["resumed_from"] == 0
    assert "is damaged or another zip" in capfd.readouterr().err
    assert unpacked(target) == FILES
    assert target.with_name("dsad.zip").read_bytes() == ZIP


def test_of_two_downloads_into_one_target_the_second_is_refused(server, target, monkeypatch):
    """The second one begins while the first is receiving."""
    append, second = module._Part.append, []

    def meanwhile(part, chunk: bytes) -> None:
        if not second:
            second.append(pytest.raises(LockedError, match="dsad is being written by another process"))
            with second[0]:
                download(target, url=server.url, sha256=SHA)
        append(part, chunk)

    monkeypatch.setattr(module._Part, "append", meanwhile)
    download(target, url=server.url, sha256=SHA)
    assert second and len(server.asked) == 1
    assert unpacked(target) == FILES
    with locked_file(target.with_name(".dsad.lock"), "dsad"):  # an existing target needs no lock
        assert download(target, url=server.url, sha256=SHA)["files"] == len(FILES)


def test_the_zip_is_on_the_disk_before_it_gets_its_name(server, target, monkeypatch):
    """A kill at the renaming leaves all of its bytes under the name that it has then."""
    replace, complete = Path.replace, []

    def look(path: Path, to: Path) -> Path:
        complete.append(path.read_bytes())
        return replace(path, to)

    monkeypatch.setattr(module, "CHUNK", 1000)  # less than what Python keeps before it writes
    monkeypatch.setattr(Path, "replace", look)
    download(target, url=server.url, sha256=SHA)
    assert complete == [ZIP]


def test_what_a_zip_may_unpack_to_is_limited(target, monkeypatch):
    bomb = make_zip({"liver/bomb": bytes(5_000_000)})
    archive = target.parents[1] / "bomb.zip"
    archive.write_bytes(bomb)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("an entry was read"))
    monkeypatch.setattr("mtkd_cache.data.unzip.MAX_BYTES", 4_999_999)
    with pytest.raises(MtkdError, match=r"would unpack to 5\.0 MB, at most 5\.0 MB are allowed\nNothing was unpacked"):
        download(target, archive=archive, sha256=sha(bomb))
    assert names(target.parent) == set()
    monkeypatch.undo()
    monkeypatch.setattr("mtkd_cache.data.unzip.MAX_BYTES", 5_000_000)
    assert download(target, archive=archive, sha256=sha(bomb))["files"] == 1


def test_room_is_asked_for_before_anything_is_written(server, target, monkeypatch):
    bomb = make_zip({"liver/bomb": bytes(5_000_000)})
    assert len(bomb) < 10_000
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=len(ZIP) - 1))
    with pytest.raises(MtkdError, match=r"5\.0 MB needed to unpack .*, 500\.7 kB free"):
        by_hand(target, bomb)
    with pytest.raises(MtkdError, match="needed to download"):
        download(target, url=server.url, sha256=SHA)
    assert names(target.parent) == set()


def test_a_full_disk_keeps_the_part(server, target, monkeypatch):
    def append(part, chunk):
        with monkeypatch.context() as patch:
            if part.size >= 2000:
                patch.setattr(part, "file", SimpleNamespace(write=full))
            real_append(part, chunk)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    real_append = module._Part.append
    with monkeypatch.context() as patch:
        patch.setattr(module._Part, "append", append)
        patch.setattr(module, "CHUNK", 1000)
        with pytest.raises(MtkdError, match="the disk is full; free some space and run the same command again"):
            download(target, url=server.url, sha256=SHA)
    assert download(target, url=server.url, sha256=SHA)["resumed_from"] >= 2000
    assert unpacked(target) == FILES


def test_an_interrupted_unpacking_is_no_target_and_is_done_again(server, target, monkeypatch):
    def interrupted(archive, info):
        if info.filename == "ureter/21/image01.png":
            raise KeyboardInterrupt
        return opened(archive, info)

    opened = zipfile.ZipFile.open
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(target, url=server.url, sha256=SHA)
    assert names(target.parent) == {"dsad.zip"}
    assert download(target, url=server.url, sha256=SHA)["resumed_from"] is None
    assert unpacked(target) == FILES
    assert len(server.asked) == 1


def test_what_a_killed_unpacking_left_does_not_reach_the_target(target):
    left = target.with_name(".dsad.unpacking")
    left.mkdir()
    (left / "half.png").write_bytes(b"half")
    by_hand(target, ZIP)
    assert unpacked(target) == FILES
    assert names(target.parent) == {"dsad"}
