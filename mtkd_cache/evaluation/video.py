"""What flickers: Dice of the frames of a clip, and how constant the prediction is where the truth is.

A clip folder holds consecutive frames with the masks of the same anatomies for each, as the multilabel subset has them:

    CLIP/imageNNNN.png beside maskNNNN_{anatomy}.png

Video consistency over n frames (Miao et al. 2021, VSPW): in every n consecutive frames, of the pixels whose true label stays the
same, the share whose predicted label stays the same, be it right or wrong; then the mean over all such windows. The label of a
pixel is the set of anatomies that claim it at their operating points. Among the VSPW set's clips the mean of it is called mVC.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtkd_cache.data.dresden import read_image, read_mask
from mtkd_cache.errors import MtkdError
from mtkd_cache.evaluation.multilabel import scenes_in
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import VideoEvaluation, write_json
from mtkd_cache.training.metrics import image_dice, summarize

WINDOWS = (8, 16)


def evaluate_video(predictor: Predictor, clip: Path, smooth: float = 0) -> VideoEvaluation:
    """Dice and video consistency on a clip folder at the frames' own size, written to video-CLIP.json beside the weights.

    Args:
        predictor: knows the annotated anatomies, and perhaps others, which are not run.
        clip: the folder.
        smooth: how many frames the mean over time lags, see `Predictor.sequence`; it becomes part of the file's name.

    Returns:
        an `Evaluation` of the annotated anatomies, whose images are the frames, and mvc: {"8", "16": value, None where the clip
        has fewer frames or no constant pixel}.

    Raises:
        MtkdError: no clip folder, a frame with other anatomies than the first or a mask of another size, or an unknown anatomy.
    """
    if not clip.is_dir():
        raise MtkdError(f"{clip} is no folder. Name one with imageNNNN.png and maskNNNN_ANATOMY.png of consecutive frames.")
    scenes = scenes_in(clip)
    if not scenes:
        raise MtkdError(f"{clip} holds no imageNNNN.png. Name a clip folder, as mtkd-cache phantom --clip writes it.")
    anatomies = tuple(next(iter(scenes.values())))
    if unknown := [anatomy for anatomy in anatomies if anatomy not in predictor.heads]:
        known = ", ".join(predictor.anatomies)
        raise MtkdError(
            f"{clip} is annotated for {', '.join(unknown)}, which {predictor.folder} does not know. It knows {known}."
        )
    consistency = VideoConsistency(WINDOWS)
    dice: dict[str, list[Tensor]] = {"at_half": [], "at_point": []}
    predictions = predictor.sequence((read_image(path)[0] for path in scenes), smooth, anatomies)
    for (path, masks), prediction in zip(scenes.items(), predictions, strict=True):
        truth = _read_truth(path, masks, anatomies, prediction.masks.shape[1:])
        consistency.update(truth, prediction.masks)
        for name, predicted in (("at_half", prediction.probabilities > 0.5), ("at_point", prediction.masks)):
            dice[name].append(image_dice(torch.from_numpy(predicted), torch.from_numpy(truth)))
    at_half, at_point = (summarize(zip(anatomies, torch.stack(values, 1).tolist(), strict=True)) for values in dice.values())
    split = clip.resolve().name
    figures = {
        **predictor.description(),
        **at_half,
        "split": split,
        "images": len(scenes),
        "thresholds": {anatomy: predictor.thresholds[anatomy] for anatomy in anatomies},
        "dice_at_operating_point": at_point["dice"],
        "mean_dice_at_operating_point": at_point["mean_dice"],
        "mvc": {str(window): value for window, value in consistency.means().items()},
        "smooth": smooth,
    }
    path = predictor.folder / VideoEvaluation.FILE.format(split + (f"-smooth-{smooth:g}" if smooth else ""))
    evaluation = VideoEvaluation.from_json(figures, path)
    write_json(path, evaluation.to_json())
    return evaluation


class VideoConsistency:
    """Video consistency over several lengths of windows; frames are given one after the other."""

    def __init__(self, windows: Sequence[int]):
        self._values: dict[int, list[float]] = {window: [] for window in windows}
        self._last: list[np.ndarray] = []  # of truth and prediction, bool (A, H, W)
        self._ages: list[np.ndarray] = []  # for how many frames each pixel's label has been the same, int (H, W)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Add a frame: bool (A, H, W) twice."""
        frames = [truth, predicted]
        if self._last:
            same = [(last == now).all(0) for last, now in zip(self._last, frames, strict=True)]
            self._ages = [np.where(kept, age + 1, 1) for kept, age in zip(same, self._ages, strict=True)]
        else:
            self._ages = [np.ones(frame.shape[1:], int) for frame in frames]
        self._last = frames
        for window, values in self._values.items():
            constant = self._ages[0] >= window
            if constant.any():
                values.append(float((self._ages[1][constant] >= window).mean()))

    def means(self) -> dict[int, float | None]:
        """{length of the windows: mean over them}; None where there was none with a constant pixel."""
        return {window: float(np.mean(values)) if values else None for window, values in self._values.items()}


def _read_truth(path: Path, masks: dict[str, Path], anatomies: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """The masks of a frame, bool (A, H, W)."""
    if tuple(masks) != tuple(anatomies):
        raise MtkdError(f"{path} has masks of {', '.join(masks)}, the first frame of {', '.join(anatomies)}. Complete them.")
    truth = [read_mask(mask)[0] > 0 for mask in masks.values()]
    for mask, values in zip(masks.values(), truth, strict=True):
        if values.shape != shape:
            raise MtkdError(f"{mask} is {values.shape[1]}x{values.shape[0]}, its image {shape[1]}x{shape[0]}. Restore that mask.")
    return np.stack(truth)
