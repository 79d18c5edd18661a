"""mtkd-cache gain"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("gain")
@common.store
@common.teachers
@common.cache
@click.option("--out", type=common.FOLDER, default="runs/gain", help="The study's folder.")
@click.option("--phase", type=click.Choice(["choose", "test"]), default="choose", help="Compare on validation, confirm on test.")
@click.option(
    "--arm", "arms", multiple=True, metavar="NAME", help="Only this arm (repeatable).  [default: all, or those to test]"
)
@click.option("--arch", "archs", multiple=True, help="Student's architecture (repeatable).  [default: both]")
@click.option(
    "--length", "lengths", multiple=True, type=click.Choice(["short", "long"]), help="Epochs: the recipe's, or 4 times."
)
@click.option("--seeds", type=common.NUMBERS, help="Seeds of the students.  [default: 0,1,2, to test 10,11,12,13,14]")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of a short training.  [default: the recipe's]")
@click.option(
    "--join", "joined", multiple=True, type=common.FOLDER, metavar="FOLDER", help="Only show these studies (repeatable)."
)
@common.recipe
@common.overrides
@common.compute
@common.resident
@common.reports
def command(out: Path, joined: tuple[Path, ...], phase: str, **options: Any) -> dict[str, Any]:
    """Measure what distillation gains, at probability 0.5 and at operating points. Resumes after an interruption.

    Students of several objectives are compared on validation with some seeds (--phase choose); masks alone, the paper's KL and
    the best are then trained with fresh seeds and compared on test. Start the same command as often as processes should share
    the work.
    """
    from mtkd_cache.study.gain.arms import ARCHITECTURES, ARMS, LENGTHS, SEEDS, SPLITS, plan
    from mtkd_cache.study.gain.run import GainStudy, arms_to_test, write_gain
    from mtkd_cache.study.run import run_study

    if joined:
        return _shown(write_gain(joined, out))
    own = {"student.epochs": options["epochs"]}
    recipe, store, teachers = common.recipe_of(options, own), mc.SampleStore.open(options["store"]), options["teachers"].resolve()
    study = GainStudy(
        out,
        store,
        recipe,
        options["resident"],
        recipe_of=lambda values: common.recipe_of(options, values),
        teachers=teachers,
        cache=options["cache"],
    )
    jobs = plan(
        str(teachers),
        SPLITS[phase],
        options["arms"] or (list(ARMS) if phase == "choose" else arms_to_test(out)),
        options["lengths"] or list(LENGTHS),
        options["archs"] or ARCHITECTURES,
        options["seeds"] or SEEDS[phase],
    )
    accelerator = common.accelerator_of(options)
    result = run_study(study, jobs, accelerator, common.say)
    if not accelerator.is_main_process:
        click.get_current_context().exit()
    _shown(result["report"])
    return result


def _shown(report: dict[str, Any]) -> dict[str, Any]:
    common.say(report["markdown"])
    for path in report["files"]:
        common.say(f"written: {path}")
    return report
