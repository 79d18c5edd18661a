"""mtkd-cache verify"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common
from .common import FOLDER, file_size, plural, reports, say

NOT_CURRENT = dict.fromkeys(("samples", "teacher", "other store"), "not current")
VERDICTS = {"unfinished": "incomplete", "overlap": "leaking", **NOT_CURRENT}


@click.command("verify")
@common.cache
@click.option("--store", help="Sample store: check that the cache holds its samples.")
@click.option("--teachers", type=FOLDER, help="Folder of teachers: check that the cache is theirs.")
@common.teacher
@common.own_arch
@common.splits
@click.option("--live", metavar="N", type=click.IntRange(0), default=0, help="Re-run the teachers on N random samples.")
@click.option("--repair", is_flag=True, help="Rebuild damaged and outdated shards, and only those.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Random seed of --live.")
@common.device
@common.allow_overlap
@reports
def command(
    cache: str, store: str | None, teachers: Path | None, named: tuple[str, ...], arch: str | None, **options: Any
) -> dict[str, Any]:
    """Check every file of a cache by its checksum, and with --store and --teachers or --teacher whether the cache is current.

    Exits with status 1 if it is not whole and current.
    """
    samples = mc.SampleStore.open(store) if store else None
    if named and samples is None:
        raise mc.MtkdError("--teacher runs on the samples of a store. Name it too, with --store.")
    asked = mc.Teachers.gather(named, samples, teachers, arch) if named and samples else teachers
    result = mc.verify_cache(cache, store=samples, teachers=asked, **options)
    say(f"{cache}: {verdict(result['problems'], compared=bool(store and asked))}")
    for problem in result["problems"]:
        say(f"  {problem['kind']}: {problem['where']}. {problem['what_to_do']}")
    if result["repaired"]:
        say(f"repaired {plural(len(result['repaired']), 'problem')}, recomputed {plural(result['maps_computed'], 'map')}")
    if live := result["live"]:
        say(f"re-ran the teachers on {plural(live['samples'], 'sample')}: largest difference {live['max_difference']:.4g}")
        common.say_view_gap(live["view_gap_kl_nats"])
    if all(problem["kind"] != "overlap" for problem in result["problems"]):
        common.say_overlap(result["overlap"])
    say(f"checked {result['files']} files, {file_size(result['bytes'])}, in {result['seconds']:.1f} s")
    return result


def verdict(problems: list[dict[str, str]], compared: bool) -> str:
    """compared: samples and teachers were compared, too."""
    if not problems:
        return "whole and current" if compared else "whole (name --store and --teachers to check that it is current)"
    kinds = sorted({VERDICTS.get(problem["kind"], "damaged") for problem in problems})
    return f"{' and '.join(kinds)}: {plural(len(problems), 'problem')}"
