"""Are a logit cache's files as they were written? Every file of a finished cache is in its manifest with size and SHA-256; an
unfinished cache is checked as far as its records go."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypedDict

from mtkd_cache.cache.card import CARD
from mtkd_cache.cache.layout import PLAN, CacheManifest, CachePlan, ShardRecord, ShardTask
from mtkd_cache.cache.spec import CacheSpec
from mtkd_cache.runtime.progress import progress_bar
from mtkd_cache.storage.checked_json import GROUP, MANIFEST, FileEntry, file_entry, if_intact, read_checked_json, read_record
from mtkd_cache.storage.folder import Folder

READERS = 8  # files hashed at a time
METADATA = (GROUP, "sha256/zarr.json", "sha256/c/0/0", "crc32c/zarr.json", "crc32c/c/0/0/0")


def metadata_keys(spec: CacheSpec) -> set[str]:
    """The files of a finished cache beside plan, manifest, records and shard files."""
    return {*METADATA, *(f"{array.name}/zarr.json" for array in spec.arrays)}


class Problem(TypedDict):
    """One finding of `verify`."""

    kind: str
    where: str
    what_to_do: str


@dataclass
class IntegrityReport:
    """What a cache's folder holds.

    manifest, plan: None where absent or damaged. records: the readable ones, by key. broken: keys of the files to be written
    again. files, bytes: what was hashed.
    """

    manifest: CacheManifest | None
    plan: CachePlan | None
    records: dict[str, ShardRecord]
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    files: int = 0
    bytes: int = 0

    @property
    def shard_tasks(self) -> list[ShardTask]:
        """The shard files of the plan; none where it is lost."""
        return self.plan.shard_tasks if self.plan else []

    @property
    def rewrite(self) -> str | None:
        """See `CacheSpec.rewrite`."""
        described = self.manifest or self.plan
        return described.settings.rewrite if described else None

    def add(self, kind: str, where: str, what_to_do: str) -> None:
        self.problems.append({"kind": kind, "where": where, "what_to_do": what_to_do})

    def damage(self, kind: str, key: str) -> None:
        if key not in self.broken:
            self.broken.add(key)
            self.add(kind, key, self.rewrite or "Run mtkd-cache verify --repair, which rebuilds it.")


def check_integrity(folder: Folder) -> IntegrityReport:
    """Read every file of a cache. Raises MtkdError where the folder holds something else, or a newer format."""
    present = set(folder.keys())
    keys = [key for key in sorted(present) if key.startswith("records/")]
    records = {key: record for key in keys if (record := if_intact(read_record, folder, key, ShardRecord))}
    content = if_intact(read_checked_json, folder, MANIFEST, "kind", "files")
    manifest = CacheManifest.from_json(content, f"{folder}/{MANIFEST}") if content else None
    report = IntegrityReport(manifest, if_intact(read_record, folder, PLAN, CachePlan), records)
    for task in report.shard_tasks:
        record = records.get(task.record_key)
        if record and report.plan and not task.owns(record, report.plan.settings):
            report.damage("foreign", task.record_key)
    if manifest:
        expected = manifest.files
    else:
        _report_unfinished(folder, report, present)
        for key in set(keys) - records.keys():
            report.damage("changed", key)
        expected = {record.key: record.entry for key, record in records.items() if key not in report.broken}
    _compare(folder, expected, report)
    known = {key for task in report.shard_tasks for key in (task.record_key, task.shard_key)}
    if described := manifest or report.plan:
        known |= {*expected, *metadata_keys(described.settings), MANIFEST, PLAN, CARD}
    for key in sorted(key for key in present - known if not key.startswith(".")) if described else ():  # a hub's files are hidden
        report.add("unknown", key, "It does not belong to the cache. Move it elsewhere, or delete it.")
    return report


def _report_unfinished(folder: Folder, report: IntegrityReport, present: set[str]) -> None:
    """Report why a cache has no manifest, and a lost plan."""
    if MANIFEST in present or GROUP in present:
        report.damage("changed" if MANIFEST in present else "missing", MANIFEST)
    else:
        done = sum(task.record_key in report.records for task in report.shard_tasks)
        text = f"{done} of {len(report.shard_tasks)} shard files are written, the last perhaps in part. {report.rewrite}"
        if report.rewrite is None:
            text = f"{done} of {len(report.shard_tasks)} shard files are written. Run the same mtkd-cache build again."
        report.add("unfinished", str(folder), text)
    if not report.plan:
        report.damage("changed" if PLAN in present else "missing", PLAN)


def _compare(folder: Folder, expected: Mapping[str, FileEntry], report: IntegrityReport) -> None:
    """Hash files, several at a time, and report those that are not as they were written."""
    known = {entry["sha256"] for entry in expected.values()}
    report.files, report.bytes = len(expected), sum(entry["bytes"] for entry in expected.values())

    def measure(key: str) -> FileEntry | str:
        try:
            return file_entry(folder.read(key))
        except FileNotFoundError:
            return "missing"
        except OSError:
            return "unreadable"

    with ThreadPoolExecutor(READERS) as pool, progress_bar("verify", "byte", report.bytes) as progress:
        for (key, entry), measured in zip(expected.items(), pool.map(measure, expected), strict=True):
            progress.update(entry["bytes"])
            if isinstance(measured, str):
                report.damage(measured, key)
            elif measured != entry:
                shorter = "truncated" if measured["bytes"] < entry["bytes"] else "changed"
                report.damage("swapped" if measured["sha256"] in known else shorter, key)
