"""What heads claim in pictures of any subset that are known not to show their anatomy, which Dice on the own subset cannot see.

At the heads' operating points, over all pictures of a split, for each anatomy a:

    alarms[a]      pictures that lack a by their label and in which its head claims a pixel / pictures that lack a
    claimed[a]     pixels that its head claims in those pictures / their pixels
    elsewhere[a]   pixels of other anatomies' masks that its head claims / pixels of other anatomies' masks
    missed[a]      pictures that show a by label or mask and in which its head claims no pixel / pictures that show a

alarms and missed are also told with presence thresholds (`mtkd_cache.training.presence`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from mtkd_cache.data.augment import to_float
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.evaluation.frames import silenced
from mtkd_cache.evaluation.predictor import Predictor
from mtkd_cache.models.records import Training, read_as, write_json
from mtkd_cache.storage.record import JsonRecord

BATCH = 8


@dataclass(frozen=True, kw_only=True)
class FalseAlarms(JsonRecord):
    """False alarms by anatomy, None where no picture tells. absent, present: pictures that lack or show it by label or mask."""

    FILE: ClassVar[str] = "false-alarms-{}.json"  # of a split
    split: str
    store_fingerprint: str
    labels_fingerprint: str | None
    weights_sha256: str | dict[str, str]
    absent: dict[str, int]
    present: dict[str, int]
    alarms: dict[str, float | None]
    claimed: dict[str, float | None]
    elsewhere: dict[str, float | None]
    missed: dict[str, float | None]
    alarms_with_presence: dict[str, float | None]
    missed_with_presence: dict[str, float | None]

    def is_of(self, store: SampleStore, trainings: list[Training]) -> bool:
        """Whether they are of this store with these labels, and of these weights."""
        weights = {getattr(training, "anatomy", ""): training.weights_sha256 for training in trainings}
        told = (self.store_fingerprint, self.labels_fingerprint)
        same = self.weights_sha256 == weights.get("", weights)
        return same and told == (store.fingerprint, store.labels_fingerprint)


def read_false_alarms(folder: Path, split: str) -> FalseAlarms | None:
    """The false alarms of a run or teachers folder on a split."""
    return read_as(FalseAlarms, folder / FalseAlarms.FILE.format(split))


def write_false_alarms(predictor: Predictor, store: SampleStore, split: str) -> FalseAlarms:
    """Measure false alarms of the store's anatomies at the predictor's thresholds, and write them beside the weights."""
    rows = store.rows(split)
    thresholds, presence = predictor.limits(store.anatomies)
    in_picture, in_mask = np.zeros((2, len(rows), len(store.anatomies)))  # claimed pixels
    heard, foreground = np.zeros((len(rows), len(store.anatomies)), bool), np.zeros(len(rows))
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        images, masks = (torch.from_numpy(values) for values in store.read(rows[part]))
        maps, upsampling = predictor.maps(to_float(images).to(predictor.device), store.anatomies)
        logits = upsampling(maps)
        claims = (logits > thresholds).cpu()
        heard[part] = (logits > silenced(thresholds, maps, presence)).any(-1).any(-1).cpu().numpy()
        in_picture[part] = claims.sum((2, 3)).numpy()
        in_mask[part] = (claims & (masks > 0)[:, None]).sum((2, 3)).numpy()
        foreground[part] = (masks > 0).sum((1, 2)).numpy()
    own = store.anatomy[rows][:, None] == np.arange(len(store.anatomies))
    absent = store.present[rows] == 0
    present = (store.present[rows] == 1) | (own & (foreground > 0)[:, None])
    claimed = in_picture > 0

    def by_anatomy(parts: np.ndarray, wholes: np.ndarray) -> dict[str, float | None]:
        pairs = zip(store.anatomies, parts.sum(0), wholes.sum(0), strict=True)
        return {anatomy: float(part / whole) if whole else None for anatomy, part, whole in pairs}

    found = FalseAlarms(
        split=split,
        store_fingerprint=store.fingerprint,
        labels_fingerprint=store.labels_fingerprint,
        weights_sha256=predictor.weights_sha256,
        absent=dict(zip(store.anatomies, absent.sum(0).tolist(), strict=True)),
        present=dict(zip(store.anatomies, present.sum(0).tolist(), strict=True)),
        alarms=by_anatomy(absent & claimed, absent),
        claimed=by_anatomy(absent * in_picture, absent * float(np.prod(store.size))),
        elsewhere=by_anatomy(~own * in_mask, ~own * foreground[:, None]),
        missed=by_anatomy(present & ~claimed, present),
        alarms_with_presence=by_anatomy(absent & heard, absent),
        missed_with_presence=by_anatomy(present & ~heard, present),
    )
    write_json(predictor.folder / FalseAlarms.FILE.format(split), found.to_json())
    return found
