"""The program in docs/own_logits.md does what the page says."""

import re
from pathlib import Path

import numpy as np

import mtkd_cache as mc

PAGE = Path(__file__).parents[2] / "docs" / "own_logits.md"


def test_the_program_of_the_page(store, tmp_path, monkeypatch):
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "samples.zarr").symlink_to(store.url)
    monkeypatch.chdir(tmp_path)

    def my_logits(image: np.ndarray, anatomy: str) -> np.ndarray:
        return image[::4, ::4].mean(2) / 32 - 2 * len(anatomy)

    exec(program, {"my_logits": my_logits})
    cache, row = mc.LogitCache.open("data/own.zarr"), store.rows("train")[4]
    tongue = my_logits(store.read(np.array([row]))[0][0], "tongue")
    assert np.abs(cache.read(store.hashes[[row]])[0, 1] * cache.step - tongue).max() <= cache.step / 2
