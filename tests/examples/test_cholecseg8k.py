"""docs/examples/cholecseg8k.py on files in the layout of CholecSeg8k, and evaluate --multilabel on what it writes."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support import untrained_student

from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.multilabel import evaluate_multilabel

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "cholecseg8k.py"))
LEVELS = {name: level for name, (level, _, _) in EXAMPLE["CLASSES"].items()}
COLORS = {name: color for name, (_, color, _) in EXAMPLE["CLASSES"].items()}


def classes(seed: int, size: tuple[int, int] = (24, 18)) -> np.ndarray:
    """A class for each pixel, (H, W) of names, in a checkerboard of large squares, with the dataset's unlabeled border."""
    random = np.random.default_rng(seed)
    names = random.choice([name for name in LEVELS if name != "Gallbladder" or seed], (size[1] // 6, size[0] // 6))
    return names.repeat(6, 0).repeat(6, 1)


def write_frame(folder: Path, number: int, names: np.ndarray, kinds: tuple[str, ...] = ("watershed", "color")) -> None:
    """A frame with its masks, whose border of one pixel is white, and one pixel of which was left out."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(number).integers(0, 255, (*names.shape, 3))
    Image.fromarray(picture.astype(np.uint8)).save(folder / f"frame_{number}_endo.png")
    for kind in kinds:
        values = np.array(
            [[(LEVELS[name],) * 3 if kind == "watershed" else COLORS[name] for name in row] for row in names], np.uint8
        )
        values[[0, -1]] = values[:, [0, -1]] = 255
        values[1, 1] = 0 if kind == "watershed" else 255
        Image.fromarray(values).save(folder / f"frame_{number}_endo_{kind}_mask.png")
    Image.new("L", names.shape[::-1], 7).save(folder / f"frame_{number}_endo_mask.png")  # the tool's own, which is not read


@pytest.fixture
def dataset(tmp_path) -> Path:
    root = tmp_path / "CholecSeg8k"
    for number in range(80, 84):
        write_frame(root / "video01" / "video01_00080", number, classes(number))
    write_frame(root / "video12" / "video12_15750", 15750, classes(0), ("color",))
    return root


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


def test_every_class_of_ours_has_its_own_pixels(dataset, tmp_path):
    counts = EXAMPLE["lay_out"](dataset, tmp_path / "cholecseg8k")
    assert counts == {"images": 5, "videos": 2, "other_pixels": 0}
    for video, number, seed in (("video01", 81, 81), ("video12", 15750, 0)):
        folder, expected = tmp_path / "cholecseg8k" / "multilabel" / video, classes(seed)
        labeled = np.zeros(expected.shape, bool)
        labeled[1:-1, 1:-1] = True
        labeled[1, 1] = False
        for name, (_, _, ours) in EXAMPLE["CLASSES"].items():
            if ours:
                assert np.array_equal(mask(folder / f"mask{number:05d}_{ours}.png"), (expected == name) & labeled), name
    assert not mask(folder / "mask15750_gallbladder.png").any()  # an image without it has an empty mask
    source = dataset / "video01" / "video01_00080" / "frame_83_endo.png"
    assert (folder.parent / "video01" / "image00083.png").read_bytes() == source.read_bytes()
    assert not list(folder.glob("*gastrointestinal*"))


def test_one_frame_of_so_many(dataset, tmp_path):
    assert EXAMPLE["lay_out"](dataset, tmp_path / "out", every=3)["images"] == 3
    images = sorted(path.name for path in (tmp_path / "out" / "multilabel" / "video01").glob("image*"))
    assert images == ["image00080.png", "image00083.png"]


def test_what_does_not_fit_is_named(dataset, tmp_path):
    with pytest.raises(MtkdError, match="Name the folder that holds video01"):
        EXAMPLE["lay_out"](tmp_path, tmp_path / "out")
    clip = dataset / "video01" / "video01_00080"
    color = np.asarray(Image.open(clip / "frame_80_endo_color_mask.png")).copy()
    color[5:9, 5:9] = (1, 2, 3)
    Image.fromarray(color).save(clip / "frame_80_endo_watershed_mask.png")
    with pytest.raises(MtkdError, match=r"watershed_mask.png: .* of the pixels are of no class"):
        EXAMPLE["lay_out"](dataset, tmp_path / "out")
    Image.new("RGB", (6, 6)).save(clip / "frame_80_endo_watershed_mask.png")
    with pytest.raises(MtkdError, match="is 6x6, its image 24x18"):
        EXAMPLE["lay_out"](dataset, tmp_path / "out")
    for kind in ("watershed", "color"):
        (clip / f"frame_80_endo_{kind}_mask.png").unlink()
    with pytest.raises(MtkdError, match=r"has no frame_80_endo_watershed_mask\.png and no"):
        EXAMPLE["lay_out"](dataset, tmp_path / "out")
    assert not (tmp_path / "out" / "multilabel").exists()


def test_a_student_of_another_dataset_is_evaluated_on_all_of_it(dataset, phantom_store, tmp_path):
    EXAMPLE["lay_out"](dataset, tmp_path / "cholecseg8k")
    run = untrained_student(tmp_path / "run", phantom_store.size, phantom_store.anatomies)
    words = ["evaluate", "--run", str(run), "--store", phantom_store.url, "--device", "cpu", "--json"]
    done = CliRunner().invoke(main, [*words, "--multilabel", str(tmp_path / "cholecseg8k")])
    assert done.exit_code == 0, done.output
    result = json.loads((run / "multilabel-cholecseg8k.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert (result["images"], result["split"], result["dataset"]) == (5, "cholecseg8k", "cholecseg8k/multilabel")
    assert set(result["dice"]) == {"abdominal_wall", "liver"} and "overlap" not in result
    assert not (run / "multilabel-test.json").exists()  # which is of the store's own dataset
    assert set(result["claimed_elsewhere"]) == set(phantom_store.anatomies)
    assert "Images of another dataset, cholecseg8k: 5." in (run / "README.md").read_text()
    assert torch.tensor(list(result["claimed_elsewhere"].values())).isfinite().all()


def test_a_folder_that_is_named_as_a_split_is_refused(dataset, phantom_store, tmp_path):
    EXAMPLE["lay_out"](dataset, tmp_path / "test", every=4)
    with pytest.raises(MtkdError, match="named test, as a split of the store's"):
        evaluate_multilabel(None, tmp_path / "test", phantom_store, "validation", None)
