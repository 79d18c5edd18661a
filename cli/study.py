"""mtkd-cache study"""

import shlex
from pathlib import Path

import click

from . import common
from .common import NUMBERS, recipe_of, reports, say


@click.command("study")
@common.store
@click.option("--out", type=click.Path(path_type=Path), help="The study's folder.  [default: runs/RECIPE]")
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
@click.option("--dry-run", is_flag=True, help="Show every unit of work, and the commands of those that are to do.")
@common.compute
@common.resident
@reports
def command(store, out: Path | None, recipe, overrides, rows, seeds, dry_run, device, precision, resident) -> dict:
    """Train and evaluate all rows of Table 1 and write the report; the same command goes on where it stopped.

    Start it on as many GPUs and machines as share the folder: each takes the next teacher, cache or row that nobody works on.
    """
    from mtkd_cache.data.sample_store import SampleStore
    from mtkd_cache.runtime.accelerator import make_accelerator
    from mtkd_cache.study.jobs import command_of, plan
    from mtkd_cache.study.run import Study, run_study

    settings = recipe_of({"recipe": recipe, "overrides": overrides})
    out = out or Path("runs", Path(recipe).stem)
    study = Study(out, SampleStore.open(store), settings, resident)
    units = plan(settings, study.store.anatomies, seeds or (), rows)
    if dry_run:
        shared = ["--recipe", recipe, *(part for override in overrides for part in ("--set", override))]
        compute = [*(["--device", device] if device else []), *(["--precision", precision] if precision != "no" else [])]
        shown = [(unit, study.done(unit), command_of(unit, out, store, shared, compute)) for unit in units]
        for unit, done, words in shown:
            line = f"{'done ' if done else 'to do'}  {unit.name}" + ("" if done else f"\n         {shlex.join(words)}")
            click.echo(line, err=click.get_current_context().params["as_json"])
        say(f"{sum(done for _, done, _ in shown)} of {len(units)} units are done, in {out}")
        return {"units": [{"name": unit.name, "done": done, "command": words} for unit, done, words in shown]}
    accelerator = make_accelerator(device, precision)
    result = run_study(study, units, accelerator, say)
    if not accelerator.is_main_process:
        click.get_current_context().exit()
    for path in (result["report"] or {"files": []})["files"]:
        say(f"written: {path}")
    return result
