"""Are a logit cache's files as they were written? Every file of a finished cache is in its manifest with size and SHA-256; an
unfinished cache is checked as far as its records go."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from mtkd_cache.cache.layout import PLAN, ShardTask, check_kind, shard_tasks
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, read_checked_json
from mtkd_cache.storage.folder import Folder

READERS = 8  # files hashed at a time
METADATA = ("zarr.json", "logits/zarr.json", "sha256/zarr.json", "sha256/c/0/0", "crc32c/zarr.json", "crc32c/c/0/0/0")


@dataclass
class IntegrityReport:
    """What is in a cache's folder.

    manifest, plan: None where absent or damaged. records: the readable ones, by key. problems: {kind, where, what_to_do} each.
    broken: keys of the files to be made again. files, bytes: what was hashed.
    """

    manifest: dict | None
    plan: dict | None
    records: dict[str, dict]
    problems: list[dict] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    files: int = 0
    bytes: int = 0

    @property
    def shard_tasks(self) -> list[ShardTask]:
        """The shard files that the plan asks for; none where it is lost."""
        return shard_tasks(self.plan["samples"], self.plan["settings"]["views"]["count"]) if self.plan else []

    def add(self, kind: str, where: str, what_to_do: str) -> None:
        self.problems.append({"kind": kind, "where": where, "what_to_do": what_to_do})

    def damage(self, kind: str, key: str) -> None:
        if key not in self.broken:
            self.broken.add(key)
            self.add(kind, key, "Run mtkd-cache verify --repair, which makes it again.")


def check_integrity(folder: Folder) -> IntegrityReport:
    """Read every file of a cache. Raises MtkdError where the folder holds something else, or a newer format."""
    present = set(folder.keys())
    records = {key: read_whole(folder, key, "rows") for key in sorted(present) if key.startswith("records/")}
    manifest, plan = read_whole(folder, MANIFEST, "files"), read_whole(folder, PLAN, "samples")
    found = IntegrityReport(manifest, plan, {key: record for key, record in records.items() if record})
    for unit in found.shard_tasks:
        if (record := found.records.get(unit.record_key)) and not unit.owns(record, found.plan["settings"]):
            found.damage("foreign", unit.record_key)
    if found.manifest:
        check_kind(str(folder), found.manifest)
        expected = found.manifest["files"]
    else:
        if MANIFEST in present or "zarr.json" in present:
            found.damage("changed" if MANIFEST in present else "missing", MANIFEST)
        else:
            done = sum(unit.record_key in found.records for unit in found.shard_tasks)
            text = f"{done} of {len(found.shard_tasks)} shard files are written. Run the same mtkd-cache build again."
            found.add("unfinished", str(folder), text)
        if not found.plan:
            found.damage("changed" if PLAN in present else "missing", PLAN)
        for key in records.keys() - found.records.keys():
            found.damage("changed", key)
        expected = {record["key"]: record for key, record in found.records.items() if key not in found.broken}
    _compare(folder, expected, found)
    known = {
        *expected,
        *METADATA,
        MANIFEST,
        PLAN,
        *(key for unit in found.shard_tasks for key in (unit.record_key, unit.shard_key)),
    }
    for key in sorted(present - known) if found.manifest or found.plan else ():
        found.add("unknown", key, "It is no file of the cache. Move it elsewhere, or delete it.")
    return found


def read_whole(folder: Folder, key: str, member: str) -> dict | None:
    """The value of a sealed file that has a member; None where it is absent, damaged or another one."""
    try:
        return read_checked_json(folder, key, member)
    except (MtkdError, OSError):
        return None


def _compare(folder: Folder, expected: dict[str, dict], found: IntegrityReport) -> None:
    """Hash files, several at a time, and note those that are not as they were written."""
    owner = {entry["sha256"]: key for key, entry in expected.items()}
    found.files, found.bytes = len(expected), sum(entry["bytes"] for entry in expected.values())

    def measure(key: str) -> tuple[int, str] | str:
        try:
            data = folder.read(key)
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "unreadable"
        return len(data), hashlib.sha256(data).hexdigest()

    with (
        ThreadPoolExecutor(READERS) as pool,
        tqdm(total=found.bytes, desc="verify", unit="B", unit_scale=True, disable=None) as progress,
    ):
        for (key, entry), measured in zip(expected.items(), pool.map(measure, expected), strict=True):
            progress.update(entry["bytes"])
            if isinstance(measured, str):
                found.damage(measured, key)
            elif measured != (entry["bytes"], entry["sha256"]):
                shorter = "truncated" if measured[0] < entry["bytes"] else "changed"
                found.damage("swapped" if measured[1] in owner else shorter, key)
