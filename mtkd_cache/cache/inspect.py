"""What is in a logit cache: settings, sizes, errors and, of an unfinished one, how far it is."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mtkd_cache.cache.layout import PLAN, CacheManifest, CachePlan, ShardRecord
from mtkd_cache.cache.spec import LOGITS
from mtkd_cache.errors import MtkdError
from mtkd_cache.storage.checked_json import MANIFEST, if_intact, read_record
from mtkd_cache.storage.folder import Folder


def inspect_cache(url: str) -> dict[str, Any]:
    """The manifest of a cache with the sizes of its files in place of their list; of an unfinished one, its progress.

    arrays: of the maps, one for each stride. progress: shard files written, of how many; maps: how many maps each teacher has
    there, by the SHA-256 of its weights.
    Raises MtkdError where there is no cache, and where its manifest or plan is damaged.
    """
    folder = Folder(url)
    plan = read_record(folder, PLAN, CachePlan)
    manifest = read_record(folder, MANIFEST, CacheManifest)
    if plan is None:
        raise MtkdError(f"{url} is not a logit cache. Run mtkd-cache build --cache {url}.")
    tasks = plan.shard_tasks
    records = [record for task in tasks if (record := if_intact(read_record, folder, task.record_key, ShardRecord))]
    sizes = {record.key: record.bytes for record in records}
    content = {"settings": plan.settings.to_json(), "temperature": plan.temperature}
    if manifest:
        sizes = {key: entry["bytes"] for key, entry in manifest.files.items()}
        content = manifest.brief()
    total = sum(sizes.values())
    return {
        **content,
        "cache": url,
        "finished": manifest is not None,
        "arrays": [
            {
                "name": array.name,
                "stride": array.stride,
                "grid": list(array.grid),
                "anatomies": list(plan.settings.names_of(array)),
            }
            for array in plan.settings.arrays
        ],
        "samples": len(plan.samples),
        "files": len(sizes),
        "bytes": total,
        "bytes_by": _bytes_by(sizes),
        "bytes_per_sample": total / max(len(plan.samples), 1) if manifest else None,
        "progress": {"done": len(records), "of": len(tasks), "maps": _maps_by_teacher(plan, records)},
    }


def _bytes_by(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of files, by key, added up by what the files are."""
    totals: Counter[str] = Counter()
    for key, size in sizes.items():
        first, *rest = key.split("/")
        shard = first.startswith(LOGITS) and rest[0] == "c"
        totals["logits" if shard else "records" if first == "records" else "metadata"] += size
    return dict(totals)


def _maps_by_teacher(plan: CachePlan, records: Iterable[ShardRecord]) -> dict[str, dict[str, int]]:
    """By anatomy and the SHA-256 of a teacher's weights, how many maps the teacher has in these shards."""
    maps: dict[str, Counter[str]] = {anatomy: Counter() for anatomy in plan.settings.anatomies}
    for record in records:
        for index, anatomy in enumerate(name for name in maps if name in record.teachers):
            written = sum(row["bits"][index] > 0 for row in record.rows)  # 0 bits: a writer has not got the map yet
            maps[anatomy][record.teachers[anatomy]["weights_sha256"]] += written
    return {anatomy: dict(counts) for anatomy, counts in maps.items()}
