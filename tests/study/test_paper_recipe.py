"""The recipe `paper` against the paper's own sentences, and the reference's split and augmentation against facts.md."""

import re
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest

from mtkd_cache.data.dresden import REFERENCE_SURGERIES, REFERENCE_TEST, REFERENCE_VALIDATION, Split
from mtkd_cache.losses import distillation_objective
from mtkd_cache.recipe import load_recipe
from mtkd_cache.study.published import published
from mtkd_cache.training.optimizer import learning_rates

SHARED = Path(__file__).parents[3] / "shared"

# Maack et al. 2024, section 3.2 and the caption of table 1
RATES = "using a learning rate of 5e-4 during stage 1 and a learning rate of 1e-3 for stage 2"
EPOCHS = "100 epochs and 60 epochs in stage 1 and 2 and end up with a final learning rate of 1.5e-6 and 2.5e-5, respectively"
KD = "temperature value T = 4.0 for the calculation of the KL divergence and the weighting parameter λ = 3"
BATCH = "a batch size of 8 and an input image size of 640x512 is utilized"

# facts.md: the public training code of Kolbinger et al. 2023, and the decay an epoch computed from the paper's rates
SPLIT = "validation 3, 21, 26; test 2, 7, 11, 13, 14, 18, 20, 32; training the other 21 of 1..32"
AFFINE = "shift up to 0.1, scale up to 0.1, rotation up to 5 degrees (one joint transform, p = 0.5)"
RGB = "RGB shift up to 20 of 255 a channel (p = 0.5)"
LIGHT = "brightness/contrast up to 0.2 (p = 0.5)"
GAMMAS = "0.94356 and 0.94037 an epoch"


def numbers(sentence: str) -> list[float]:
    """All numbers of a sentence, in order."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", sentence)]


@pytest.fixture(scope="module")
def paper():
    return load_recipe("paper")


def plain(text: str) -> str:
    """Text without line breaks and without the marks of formulas."""
    for mark, letter in ((r"\mathcal{T}", "T"), (r"\lambda", "λ"), ("\N{MULTIPLICATION SIGN}", "x"), ("$", "")):
        text = text.replace(mark, letter)
    return " ".join(text.split())


@pytest.mark.skipif(not (SHARED / "reference/paper.txt").exists(), reason="the paper's text is not at hand")
@pytest.mark.parametrize("sentence", [RATES, EPOCHS, KD, BATCH])
def test_the_paper_says_so(sentence):
    assert sentence in plain((SHARED / "reference/paper.txt").read_text(encoding="utf-8"))


@pytest.mark.skipif(not (SHARED / "facts.md").exists(), reason="facts.md is not at hand")
@pytest.mark.parametrize("sentence", [SPLIT, AFFINE, RGB, LIGHT, GAMMAS])
def test_the_facts_say_so(sentence):
    assert sentence in plain((SHARED / "facts.md").read_text(encoding="utf-8"))


def test_rates_fall_from_end_to_end(paper):
    first, _, second, _ = (rate for rate in numbers(RATES))
    assert numbers(RATES) == [5e-4, 1, 1e-3, 2]  # the stages' numbers stand between the rates
    epochs = numbers(EPOCHS)[:2]
    finals = numbers(EPOCHS)[-2:]
    for stage, rate, count, final in zip((paper.teacher, paper.student), (first, second), epochs, finals, strict=True):
        assert (stage.epochs, stage.lr, stage.final_lr) == (count, rate, final)
        assert learning_rates(stage, stage.epochs)[0] == rate


def test_rates_fall_by_one_factor_an_epoch_and_reach_the_final_one_after_the_last(paper):
    for stage, gamma in zip((paper.teacher, paper.student), numbers(GAMMAS), strict=True):
        rates = [*learning_rates(stage, stage.epochs), stage.final_lr]
        factors = [after / before for before, after in pairwise(rates)]
        assert factors == pytest.approx([gamma] * stage.epochs, abs=5e-6)


def test_batch_and_distillation(paper):
    batch, *size = numbers(BATCH)
    assert paper.teacher.batch == paper.student.batch == batch
    assert size == [640, 512]
    assert [paper.distillation.temperature, paper.distillation.weight] == numbers(KD)
    assert paper.distillation.combine == "sum"
    assert distillation_objective(2.0, 5.0, paper.distillation.weight, "sum") == 2 + 3 * 5
    assert distillation_objective(2.0, 5.0, paper.distillation.weight, "product") == 2 * 3 * 5


def test_the_size_is_the_default_of_ingest():
    from mtkd_cache.cli.main import main

    options = {option.name: option.default for option in main.get_command(None, "ingest").params}
    assert options["size"] == "640x512"


def test_teachers_and_students_are_the_tables(paper):
    rows = {key: row.dice for key, row in published().items()}
    assert paper.teacher.arch == max((key for key in rows if key[1] == "separate"), key=rows.get)[0]
    assert (paper.student.arch, "shared", True) in rows
    assert paper.teacher.weights == paper.student.weights == "paper"


def test_augmentation_is_the_references(paper):
    ranges = paper.augmentation
    assert [ranges.shift, ranges.scale, ranges.rotate, ranges.affine_p] == numbers(AFFINE)
    assert [ranges.rgb_shift, 255, ranges.rgb_p] == numbers(RGB)
    assert [ranges.brightness, ranges.brightness_contrast_p] == numbers(LIGHT)
    assert ranges.contrast == ranges.brightness


def test_split_is_the_references():
    validation, test, rest = SPLIT.split(";")
    assert list(REFERENCE_VALIDATION) == numbers(validation)
    assert list(REFERENCE_TEST) == numbers(test)
    count, first, last = (int(number) for number in re.findall(r"\d+", rest))
    surgeries = list(range(first, last + 1))
    assert list(REFERENCE_SURGERIES) == surgeries
    assert sum(Split().of(surgery) == "train" for surgery in surgeries) == count


def test_each_value_carries_its_source():
    """As a comment on its line or, where a section has one source, on the section's; the cache is this project's own."""
    sources = re.compile(r"#.*\b(paper|code|CWD|not stated)\b")
    text = resources.files("mtkd_cache.recipes").joinpath("paper.toml").read_text(encoding="utf-8")
    for block in re.split(r"\n(?=\[)", text):
        header, *lines = block.splitlines() if block.startswith("[") else ["", *block.splitlines()]
        for line in (line for line in lines if "=" in line.partition("#")[0]):
            if header.startswith("[cache]"):
                assert "#" in line
            else:
                assert sources.search(line) or sources.search(header), line
