"""mtkd-cache study"""

import shlex
from pathlib import Path
from typing import Any

import click

from . import common
from .common import FOLDER, NUMBERS, accelerator_of, recipe_of, reports, say


@click.command("study")
@common.store
@click.option("--out", type=FOLDER, help="The study's folder.  [default: runs/RECIPE]")
@common.recipe
@common.overrides
@click.option(
    "--row",
    "rows",
    multiple=True,
    metavar="PATTERN",
    help="Only these rows (repeatable), as mininetv2, mininetv2/kd or '*/separate'; the arms are separate, no-kd and kd.",
)
@click.option("--seeds", type=NUMBERS, help="Seeds of the students.  [default: the recipe's]")
@click.option("--dry-run", is_flag=True, help="List the jobs, with the command of each that is not done.")
@common.compute
@common.resident
@reports
def command(
    store: str,
    out: Path | None,
    rows: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    dry_run: bool,
    resident: str,
    **options: Any,
) -> dict[str, Any]:
    """Train and evaluate all rows of Table 1 and write the report. Resumes after an interruption.

    Start it on as many GPUs and machines as share the folder: each takes the next teacher, cache or row that nobody works on.
    """
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.study.jobs import command_of, plan
    from mtkd_cache.study.run import Study, run_study

    recipe = recipe_of(options)
    out = out or Path("runs", Path(options["recipe"]).stem)
    study = Study(out, SampleStore.open(store), recipe, resident)
    jobs = plan(recipe, study.store.anatomies, seeds or (), rows)
    if dry_run:
        settings, compute = _shared(**options)
        shown = [(job.name, study.done(job), command_of(job, out, store, settings, compute)) for job in jobs]
        for name, done, words in shown:
            line = f"done   {name}" if done else f"to do  {name}\n         {shlex.join(words)}"
            click.echo(line, err=click.get_current_context().params["as_json"])
        say(f"{sum(done for _, done, _ in shown)} of {len(jobs)} jobs are done, in {out}")
        return {"units": [{"name": name, "done": done, "command": words} for name, done, words in shown]}
    accelerator = accelerator_of(options)
    result = run_study(study, jobs, accelerator, say)
    if not accelerator.is_main_process:
        click.get_current_context().exit()
    for path in (result["report"] or {"files": []})["files"]:
        say(f"written: {path}")
    return result


def _shared(recipe: str, overrides: tuple[str, ...], device: str | None, precision: str) -> tuple[list[str], list[str]]:
    """The study's own options that its jobs' commands have as well: those of the recipe, and those of the computation."""
    settings = ["--recipe", recipe, *(part for override in overrides for part in ("--set", override))]
    return settings, [*(["--device", device] if device else []), *(["--precision", precision] if precision != "no" else [])]
