"""The study: which jobs there are, each one command; shared by several processes; resumed after an interruption."""

import json
import shlex
import shutil
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import mtkd_cache.study.run
import mtkd_cache.training.run_folder
from mtkd_cache.cli.main import main
from mtkd_cache.data.dresden import ANATOMIES, Split
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.checkpoints import file_sha256
from mtkd_cache.models.network import PAPER_ARCHITECTURES, create_network
from mtkd_cache.phantom.dataset import write_phantom
from mtkd_cache.recipe import load_recipe
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked
from mtkd_cache.study.jobs import Job, command_of, plan, row_names
from mtkd_cache.study.published import published
from mtkd_cache.study.run import EVALUATED, TRAINED, Study, run_study

PAPER = load_recipe("paper")
SMOKE_SURGERIES = (1, 4, 3, 2)


def folders(jobs: list[Job], kind: str) -> list[str]:
    return [job.folder for job in jobs if job.kind == kind]


# ---- the plan


def test_the_whole_study_is_table_1():
    jobs = plan(PAPER, ANATOMIES)
    rows = [(job.arch, job.arm) for job in jobs if job.kind == "evaluation"]
    arms = {(False, "separate"): "separate", (False, "shared"): "no-kd", (True, "shared"): "kd"}
    assert sorted(rows) == sorted((arch, arms[kd, layout]) for arch, layout, kd in published())
    assert len(rows) == 18
    assert sorted(folders(jobs, "teacher")) == sorted(f"teachers-{a}/{b}" for a in PAPER_ARCHITECTURES for b in ANATOMIES)
    assert len(folders(jobs, "student")) == 11
    assert len({job.name for job in jobs}) == len(jobs) == 77 + 18 + 11 + 1


def test_jobs_come_after_those_they_need():
    jobs = plan(PAPER, ANATOMIES, seeds=(0, 1))
    before: set[str] = set()
    for job in jobs:
        assert before.issuperset(job.needs)
        before.add(job.name)


def test_all_distilled_students_need_the_one_cache_and_it_the_recipes_teachers():
    jobs = plan(PAPER, ANATOMIES, seeds=(0, 1, 2))
    assert folders(jobs, "cache") == ["logits.zarr"]
    cache = next(job for job in jobs if job.kind == "cache")
    assert cache.needs == tuple(f"teacher teachers-segformer-mit_b3/{anatomy}" for anatomy in ANATOMIES)
    distilled = [job for job in jobs if job.kind == "student" and job.arm == "kd"]
    assert len(distilled) == 4 * 3
    assert all(job.needs == (cache.name,) for job in distilled)
    assert all(job.needs == () for job in jobs if job.kind == "student" and job.arm == "no-kd")


def test_seeds_are_the_students():
    jobs = plan(PAPER, ANATOMIES, seeds=(5, 7, 5), rows=["mininetv2"])
    students = ["mininetv2-kd-seed5", "mininetv2-no-kd-seed5", "mininetv2-kd-seed7", "mininetv2-no-kd-seed7"]
    assert folders(jobs, "student") == students
    assert {job.seed for job in jobs if job.kind == "teacher"} == {PAPER.seed}
    assert folders(plan(replace(PAPER, seed=3), ANATOMIES), "student")[0].endswith("-seed3")


def test_a_distilled_row_brings_its_teachers():
    jobs = plan(PAPER, ("liver", "colon"), rows=["mininetv2/kd"])
    assert folders(jobs, "teacher") == ["teachers-segformer-mit_b3/liver", "teachers-segformer-mit_b3/colon"]
    assert folders(jobs, "evaluation") == ["teachers-segformer-mit_b3", "mininetv2-kd-seed0"]
    assert len(jobs) == 2 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("pattern", "rows"), [("*/separate", 7), ("*/no-kd", 7), ("*/kd", 5), ("mininetv2/no-kd", 1), ("deeplabv3-*/separate", 4)]
)
def test_patterns_choose_rows(pattern, rows):
    assert len(folders(plan(PAPER, ANATOMIES, rows=[pattern]), "evaluation")) == rows


def test_a_pattern_that_names_no_row_is_refused():
    with pytest.raises(MtkdError, match=r"unet.*mininetv2/kd"):
        plan(PAPER, ANATOMIES, rows=["mininetv2", "unet"])


def test_teachers_that_are_none_of_the_papers_are_a_row_of_their_own():
    recipe = load_recipe("small")
    assert row_names(recipe)[0] == "segformer-timm-tf_efficientnet_lite0/separate"
    jobs = plan(recipe, ANATOMIES, rows=["mininetv2/kd"])
    assert {job.arch for job in jobs if job.kind == "teacher"} == {"segformer-timm-tf_efficientnet_lite0"}
    assert len(folders(plan(recipe, ANATOMIES), "evaluation")) == 19


def test_every_job_is_a_command_that_the_command_line_takes():
    for job in plan(PAPER, ("liver",), seeds=(0, 3)):
        words = command_of(job, Path("runs/x"), "s.zarr", ["--recipe", "paper", "--set", "teacher.epochs=3"], ["--device", "cpu"])
        assert words[0] == "mtkd-cache"
        values = main.get_command(None, words[1]).make_context(words[1], words[2:]).params
        assert values["store"] == "s.zarr"
        assert values["device"] == "cpu"
        if job.kind == "teacher":
            assert values["anatomies"] == ("liver",)
            assert values["teachers"] / "liver" == Path("runs/x") / job.folder
        if job.kind in ("teacher", "student"):
            assert values["arch"] == job.arch
            assert values["overrides"] == ("teacher.epochs=3",)
        if job.kind == "student":
            assert values["no_kd"] == (job.arm == "no-kd")
            assert values["seed"] == job.seed
            assert values["run"] == Path("runs/x", job.folder)
        if job.kind == "cache":
            assert values["cache"] == "runs/x/logits.zarr"
            assert values["teachers"] == Path("runs/x/teachers-segformer-mit_b3")


# ---- sharing, on jobs that only leave a mark


class Marks(Study):
    """A study whose jobs leave a file; `runs` notes which, `while_running` is called in the midst of each."""

    def __init__(self, out: Path, name: str, log: list, while_running=lambda job: None, broken: str = ""):
        super().__init__(out, None, PAPER)
        vars(self).update(name=name, log=log, while_running=while_running, broken=broken)

    def _mark(self, job: Job) -> Path:
        return self.out / f"{job.name.replace('/', ' ')}.done"

    def done(self, job: Job) -> bool:
        return self._mark(job).exists()

    def run(self, job: Job, accelerator) -> None:
        if self.done(job):
            return
        if job.name == self.broken:
            raise MtkdError("its weights cannot be fetched. Bring them.")
        with locked(self.lock(job)) if job.kind in TRAINED else nullcontext():
            self.while_running(job)
            self._mark(job).touch()
            self.log.append((self.name, job.name))

    def report(self, pause) -> None:
        self.log.append((self.name, "report"))


class Paused(Exception):
    pass


def pause() -> None:
    raise Paused


JOBS = plan(PAPER, ("liver", "colon"), rows=["mininetv2/*kd"])


def test_another_process_takes_what_is_free_and_waits_for_the_rest(tmp_path, accelerator):
    """While one process is in the midst of the first teacher, another one works: all but that and what needs it."""
    log: list = []

    def other_process(job: Job) -> None:
        if job is JOBS[0]:
            with pytest.raises(Paused):
                run_study(Marks(tmp_path, "other", log), JOBS, accelerator, log.append, pause)

    run_study(Marks(tmp_path, "one", log, other_process), JOBS, accelerator, lambda line: None, pause)
    done = [entry for entry in log if isinstance(entry, tuple)]
    others = [name for who, name in done if who == "other"]
    own = [name for who, name in done if who == "one"]
    assert others == [
        "teacher teachers-segformer-mit_b3/colon",
        "student mininetv2-no-kd-seed0",
        "evaluation mininetv2-no-kd-seed0",
    ]
    assert own[0] == JOBS[0].name
    assert own[-1] == "report"
    assert sorted(others + own[:-1]) == sorted(job.name for job in JOBS)


def test_a_job_that_was_held_is_taken_when_its_holder_is_gone(tmp_path, accelerator):
    log: list = []
    with ExitStack() as holder:
        holder.enter_context(locked(Folder(tmp_path / JOBS[1].folder)))
        result = run_study(Marks(tmp_path, "one", log), JOBS, accelerator, lambda line: None, holder.close)
    names = [name for _, name in log]
    assert names.index("student mininetv2-no-kd-seed0") < names.index(JOBS[1].name) < names.index("cache logits.zarr")
    assert result["done"] == result["units"] == len(JOBS)


def test_a_job_that_another_process_begins_first_is_waited_for(tmp_path, accelerator, monkeypatch):
    log: list = []
    overtaking: list = []
    with ExitStack() as holder:
        study, whole = Marks(tmp_path, "one", log), Marks.run

        def overtaken(self, job, accelerator) -> None:
            if job is JOBS[0] and not overtaking:
                overtaking.append(job)
                holder.enter_context(locked(self.lock(job)))
            whole(self, job, accelerator)

        monkeypatch.setattr(Marks, "run", overtaken)
        result = run_study(study, JOBS, accelerator, lambda line: None, holder.close)
    assert overtaking
    assert result["made"] == [name for _, name in log[:-1]]
    assert sorted(result["made"]) == sorted(job.name for job in JOBS)


def test_a_job_that_fails_stops_only_what_needs_it(tmp_path, accelerator):
    log: list = []
    messages: list[str] = []
    study = Marks(tmp_path, "one", log, broken=JOBS[1].name)
    with pytest.raises(MtkdError, match=r"1 of 8 jobs failed and 4 wait .* its weights cannot be fetched"):
        run_study(study, JOBS, accelerator, messages.append, pause)
    assert [name for _, name in log] == [
        JOBS[0].name,
        "student mininetv2-no-kd-seed0",
        "evaluation mininetv2-no-kd-seed0",
        "report",
    ]
    assert any(line.startswith(f"{JOBS[1].name} failed: ") for line in messages)
    result = run_study(Marks(tmp_path, "one", log), JOBS, accelerator, messages.append, pause)
    assert len(result["made"]) == 5


# ---- the real thing, tiny


@pytest.fixture(scope="module")
def finished(organ_store, recipe, accelerator, tmp_path_factory) -> tuple[Study, list[Job], dict]:
    """A study of one architecture, all arms, on two organs; its first teacher was trained by hand."""
    study = Study(tmp_path_factory.mktemp("study") / "runs", organ_store, recipe("teacher.epochs=1", "student.epochs=1"))
    jobs = plan(study.recipe, organ_store.anatomies, rows=["mininetv2"])
    options = ["--recipe", "paper", "--device", "cpu"]
    for override in ("teacher.weights=none", "teacher.epochs=1", "teacher.batch=4"):
        options += ["--set", override]
    words = command_of(jobs[0], study.out, organ_store.url, options)
    done = CliRunner().invoke(main, words[1:])
    assert done.exit_code == 0, done.output
    return study, jobs, run_study(study, jobs, accelerator, lambda line: None, pause)


def test_a_job_made_by_hand_counts(finished):
    _, jobs, result = finished
    assert result["made"] == [job.name for job in jobs[1:]]
    assert result["done"] == len(jobs) == 8


def test_the_study_ends_with_its_report(finished):
    study, _, result = finished
    rows = {(row["arch"], row["layout"], row["kd"]) for row in result["report"]["rows"]}
    assert rows == {("mininetv2", "separate", False), ("mininetv2", "shared", False), ("mininetv2", "shared", True)}
    assert (study.out / "report" / "report.html").exists()
    assert (study.out / "report" / "figure3.png").exists()
    learnt_from = json.loads((study.out / "mininetv2-kd-seed0" / "run.json").read_text())["teachers"]
    for anatomy in study.store.anatomies:
        record = json.loads((study.out / "teachers-mininetv2" / anatomy / "teacher.json").read_text())
        assert learnt_from[anatomy] == {key: record[key] for key in ("arch", "weights_sha256")}


def test_a_finished_study_trains_nothing_again(finished, accelerator, monkeypatch):
    study, jobs, _ = finished
    monkeypatch.setattr(mtkd_cache.training.run_folder, "fit", None)
    monkeypatch.setattr(mtkd_cache.study.run, "build_cache", None)
    monkeypatch.setattr(mtkd_cache.study.run, "write_report", lambda *runs, **options: None)
    assert run_study(study, jobs, accelerator, lambda line: None, pause)["made"] == []


def test_another_recipe_in_the_same_folder_is_refused(finished, accelerator, monkeypatch):
    study, jobs, _ = finished
    monkeypatch.setattr(mtkd_cache.study.run, "write_report", lambda *runs, **options: None)
    other = replace(study, recipe=replace(study.recipe, student=replace(study.recipe.student, lr=0.5)))
    with pytest.raises(MtkdError, match=r"student\.lr 0\.001 \(now 0\.5\)"):
        run_study(other, jobs, accelerator, lambda line: None, pause)


def test_a_teacher_that_is_trained_again_renews_evaluation_and_cache(finished, accelerator, copy_of):
    study, jobs, _ = finished
    copy = replace(study, out=copy_of(study.out))
    teacher, cache = jobs[0], next(job for job in jobs if job.kind == "cache")
    shutil.rmtree(copy.out / teacher.folder)
    assert not copy.done(teacher)
    other = replace(copy, recipe=replace(copy.recipe, seed=9))
    other.run(teacher, accelerator)
    assert file_sha256(copy.out / teacher.folder / "weights.safetensors") != file_sha256(
        study.out / teacher.folder / "weights.safetensors"
    )
    assert not (copy.out / "teachers-mininetv2" / EVALUATED).exists()
    assert copy.done(teacher)
    assert not copy.done(cache)
    assert study.done(cache)


def test_an_evaluation_of_other_weights_is_not_done(finished, copy_of):
    study, jobs, _ = finished
    copy = replace(study, out=copy_of(study.out))
    for job in (job for job in jobs if job.kind == "evaluation"):
        assert copy.done(job)
        path = copy.out / job.folder / EVALUATED
        record = json.loads(path.read_text())
        other = "0" * 64
        record["weights_sha256"] = other if job.arm != "separate" else {**record["weights_sha256"], "tongue": other}
        path.write_text(json.dumps(record))
        assert not copy.done(job)
        del record["weights_sha256"]
        path.write_text(json.dumps(record))
        assert copy.done(job)  # as earlier versions wrote it


def test_the_command_shows_what_is_done_and_how_to_do_the_rest(finished):
    study, jobs, _ = finished
    shutil.rmtree(study.out / jobs[-1].folder, ignore_errors=True)
    options = ["--store", study.store.url, "--out", str(study.out), "--row", "mininetv2", "--set", "teacher.arch=mininetv2"]
    shown = CliRunner().invoke(main, ["study", *options, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert f"done   {jobs[0].name}\n" in shown.output
    assert f"to do  {jobs[-1].name}\n" in shown.output
    commands = [line.strip() for line in shown.output.splitlines() if line.strip().startswith("mtkd-cache")]
    assert len(commands) == 2
    assert shlex.split(commands[-1])[:2] == ["mtkd-cache", "evaluate"]
    printed = CliRunner().invoke(main, ["study", *options, "--dry-run", "--json"]).stdout
    assert [job["name"] for job in json.loads(printed)["units"]] == [job.name for job in jobs]


# ---- the recipe smoke


def test_the_smoke_recipe_suits_its_phantom(tmp_path):
    """All anatomies in all splits, and two images or more in each batch of a teacher, which DeepLabV3 needs."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f"--surgeries {','.join(map(str, SMOKE_SURGERIES))}" in makefile
    write_phantom(tmp_path / "phantom", size=(64, 64), images_per_surgery=1, surgeries=SMOKE_SURGERIES)
    ingest(tmp_path / "phantom", str(tmp_path / "samples.zarr"), size=(64, 64), split=Split())
    store = SampleStore.open(str(tmp_path / "samples.zarr"))
    for anatomy in store.anatomies:
        assert 2 <= len(store.rows("train", anatomy)) <= load_recipe("smoke").teacher.batch
        assert len(store.rows("validation", anatomy)) >= 1
        assert len(store.rows("test", anatomy)) >= 1
    multiples = [create_network(arch, 1).multiple for arch in ("deeplabv3-resnet18", "segformer-mit_b0", "mininetv2")]
    assert all(store.size[axis] % multiple == 0 for axis in (0, 1) for multiple in multiples)


def test_smoke_has_the_papers_rows_and_no_download():
    smoke = load_recipe("smoke")
    assert row_names(smoke) == row_names(PAPER)
    assert smoke.teacher.arch == PAPER.teacher.arch
    assert (smoke.teacher.weights, smoke.student.weights) == ("none", "none")
    assert smoke.distillation == PAPER.distillation
    assert smoke.augmentation == PAPER.augmentation
