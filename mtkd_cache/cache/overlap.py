"""Leakage: do networks know samples that a store holds out for validation or test?

Samples are compared by content hash: their name, picture and mask at the size they were trained at. At another size, or with
changed pixels, they are other samples.
"""

from collections.abc import Iterable, Sequence

from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.data.samples import patient_order
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.records import Training
from mtkd_cache.models.seen import DIGITS, NOTHING, UNKNOWN, Overlap, Seen

HELD_OUT = ("validation", "test")
BEFORE = {"validation": ("train",), "test": ("train", "validation")}  # as what samples of a split may not have been seen


def seen_by(records: Iterable[Training | None], size: tuple[int, int]) -> Seen:
    """What networks have seen, of images of this size, by their records; None: a network without a record."""
    seen = NOTHING
    for record in records:
        seen |= (record and record.size == size and record.seen) or UNKNOWN
    return seen


def find_overlap(seen: Seen, store: SampleStore, splits: Sequence[str] = HELD_OUT) -> Overlap:
    """The samples of these splits of a store that networks have seen in training; of the test split, also in validation."""
    known = {split: set().union(*map(seen.samples, BEFORE[split])) for split in splits}
    rows = {split: [row for row in store.rows(split) if store.hashes[row][:DIGITS] in known[split]] for split in splits}
    patients = {str(store.patients[row]) for part in rows.values() for row in part}
    return Overlap(
        seen={split: len(part) for split, part in rows.items()},
        of={split: len(store.rows(split)) for split in splits},
        patients=tuple(sorted(patients, key=patient_order)),
        complete=seen.complete,
    )


def check_overlap(seen: Seen, store: SampleStore, who: str, splits: Sequence[str] = HELD_OUT, allow: bool = False) -> Overlap:
    """See `find_overlap`. Raises MtkdError where there is an overlap that is not allowed; `who` has seen the samples."""
    overlap = find_overlap(seen, store, splits)
    if overlap.found and not allow:
        raise MtkdError(
            f"{who} saw {overlap} of {store.url} in training: a Dice on them says nothing about new patients. "
            "Train on this store's training split, or go on with --allow-overlap, which is recorded."
        )
    return overlap
