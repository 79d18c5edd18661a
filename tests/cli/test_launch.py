"""The launches that docs/reproduce.md documents are read by torchrun and by the commands as they are meant."""

import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from mtkd_cache.cli.main import COMMANDS, main

DOCS = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
LAUNCHES = re.findall(r"(?:`|srun )torchrun ([^`]*?)(?:`|\n\n)", DOCS)


def parsed(words: list[str]) -> dict:
    """The options of a command by name; click's error ends the test."""
    name, *options = words
    return main.get_command(None, name).make_context(name, options).params


@pytest.mark.parametrize("launch", LAUNCHES)
def test_torchrun_leaves_the_commands_options_to_the_command(launch):
    words = shlex.split(launch.replace("\\\n", " ").replace(" N ", " 2 "))
    launched = get_args_parser().parse_args(words)
    assert (launched.module, launched.training_script) == (True, "mtkd_cache.cli")
    options = parsed(launched.training_script_args)
    assert options.get("run") == (Path("RUN") if "--run" in launch else None)
    without = [word for word in words if word != "--"]
    if "--run" in without:
        with pytest.raises(SystemExit):
            get_args_parser().parse_args(without)


def test_every_command_stands_in_the_table():
    table = [line for line in DOCS.split("## Several GPUs")[1].splitlines() if line.startswith("| `")]
    assert len(LAUNCHES) == 5
    assert {name.split()[0] for line in table for name in re.findall("`([^`]+)`", line.split("|")[1])} == set(COMMANDS)
    for words in re.findall(r"`mtkd-cache ([^`.]+)`", "\n".join(table)):
        parsed(words.split())
