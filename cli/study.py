"""mtkd-cache study"""

import shlex
from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("study")
@common.store
@click.option("--out", type=common.FOLDER, help="The study's folder.  [default: runs/RECIPE]")
@common.recipe
@common.overrides
@click.option(
    "--row", "rows", multiple=True, metavar="PATTERN", help="Only these rows (repeatable): mininetv2, mininetv2/kd, '*/separate'."
)
@click.option("--seeds", type=common.NUMBERS, help="Seeds of the students.  [default: the recipe's]")
@click.option("--dry-run", is_flag=True, help="List the jobs, with the command of each that is not done.")
@common.compute
@common.resident
@common.reports
def command(store: str, out: Path | None, dry_run: bool, **options: Any) -> dict[str, Any]:
    """Train and evaluate all rows of Table 1 and write the report. Resumes after an interruption.

    A row is ARCH/ARM with the arms separate (one network per anatomy), no-kd and kd. Start the same command on as many GPUs and
    machines as share the folder: each takes the next job that no other works on.
    """
    from mtkd_cache.study.jobs import command_of, plan
    from mtkd_cache.study.run import Study

    recipe = common.recipe_of(options)
    out = out or Path("runs", Path(options["recipe"]).stem)
    study = Study(out, mc.SampleStore.open(store), recipe, options["resident"])
    jobs = plan(recipe, study.store.anatomies, options["seeds"] or (), options["rows"])
    if dry_run:
        settings, compute = _shared(options)
        shown = [(job.name, study.done(job), command_of(job, out, store, settings, compute)) for job in jobs]
        for name, done, words in shown:
            line = f"done   {name}" if done else f"to do  {name}\n         {shlex.join(words)}"
            click.echo(line, err=click.get_current_context().params["as_json"])
        common.say(f"{sum(done for _, done, _ in shown)} of {len(jobs)} jobs are done, in {out}")
        return {"units": [{"name": name, "done": done, "command": words} for name, done, words in shown]}
    return common.run_study(study, jobs, common.accelerator_of(options))


def _shared(options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The options that the jobs' commands share with the study: those of the recipe, and those of the computation."""
    settings = ["--recipe", options["recipe"], *(part for override in options["overrides"] for part in ("--set", override))]
    chosen = {"--device": options["device"], "--precision": options["precision"].replace("no", "")}
    return settings, [part for name, value in chosen.items() if value for part in (name, value)]
