"""mtkd-cache inspect"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common

ERRORS = ("max_abs_error", "mean_kl_nats", "bits_per_logit")


@click.command("inspect")
@common.cache
@click.option("--sheet", type=common.FOLDER, help="Write a PNG of samples with every teacher's probability map.")
@click.option("--store", default="data/samples.zarr", help="Sample store with the images for --sheet.")
@click.option("--teachers", type=common.FOLDER, help="Sort the sheet by these teachers' validation Dice, not by the maps'.")
@click.option("--samples", type=click.IntRange(1), default=6, help="Number of samples in the sheet.")
@common.reports
def command(cache: str, sheet: Path | None, store: str, teachers: Path | None, samples: int) -> dict[str, Any]:
    """Show a cache's contents, sizes, quantization errors and progress; --sheet draws its maps, lowest Dice first."""
    from mtkd_cache.cache.inspect import inspect_cache
    from mtkd_cache.evaluation.contact_sheet import contact_sheet

    if sheet and sheet.suffix.lower() != ".png":
        raise click.UsageError(f"--sheet writes a PNG; give {sheet} a name that ends in .png.")
    result = inspect_cache(cache)
    common.say(describe(result))
    if sheet:
        order = contact_sheet(mc.LogitCache.open(cache), mc.SampleStore.open(store), sheet, samples, teachers)
        result |= {"sheet": str(sheet), "worst_first": order}
        common.say(f"{sheet}: teachers by Dice, lowest first: {', '.join(order)}")
    return result


def describe(result: dict[str, Any]) -> str:
    """What `inspect_cache` returns, for people."""
    from mtkd_cache.cache.view_gap import told

    settings, progress, errors = result["settings"], result["progress"], result.get("errors") or {}
    program = "program that wrote it" if settings.get("source") else "same mtkd-cache build"
    state = "complete" if result["finished"] else f"incomplete (the {program} resumes)"
    step, views, spreads = settings["step"], common.plural(settings["views"]["count"], "view"), result.get("spread") or {}
    maps_of = [f"{len(a['anatomies'])} maps of {a['grid'][1]}x{a['grid'][0]}, stride {a['stride']}" for a in result["arrays"]]
    parts = ", ".join(f"{name} {common.file_size(count)}" for name, count in result["bytes_by"].items())
    facts = {
        "cache": f"{result['cache']}, {state}, {progress['done']} of {progress['of']} shards",
        "samples": f"{result['samples']} of {'x'.join(map(str, settings['size']))} pixels, {views} each",
        "logits": f"{'; '.join(maps_of)}, step {step:g}",
        "size": f"{common.file_size(result['bytes'])} in {result['files']} files: {parts}",
    }
    if settings.get("source"):
        facts["source"] = f"{settings['source']} (license: {settings['license']})"
    if errors:
        largest = max(error["max_abs_error"] for error in errors.values())
        facts["per sample"] = common.file_size(result["bytes_per_sample"])
        facts["error"] = f"largest error {largest:.4g} of {step / 2:g} allowed"
        if gap := result.get("view_gap_kl_nats"):
            facts["live gap"] = f"mean KL to live teachers of the augmented pictures: {told(gap)}"
        facts["fingerprint"] = result["fingerprint"]
    if spreads:
        by_anatomy = ", ".join(f"{anatomy} {spread:.2f}" for anatomy, spread in spreads.items())
        facts["spread"] = f"{by_anatomy} (mean standard deviation of the teachers' logits)"
    rows = [("anatomy", "maps", "largest error", "mean KL (nats)", "bits per logit", "weights (SHA-256)")]
    for anatomy, maps in progress["maps"].items():
        figures = [f"{errors[anatomy][key]:.3g}" if errors else "-" for key in ERRORS]
        rows += [(anatomy, str(count), *figures, sha256[:12]) for sha256, count in maps.items()]
    return "\n".join(f"{key:13}{value}" for key, value in facts.items()) + "\n\n" + common.table(rows)
