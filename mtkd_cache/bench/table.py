"""The README's table from docs/measurements/*.json: python -m mtkd_cache.bench.table [FOLDER]"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mtkd_cache.bench.codecs import chains

FOLDER = Path("docs/measurements")


def lines(folder: Path) -> Iterator[str]:
    """A Markdown table of every measurement of `mtkd-cache bench` in a folder, by file name; other JSON there has no row."""
    yield "| measured | result | where |"
    yield "|---|---|---|"
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        runs = content["runs"] if isinstance(content.get("runs"), list) else [content]
        for found, (measured, result) in ((run, row) for run in runs for row in rows(run)):
            machine = found["machine"]
            yield f"| {measured} | {result} | {machine['device']}, {machine['threads']} threads |"


def rows(found: dict) -> Iterator[tuple[str, str]]:
    """What was measured and what came out, for the output of any `mtkd-cache bench` command; nothing for another file."""
    for key, describe in DESCRIBE.items():
        if key in found or any(key in row for row in found.get("rows", [])[:1]):
            yield from describe(found)


def _setting(found: dict) -> str:
    size = "x".join(map(str, found["size"]))
    return f"{size}, batch {found['batch']}" + ("" if found["precision"] == "no" else f", {found['precision']}")


def _inference(found: dict) -> Iterator[tuple[str, str]]:
    for row in found["rows"]:
        smp = f", smp's own {row['forms_ms']['smp']:.0f} ms" if "smp" in row["forms_ms"] else ""
        yield (
            f"inference, {row['arch']} {row['layout']}, {'x'.join(map(str, row['size']))}",
            f"{row['ms']:.0f} ms {row['form']}, plain {row['plain_ms']:.0f} ms ({row['plain_over_fast']:.2f} x){smp}",
        )


def _stage2(found: dict) -> Iterator[tuple[str, str]]:
    how = f"{'compiled, ' if found['compiled'] else ''}{'streamed' if found['resident'] == 'off' else 'resident'}"
    smp = f", with smp's own teachers {found['online_smp_over_cached']:.1f} x" if "online_smp_s" in found else ""
    yield (
        f"a step of stage 2, {found['arch']} under {found['teacher']}, {_setting(found)}, {how}",
        f"no KD {found['none_s']:.2f} s, cached {found['cached_s']:.2f} s ({found['kd_overhead']:.3f} x), online "
        f"{found['online_s']:.1f} s ({found['online_over_cached']:.1f} x cached{smp}), waiting {found['loader_share']:.1%}, peak "
        f"{found['peak_mb']['cached'] / found['peak_mb']['none'] - 1:+.1%} of no KD's",
    )


def _stage1(found: dict) -> Iterator[tuple[str, str]]:
    yield f"a teacher's step, {found['arch']}, {_setting(found)}", f"{found['step_s']:.2f} s, waiting {found['loader_share']:.2%}"


def _build(found: dict) -> Iterator[tuple[str, str]]:
    stacked = f"; one batched call {1 / found['loop_over_stacked']:.2f} x the time" if "loop_over_stacked" in found else ""
    compiled = f" compiled ({found['plain_over_compiled']:.2f} x)" if "plain_over_compiled" in found else ""
    yield (
        f"a build of {found['samples']} samples, {found['teachers']} teachers {found['teacher']}{compiled}, {_setting(found)}",
        f"{found['build_s']:.1f} s, {found['throughput']:.1%} of the bare forward passes' throughput{stacked}",
    )


def _ingest(found: dict) -> Iterator[tuple[str, str]]:
    sizes = " to ".join("x".join(map(str, found[key])) for key in ("source", "size"))
    yield (
        f"ingest, one process, {sizes}",
        f"{found['images_per_second']:.1f} images a second, {found['ingest_over_bare']:.2f} x the time of decoding and resizing",
    )


def _cache(found: dict) -> Iterator[tuple[str, str]]:
    setting = f"{'x'.join(map(str, found['size']))}, batch {found['batch']}"
    yield (
        f"reading a random batch, {setting}",
        f"{found['read_ms']:.1f} ms, decoding alone {found['decode_limit_ms']:.1f} ms ({found['read_over_decode_limit']:.2f} x); "
        f"resident {found['resident_ms']:.1f} ms, a copy {found['copy_ms']:.1f} ms ({found['resident_over_copy']:.2f} x)",
    )
    for way in found["ways"]:
        yield f"maps of a batch, {way['way']}", f"{way['read_ms']:.1f} ms, {way['bytes_per_sample'] / 1e3:.0f} kB a sample"


def _scale(found: dict) -> Iterator[tuple[str, str]]:
    for row in found["rows"]:
        each, peak = row["a_sample"], row["peak_mb"]
        yield (
            f"{row['samples']:,} samples of {'x'.join(map(str, found['size']))}",
            f"of each: ingest {each['ingest_ms']:.2f} ms, build {each['build_ms']:.2f} ms, epoch {each['epoch_ms']:.2f} ms, "
            f"cache {each['cache_bytes'] / 1e3:.2f} kB; peak memory: build {peak['build']:.0f} MB, epoch {peak['epoch']:.0f} MB",
        )


def _codecs(found: dict) -> Iterator[tuple[str, str]]:
    for row in found["rows"]:
        if (row["chain"], row["step"]) == (next(chains()).name, 0.25):
            yield (
                f"logits of {found['teacher']}, {'x'.join(map(str, found['size']))}, at step 1/4",
                f"{row['bits_per_logit']:.2f} bits a logit, KL {row['mean_kl_nats']:.1e} nats, {row['decode_ms']:.2f} ms a read",
            )


DESCRIBE = {
    "plain_over_fast": _inference,
    "online_over_cached": _stage2,
    "step_s": _stage1,
    "throughput": _build,
    "ingest_over_bare": _ingest,
    "resident_over_copy": _cache,
    "growth": _scale,
    "chain": _codecs,
}


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)))
