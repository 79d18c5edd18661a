"""docs/sharing.md: a cache goes to an S3 server and back by the documented lines, is verified and learnt from."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import build, same_cache, served_bucket

from mtkd_cache.cli.main import main
from mtkd_cache.data.ingest import ingest
from mtkd_cache.data.sample_store import SampleStore

PAGE = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text()
SIZE = (32, 32)


def lines_of(heading: str) -> str:
    """The Python of a section."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def run(*words: object, status: int = 0) -> dict:
    result = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert result.exit_code == status, result.stderr or result.exception
    return json.loads(result.stdout.splitlines()[-1])


def test_a_cache_is_copied_verified_and_learnt_from(
    write_organs, organ_split, organ_teachers, recipe, accelerator, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ingest(write_organs(tmp_path / "organs", images=1, size=SIZE), "data/samples.zarr", size=SIZE, split=organ_split)
    build(SampleStore.open("data/samples.zarr"), organ_teachers, "data/logits.zarr", recipe(), accelerator)
    with served_bucket() as url:
        exec(lines_of("By fsspec").replace("BUCKET", url.removeprefix("s3://")), {})
        assert run("verify", "--cache", f"{url}/logits.zarr")["ok"]
    assert same_cache(Path("data/logits.zarr"), Path("data/copy.zarr"))
    assert Path("data/copy.zarr/README.md").read_bytes() == Path("data/logits.zarr/README.md").read_bytes()
    Path("data/copy.zarr/.cache/huggingface").mkdir(parents=True)  # as hf download leaves it
    Path("data/copy.zarr/.cache/huggingface/.gitignore").write_text("*")
    source = ("--cache", "data/copy.zarr", "--store", "data/samples.zarr")
    assert run("verify", *source)["ok"]
    settings = ("student.epochs=1", "student.batch=2", "student.weights=none")
    trained = run("train-student", *source, "--run", "run", "--device", "cpu", *(w for s in settings for w in ("--set", s)))
    assert np.isfinite(trained["val_dice"])
    names: dict = {}
    exec(lines_of("Look at it").replace("liver", "tongue"), names)
    assert names["first"].dtype == np.float32 and names["first"].shape == (16, 16)
    next(path for path in Path("data/copy.zarr/logits/c").rglob("*") if path.is_file()).unlink()
    assert not run("verify", *source, status=1)["ok"]


@pytest.mark.parametrize("command", ["upload", "download"])
def test_the_hubs_command_has_the_documented_options(command):
    """Without a hub at hand: that the command is there, and takes the options."""
    if not (program := shutil.which("hf")):
        pytest.skip("no hf command")
    documented = re.findall(rf"hf {command} .*?(?=  #|\n)", PAGE)[0]
    known = subprocess.run([program, command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in known for option in re.findall(r"--[a-z-]+", documented))
