"""mtkd-cache recipe: what is printed is a recipe again, and the differences are all that tell two apart."""

import json
from dataclasses import asdict

import pytest
from click.testing import CliRunner, Result

from mtkd_cache.cli.main import main
from mtkd_cache.recipe import load_recipe, shipped


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["recipe", *arguments])
    assert result.exit_code == 0, result.stderr
    return result


def test_list_says_in_one_line_each_what_ships():
    lines = call("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == shipped()
    assert all(line.endswith(".") and len(line) < 130 for line in lines)


@pytest.mark.parametrize("name", shipped())
def test_what_is_shown_is_the_recipe_in_full(name, tmp_path):
    arguments = (name, "--set", "student.optimizer=adamw", "--set", "seed=3", "--set", 'teacher.weights="a \\" b"')
    path = tmp_path / "shown.toml"
    path.write_text(call("show", *arguments).stdout)
    expected = load_recipe(name, arguments[2::2])
    assert load_recipe(str(path)) == expected
    assert json.loads(call("show", *arguments, "--json").stdout.splitlines()[-1]) == asdict(expected)


def test_diff_names_the_settings_that_differ(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "paper"\nseed = 2\n[student]\nepochs = 90\nschedule = "cosine"\n')
    said = call("diff", str(tmp_path / "mine.toml"), "--json").stdout.splitlines()
    assert json.loads(said[-1]) == {"seed": [2, 0], "student.epochs": [90, 60], "student.schedule": ["cosine", "exponential"]}
    assert [line.split() for line in said[1:-1]] == [
        ["seed", "2", "0"],
        ["student.epochs", "90", "60"],
        ["student.schedule", '"cosine"', '"exponential"'],
    ]
    assert call("diff", "demo", "demo").stdout == "the same settings\n"
