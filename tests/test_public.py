"""What the package exports: it is lazy, complete, documented, and enough to train a network of one's own."""

import dataclasses
import inspect
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import build
from torch.utils.data import DataLoader

import mtkd_cache as mc

ROOT = Path(__file__).parent.parent


def test_everything_public_is_there_and_nothing_else():
    for name in mc.__all__:
        assert getattr(mc, name).__doc__, name
    assert set(mc.__all__) <= set(dir(mc))
    assert {name for name in vars(mc) if not name.startswith("_")} - set(mc.__all__) <= {
        path.stem for path in (ROOT / "mtkd_cache").iterdir()
    } | {"cli"}
    with pytest.raises(AttributeError, match="Streams"):
        mc.Streams  # noqa: B018


def test_importing_it_imports_no_torch():
    code = "import sys, mtkd_cache; mtkd_cache.load_recipe('paper'); print('torch' in sys.modules, mtkd_cache.__version__)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split()[0] == "False"


@pytest.mark.parametrize("name", mc.__all__)
def test_parameters_and_results_are_documented(name):
    public = getattr(mc, name)
    text = inspect.getdoc(public)
    if inspect.isclass(public):
        parameters = inspect.signature(public.__init__).parameters if inspect.isfunction(vars(public).get("__init__")) else ()
        if issubclass(public, Exception) or dataclasses.is_dataclass(public) or getattr(public, "_is_protocol", False):
            parameters = ()
    else:
        parameters = inspect.signature(public).parameters
        assert "Returns:\n" in text
    for parameter in set(parameters) - {"self"}:
        assert re.search(rf"^    (\w+, )*{parameter}(, \w+)*: ", text, re.MULTILINE), f"{name}: {parameter}"


@pytest.fixture(scope="module")
def dataset(organ_store, organ_cache) -> mc.CachedDistillationDataset:
    return mc.CachedDistillationDataset(organ_store, organ_cache, augmentation=mc.load_recipe("paper").augmentation, seed=3)


def test_an_item_is_what_the_stores_hold(dataset, organ_store, organ_cache):
    rows = organ_store.rows("train")
    images, masks = organ_store.read(rows)
    maps = organ_cache.read(organ_store.hashes[rows]) * np.float32(organ_cache.step)
    assert len(dataset) == len(rows) == 12
    for index in (0, 7, -1):
        item = dataset[index]
        assert np.array_equal(item["image"], images[index]) and np.array_equal(item["mask"], masks[index])
        assert np.array_equal(item["logits"], maps[index]) and item["logits"].dtype == torch.float32
        assert item["anatomy"] == organ_store.anatomy[rows[index]] and item["anatomy"].dtype == torch.int64
    with pytest.raises(IndexError):
        dataset[12]


def test_views_are_drawn_from_seed_epoch_and_sample(dataset, organ_store, organ_cache):
    hashes = organ_store.hashes[organ_store.rows("train")]
    augmentation = mc.load_recipe("paper").augmentation
    for epoch in (0, 4):
        dataset.set_epoch(epoch)
        expected = mc.draw_views(augmentation, 3, hashes, epoch + 1, organ_store.size)
        for index in (2, 9):
            for drawn, wanted in zip(dataset[index]["view"], expected, strict=True):
                assert torch.equal(drawn, wanted[index])
            assert torch.equal(dataset[index]["logits_affine"], expected.affine[index])
    plain = mc.CachedDistillationDataset(organ_store, organ_cache)[0]
    assert torch.equal(plain["view"].affine, torch.eye(2, 3)) and torch.equal(plain["logits_affine"], torch.eye(2, 3))


def test_recorded_views_follow_the_epoch(organ_store, organ_teachers, recipe, accelerator, tmp_path):
    build(
        organ_store, organ_teachers, str(tmp_path / "c.zarr"), recipe("cache.views=3", "augmentation.affine_p=1.0"), accelerator
    )
    cache = mc.LogitCache.open(str(tmp_path / "c.zarr"))
    dataset = mc.CachedDistillationDataset(organ_store, cache)
    hashes = organ_store.hashes[organ_store.rows("train")]
    for epoch, view in ((0, 0), (2, 2), (4, 1)):
        dataset.set_epoch(epoch)
        item = dataset[5]
        assert np.array_equal(item["logits"], cache.read(hashes[[5]], view)[0] * np.float32(cache.step))
        assert torch.equal(item["view"].affine, cache.draw_views(hashes, view).affine[5])
        assert torch.equal(item["logits_affine"], torch.eye(2, 3))  # they are of the view already
    with pytest.raises(mc.MtkdError, match="records 3 views of each sample"):
        mc.CachedDistillationDataset(organ_store, cache, augmentation=mc.load_recipe("paper").augmentation)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_process_itself_reads(dataset, start):
    dataset.set_epoch(0)
    dataset[0]  # the reader's threads are running when the workers are forked
    loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context=start, persistent_workers=True, timeout=120)
    for epoch in (1, 2):  # workers that outlive an epoch show the next one's views
        dataset.set_epoch(epoch)
        batches = list(loader)
        assert [len(batch["image"]) for batch in batches] == [4, 4, 4]
        for own, read in zip(DataLoader(dataset, 4), batches, strict=True):
            assert isinstance(read["view"], mc.Views)
            for one, other in zip((*own["view"], own["logits"]), (*read["view"], read["logits"]), strict=True):
                assert torch.equal(one, other)
            assert own.keys() == read.keys() and torch.equal(own["image"], read["image"])


def test_a_pickled_dataset_reads_the_same(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1]["image"], dataset[1]["image"]) and torch.equal(copy[1]["logits"], dataset[1]["logits"])


def test_samples_that_the_cache_does_not_hold_are_refused(phantom_store, organ_store, organ_cache):
    with pytest.raises(mc.MtkdError, match="was built for the anatomies"):
        mc.CachedDistillationDataset(phantom_store, organ_cache)
    with pytest.raises(mc.MtkdError, match="6 of 6 samples"):
        mc.CachedDistillationDataset(organ_store, organ_cache, split="validation")


def test_the_example_trains_a_network_of_ones_own(organ_store, organ_cache):
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "own_loop.py"))
    history = example["train"](organ_store.url, organ_cache.url, epochs=3, workers=0)
    assert len(history) == 3 and history[-1] < history[0]


def test_the_documentation_is_that_of_the_code():
    page = ROOT / "docs" / "api.md"
    command = [sys.executable, str(ROOT / "docs" / "make_api.py")]
    assert page.read_text() == subprocess.check_output(command, text=True), "run make api"


def blocks(page: Path) -> list[list[str]]:
    """The paragraphs, lists and tables of a page of Markdown, without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in re.split(r"\n\s*\n", text)]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_tables_of_the_documentation_are_whole(page):
    for table in (block for block in blocks(page) if any(set(line) <= set("|-: ") and "|" in line for line in block)):
        columns = {len(re.findall(r"(?<!\\)\|", re.sub("`[^`]*`", "", line))) if line.startswith("|") else 0 for line in table}
        assert len(columns) == 1 and 0 not in columns, table


@pytest.mark.parametrize("selection", [("val",), ("train", "liver")])
def test_a_split_or_anatomy_that_is_not_there_is_named(organ_store, selection):
    with pytest.raises(mc.MtkdError, match=f"has no '{selection[-1]}'"):
        organ_store.rows(*selection)
