"""mtkd-cache labels"""

from pathlib import Path
from typing import Any

import click

import mtkd_cache as mc

from . import common


@click.command("labels")
@common.store
@common.teachers
@click.option("--cache", type=common.FOLDER, default="data/logits.zarr", help="Logit cache of these teachers.")
@click.option("--multilabel", "dataset", type=common.FOLDER, metavar="DATASET", help="Judge on this dataset's multilabel subset.")
@click.option("--out", type=common.FOLDER, default="runs/labels", help="The study's folder.")
@common.phase
@common.arms
@click.option("--arch", help=f"Override the recipe's architecture of the student: {common.ARCHITECTURES}.")
@common.layout
@common.study_seeds
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of a student.  [default: the recipe's]")
@common.joined
@common.from_recipe
@common.compute
@common.resident
@common.reports
def command(out: Path, joined: tuple[Path, ...], phase: str, **options: Any) -> dict[str, Any]:
    """Measure what pictures of other subsets and presence labels gain, in both stages. Resumes after an interruption.

    Teachers, their caches and students are trained for each arm and compared on validation (--phase choose); the recipe without
    labels and the best arm are then trained with fresh seeds and compared on test. Start the same command as often as processes
    should share the work. Teachers and cache that are there already are used as those without labels.
    """
    from mtkd_cache.models.records import read_run
    from mtkd_cache.study.gain.arms import SEEDS, SPLITS
    from mtkd_cache.study.labels.arms import Place, all_arms, plan
    from mtkd_cache.study.labels.run import LabelsStudy, arms_to_test, write_labels
    from mtkd_cache.training.negatives import check_labels

    if joined:
        return common.say_report(write_labels(joined, out))
    own = {"student.epochs": options["epochs"], "student.arch": options["arch"]}
    recipe, store = common.recipe_of(options, own), mc.SampleStore.open(options["store"])
    check_labels(store, "mtkd-cache labels")
    teacher_run = read_run(options["teachers"])
    place = Place(str(options["teachers"].resolve()), str(options["cache"].resolve()))
    study = LabelsStudy(
        out,
        store,
        recipe,
        options["resident"],
        recipe_of=lambda values: common.recipe_of(options, {**own, **values}),
        own=place,
        dataset=options["dataset"],
        layout=options["layout"],
        teacher_run=teacher_run,
    )
    arms = options["arms"] or (all_arms(teacher_run is not None) if phase == "choose" else arms_to_test(out))
    students = (recipe.student.arch, options["layout"]), SPLITS[phase], arms, options["seeds"] or SEEDS[phase]
    jobs = plan(place, () if teacher_run else store.anatomies, recipe.teacher.arch, *students)
    return common.run_study(study, jobs, common.accelerator_of(options))
