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
@common.phase
@common.arms
@click.option(
    "--arch", "archs", multiple=True, help="Student's architecture (repeatable).  [default: mininetv2, segformer-mit_b0]"
)
@common.layout
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.Choice(["short", "long"]),
    help="Epochs: the recipe's, or 4 times (repeatable).  [default: both]",
)
@common.study_seeds
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of a short training.  [default: the recipe's]")
@common.joined
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

    if joined:
        return common.say_report(write_gain(joined, out))
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
        layout=options["layout"],
    )
    jobs = plan(
        str(teachers),
        SPLITS[phase],
        options["arms"] or (list(ARMS) if phase == "choose" else arms_to_test(out)),
        options["lengths"] or list(LENGTHS),
        options["archs"] or ARCHITECTURES,
        options["seeds"] or SEEDS[phase],
        options["layout"],
    )
    return common.run_study(study, jobs, common.accelerator_of(options))
