"""docs/examples/endoscapes.py on files in the layout of Endoscapes2023, and evaluate --multilabel on what it writes."""

import json
import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask
from support import untrained_student

from mtkd_cache.cli.main import main
from mtkd_cache.errors import MtkdError

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "endoscapes.py"))
NAMES = ("cystic_plate", "calot_triangle", "cystic_artery", "cystic_duct", "gallbladder", "tool")
HEIGHT, WIDTH = 30, 40


def box(top: int, left: int, height: int = 8, width: int = 10) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def runs(mask: np.ndarray) -> dict:
    """Compressed run lengths, as the dataset has them."""
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": coded["size"], "counts": coded["counts"].decode()}


def plain_runs(mask: np.ndarray) -> dict:
    """Run lengths as a list of numbers, counted down the columns, beginning with the background."""
    values = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.r_[False, values, False].astype(int))).tolist()
    edges = [0, *edges, values.size]
    return {"size": [HEIGHT, WIDTH], "counts": [int(end - start) for start, end in pairwise(edges)]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """test_seg with three images: gallbladder in two pieces, a tool that crosses it, a polygon; one with nothing."""
    folder = tmp_path / "endoscapes" / "test_seg"
    folder.mkdir(parents=True)
    images = [{"id": 5 + n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(FILES)]
    for image in images:
        Image.fromarray(np.random.default_rng(image["id"]).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(
            folder / image["file_name"]
        )
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "166_40000.jpg")  # a frame that nobody annotated
    annotations = [
        {"image_id": 5, "category_id": 5, "segmentation": runs(box(2, 2))},
        {"image_id": 5, "category_id": 5, "segmentation": plain_runs(box(18, 20))},
        {"image_id": 5, "category_id": 6, "segmentation": runs(box(4, 4))},
        {"image_id": 6, "category_id": 1, "segmentation": [[3.0, 3.0, 13.0, 3.0, 13.0, 9.0, 3.0, 9.0]]},
    ]
    content = {
        "images": images,
        "annotations": [{"id": number, "iscrowd": 0, **each} for number, each in enumerate(annotations)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)],
    }
    (folder / "annotation_coco.json").write_text(json.dumps(content))
    return folder


FILES = ("166_33875.jpg", "166_35000.jpg", "200_1.jpg")


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


def test_run_lengths_and_polygons_become_masks(folder, tmp_path):
    assert EXAMPLE["lay_out"](folder, tmp_path / "out") == {"images": 3, "videos": 2, "annotations": 4}
    scene = tmp_path / "out" / "multilabel" / "endoscapes-166"
    assert np.array_equal(mask(scene / "mask33875_gallbladder.png"), box(2, 2) | box(18, 20))
    assert np.array_equal(mask(scene / "mask33875_tool.png"), box(4, 4))
    assert np.array_equal(mask(scene / "mask35000_cystic_plate.png"), box(3, 3, 6, 10))
    pixels = np.asarray(Image.open(folder / "166_33875.jpg"))
    assert np.array_equal(np.asarray(Image.open(scene / "image33875.png")), pixels)  # as the JPEG decodes
    empty = scene.parent / "endoscapes-200"
    assert sorted(path.name for path in empty.iterdir()) == ["image1.png", *sorted(f"mask1_{name}.png" for name in NAMES)]
    assert not any(mask(path).any() for path in empty.glob("mask*"))


def test_what_does_not_fit_is_named(folder, tmp_path):
    path = folder / "annotation_coco.json"
    content = json.loads(path.read_text())

    def refused(text: str, **changed) -> None:
        path.write_text(json.dumps({**content, **changed}))
        with pytest.raises(MtkdError, match=text):
            EXAMPLE["lay_out"](folder, tmp_path / "out")
        assert not (tmp_path / "out" / "multilabel").exists()

    refused("no images, annotations and categories", categories=[])
    refused("boxes without segmentations", annotations=[{"image_id": 5, "category_id": 5, "bbox": [1, 1, 5, 5]}])
    refused("is not named VIDEO_FRAME.jpg", images=[{"id": 5, "file_name": "frame.jpg"}])
    small = {"size": [4, 4], "counts": [0, 16]}
    refused("mask of image 5 is 4x4, its image 40x30", annotations=[{"image_id": 5, "category_id": 5, "segmentation": small}])
    (folder / FILES[2]).unlink()
    refused("200_1.jpg cannot be read")
    path.unlink()
    with pytest.raises(MtkdError, match=r"Name a folder with segmentations"):
        EXAMPLE["lay_out"](folder, tmp_path / "out")


def test_heads_that_none_of_its_masks_is_of_are_measured_by_what_they_claim_of_others(folder, phantom_store, tmp_path):
    EXAMPLE["lay_out"](folder, tmp_path / "endoscapes-test")
    run = untrained_student(tmp_path / "run", phantom_store.size, phantom_store.anatomies)
    words = ["evaluate", "--run", str(run), "--store", phantom_store.url, "--device", "cpu", "--json"]
    done = CliRunner().invoke(main, [*words, "--multilabel", str(tmp_path / "endoscapes-test")])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["dice"], result["images"]) == ({}, 3)
    assert set(result["claimed_elsewhere"]) == set(phantom_store.anatomies)
    assert 0 < np.mean(list(result["claimed_elsewhere"].values())) < 1
    assert "annotated as another structure" in done.stderr and "| Anatomy | Dice at 0.5" not in (run / "README.md").read_text()
