"""Markdown table of the measurements in docs/measurements/*.json: python -m mtkd_cache.bench.table [FOLDER]"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from mtkd_cache.bench.codecs import chains
from mtkd_cache.bench.machine import Result

FOLDER = Path("docs/measurements")


def lines(folder: Path) -> Iterator[str]:
    """A row for each result of `mtkd-cache bench` in a folder, sorted by file name; other JSON files are passed over."""
    yield "| measured | result | where |"
    yield "|---|---|---|"
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        for result in content["runs"] if isinstance(content.get("runs"), list) else [content]:
            for measured, figures in rows(result):
                machine = result["machine"]
                yield f"| {measured} | {figures} | {machine['device']}, {machine['threads']} threads |"


def rows(result: Result) -> Iterator[tuple[str, str]]:
    """What was measured and the main figures, for the result of any `mtkd-cache bench` command; nothing for other JSON."""
    for key, describe in DESCRIBE.items():
        for part in (result, *result.get("rows", ()), *result.get("ways", ())):
            if key in part:
                yield describe({**result, **part})


def _size(result: Result, key: str = "size") -> str:
    return "x".join(map(str, result[key]))


def _workload(result: Result) -> str:
    precision = result.get("precision", "no")
    return f"{_size(result)}, batch {result['batch']}" + ("" if precision == "no" else f", {precision}")


def _inference(row: Result) -> tuple[str, str]:
    smp = f", smp's own {row['forms_ms']['smp']:.0f} ms" if "smp" in row["forms_ms"] else ""
    return (
        f"inference, {row['arch']} {row['layout']}, {_size(row)}",
        f"{row['ms']:.0f} ms {row['form']}, plain {row['plain_ms']:.0f} ms ({row['plain_over_fast']:.2f} x){smp}",
    )


def _stage2(result: Result) -> tuple[str, str]:
    mode = f"{'compiled, ' if result['compiled'] else ''}{'streamed' if result['resident'] == 'off' else 'resident'}"
    smp = f", with smp's own teachers {result['online_smp_over_cached']:.1f} x" if "online_smp_s" in result else ""
    return (
        f"a step of stage 2, {result['arch']} under {result['teacher']}, {_workload(result)}, {mode}",
        f"no KD {result['none_s']:.2f} s, cached {result['cached_s']:.2f} s ({result['kd_overhead']:.3f} x), online "
        f"{result['online_s']:.1f} s ({result['online_over_cached']:.1f} x cached{smp}), waiting {result['loader_share']:.1%}, "
        f"peak {result['peak_mb']['cached'] / result['peak_mb']['none'] - 1:+.1%} of no KD's",
    )


def _stage1(result: Result) -> tuple[str, str]:
    figures = f"{result['step_s']:.2f} s, waiting {result['loader_share']:.2%}"
    return f"a teacher's step, {result['arch']}, {_workload(result)}", figures


def _build(result: Result) -> tuple[str, str]:
    stacked = f"; one batched call {1 / result['loop_over_stacked']:.2f} x the time" if "loop_over_stacked" in result else ""
    compiled = f" compiled ({result['plain_over_compiled']:.2f} x)" if "plain_over_compiled" in result else ""
    teachers = f"{result['teachers']} teachers {result['teacher']}{compiled}"
    views = f" in {result['views']} views" if result.get("views", 1) > 1 else ""
    return (
        f"a build of {result['samples']} samples{views}, {teachers}, {_workload(result)}",
        f"{result['build_s']:.1f} s, {result['throughput']:.1%} of the bare forward passes' throughput{stacked}",
    )


def _ingest(result: Result) -> tuple[str, str]:
    rate, ratio = f"{result['images_per_second']:.1f} images a second", f"{result['ingest_over_bare']:.2f} x"
    sizes = f"{_size(result, 'source')} to {_size(result)}"
    return f"ingest, one process, {sizes}", f"{rate}, {ratio} the time of decoding and resizing"


def _cache(result: Result) -> tuple[str, str]:
    read, decode, resident, copy = (result[key] for key in ("read_ms", "decode_limit_ms", "resident_ms", "copy_ms"))
    return (
        f"reading a random batch, {_workload(result)}",
        f"{read:.1f} ms, decoding alone {decode:.1f} ms ({result['read_over_decode_limit']:.2f} x); "
        f"resident {resident:.1f} ms, a copy {copy:.1f} ms ({result['resident_over_copy']:.2f} x); "
        f"writing {result['write_over_forward']:.2%} of the teachers' forward passes",
    )


def _way(way: Result) -> tuple[str, str]:
    return f"maps of a batch, {way['way']}", f"{way['read_ms']:.1f} ms, {way['bytes_per_sample'] / 1e3:.0f} kB a sample"


def _scale(row: Result) -> tuple[str, str]:
    each, peak = row["a_sample"], row["peak_mb"]
    times = ", ".join(f"{step} {each[f'{step}_ms']:.2f} ms" for step in peak)
    return (
        f"{row['samples']:,} samples of {_size(row)}",
        f"of each: {times}, store {each['store_bytes'] / 1e3:.2f} kB, cache {each['cache_bytes'] / 1e3:.2f} kB; "
        f"peak memory: build {peak['build']:.0f} MB, epoch {peak['epoch']:.0f} MB",
    )


def _codecs(result: Result) -> tuple[str, str]:
    row = next(row for row in result["rows"] if (row["chain"], row["step"]) == (next(chains()).name, 0.25))
    return (
        f"logits of {result['teacher']}, {_size(result)}, at step 1/4",
        f"{row['bits_per_logit']:.2f} bits a logit, KL {row['mean_kl_nats']:.1e} nats, {row['decode_ms']:.2f} ms a read",
    )


def _frame(row: Result) -> tuple[str, str]:
    forms = [
        f"{name} {form['p50_ms']:.0f} ms (p95 {form['p95_ms']:.0f}, p99 {form['p99_ms']:.0f}, max {form['max_ms']:.0f}; "
        f"not the network {1 - form['shares']['network']:.0%})"
        for name, form in row["forms"].items()
    ]
    ratios = [f"{name} {value:.2f} x fastest" for name, value in row.get("over_fastest", {}).items()]
    ratios += [f"shared takes {value:.2f} x in {name}" for name, value in row.get("shared_over", {}).items()]
    return (
        f"a frame of {_size(row, 'frame')}, {row['arch']} {row['layout']} at {_size(row)}, {row['heads']} anatomies",
        "; ".join([", ".join(forms), *ratios]),
    )


DESCRIBE = {
    "forms": _frame,
    "plain_over_fast": _inference,
    "online_over_cached": _stage2,
    "step_s": _stage1,
    "throughput": _build,
    "ingest_over_bare": _ingest,
    "resident_over_copy": _cache,
    "way": _way,
    "a_sample": _scale,
    "largest_logit": _codecs,
}


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)))
