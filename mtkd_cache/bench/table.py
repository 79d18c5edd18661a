"""The README's table from docs/measurements/*.json: python -m mtkd_cache.bench.table [FOLDER]"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("docs/measurements")


def lines(folder: Path) -> Iterator[str]:
    """A Markdown table of every measurement in a folder, by file name."""
    yield "| measured | result | where |"
    yield "|---|---|---|"
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        machine = found["machine"]
        where = f"{machine['device']}, {machine['threads']} threads, load {machine['load']:g}"
        yield from (f"| {measured} | {result} | {where} |" for measured, result in rows(found))


def rows(found: dict) -> Iterator[tuple[str, str]]:
    """What was measured and what came out, for the output of any `mtkd-cache bench` command."""
    if "rows" in found:
        for row in found["rows"]:
            size = "x".join(map(str, row["size"]))
            yield (
                f"inference, {row['arch']} {row['layout']}, {size}",
                f"{row['ms']:.0f} ms, plain {row['plain_ms']:.0f} ms ({row['plain_over_fast']:.2f} x)",
            )
        return
    setting = f"{'x'.join(map(str, found['size']))}, batch {found['batch']}"
    if "cached_s" in found:
        yield (
            f"a step of stage 2, {found['arch']} under {found['teacher']}, {setting}",
            f"no KD {found['none_s']:.2f} s, cached {found['cached_s']:.2f} s ({found['kd_overhead']:.3f} x), online "
            f"{found['online_s']:.1f} s ({found['online_over_cached']:.1f} x cached), waiting {found['loader_share']:.1%}",
        )
        return
    yield (
        f"reading a random batch, {setting}",
        f"{found['read_ms']:.1f} ms, decoding alone {found['decode_limit_ms']:.1f} ms; resident {found['resident_ms']:.1f} ms, "
        f"a copy {found['copy_ms']:.1f} ms",
    )
    for way in found["ways"]:
        yield f"maps of a batch, {way['way']}", f"{way['read_ms']:.1f} ms, {way['bytes_per_sample'] / 1e3:.0f} kB a sample"


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)))
