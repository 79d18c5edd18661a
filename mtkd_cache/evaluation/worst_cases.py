"""The pictures with the lowest Dice, as one HTML page that needs nothing but itself: worst-SPLIT.html beside the evaluation."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contourpy import contour_generator
from PIL import Image

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.pictures import AT_POINT, Picture
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.runtime.markdown import templates
from mtkd_cache.storage.folder import write_durably

FILE = "worst-{}.html"
PER_ANATOMY = 3


@dataclass(frozen=True)
class Case:
    """What the page shows of a picture. image: a data URI; truth, predicted: outlines as SVG paths."""

    name: str
    anatomy: str
    dice: str
    details: str
    image: str
    truth: str
    predicted: str


def worst(pictures: Iterable[Picture], of: str) -> list[Picture]:
    """The PER_ANATOMY pictures of each anatomy with the lowest figure, lowest first; those that do not count are left out."""
    by_anatomy: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda picture: getattr(picture, of)):
        if not math.isnan(getattr(picture, of)):
            by_anatomy.setdefault(picture.anatomy, []).append(picture)
    chosen = [picture for group in by_anatomy.values() for picture in group[:PER_ANATOMY]]
    return sorted(chosen, key=lambda picture: getattr(picture, of))


def outline(mask: np.ndarray) -> str:
    """The outlines of a mask (H, W) as an SVG path; the pixel in row y and column x covers (x, y) to (x + 1, y + 1)."""
    lines: Any = contour_generator(z=np.pad(mask.astype(float), 1)).lines(0.5)
    return "".join("M" + "L".join(f"{x:g},{y:g}" for x, y in line - 0.5) + "Z" for line in lines)


def write_worst_cases(pictures: Sequence[Picture], predictor: Predictor, store: SampleStore, split: str) -> Path:
    """Write the page of an evaluation into the folder of its networks, and return its path.

    pictures: as `score_pictures` returns them. Predictions are those at the operating points, or all at probability 0.5 where
    an anatomy has none, and are computed anew for the few pictures shown.
    """
    points = predictor.thresholds_on(store)
    everywhere = len(points) == len(predictor.heads)
    at, thresholds = ("dice" + AT_POINT, points) if everywhere else ("dice", dict.fromkeys(predictor.heads, 0.0))
    numbers = {sha256: row for row, sha256 in enumerate(store.hashes)}
    cases = [_case(picture, numbers[picture.sha256], at, predictor, store, thresholds) for picture in worst(pictures, at)]
    width, height = store.size
    page = templates("mtkd_cache", "evaluation", autoescape=True).get_template("worst_cases.html")
    where = "at probability 0.5" if at == "dice" else "at the operating points chosen on validation"
    text = page.render(
        title=f"{predictor.folder.name}: lowest Dice on {split}",
        subtitle=f"{predictor.arch} on {store.name}, {where}. The {PER_ANATOMY} pictures of each anatomy with the lowest Dice "
        "(in percent), lowest first. Pictures whose truth and prediction are both empty are left out.",
        cases=cases,
        width=width,
        height=height,
    )
    path = predictor.folder / FILE.format(split)
    write_durably(path, text.encode())
    return path


def _case(picture: Picture, row: int, at: str, predictor: Predictor, store: SampleStore, thresholds: dict[str, float]) -> Case:
    images, masks = store.read(np.array([row]))
    logits = predictor.logits(torch.from_numpy(images), [picture.anatomy])[0, 0].cpu().numpy()
    predicted, truth = logits > thresholds[picture.anatomy], masks[0] > 0
    shares = f"truth {100 * truth.mean():.1f} % of the pixels, prediction {100 * predicted.mean():.1f} %"
    return Case(
        name=f"patient {picture.patient}, frame {picture.frame}",
        anatomy=picture.anatomy.replace("_", " "),
        dice=f"{100 * getattr(picture, at):.1f}",
        details=shares,
        image=_data_uri(images[0]),
        truth=outline(truth),
        predicted=outline(predicted),
    )


def _data_uri(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="jpeg", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
