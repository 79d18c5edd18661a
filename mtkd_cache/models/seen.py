"""Which samples a network has seen, so that it is not evaluated on them unnoticed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from mtkd_cache.storage.record import JsonRecord

DIGITS = 12  # of a content hash: by 48 bits no two of the Dresden set's 13,195 samples agree by chance (p < 1e-6)


@dataclass(frozen=True, kw_only=True)
class Seen(JsonRecord):
    """The samples that a network, its teachers and the network it started from have seen.

    train: what they were trained on; validation: what their best epochs were chosen by. Both are the first 12 hexadecimal digits
    of the samples' content hashes, sorted, in one string. complete: whether that is all; False where one of them has no record.
    """

    train: str = ""
    validation: str = ""
    complete: bool = False

    @classmethod
    def of(cls, train: Iterable[str], validation: Iterable[str]) -> Self:
        """What a new network has seen, by the content hashes of the samples."""
        return cls(train=_join(train), validation=_join(validation), complete=True)

    def __or__(self, other: "Seen") -> "Seen":
        """What two networks have seen together."""
        known = Seen.of(self.samples("train") | other.samples("train"), self.samples("validation") | other.samples("validation"))
        return known if self.complete and other.complete else Seen(train=known.train, validation=known.validation)

    def samples(self, split: str) -> set[str]:
        """The shortened content hashes of "train" or "validation"."""
        text = self.train if split == "train" else self.validation
        return {text[start : start + DIGITS] for start in range(0, len(text), DIGITS)}


NOTHING, UNKNOWN = Seen(complete=True), Seen()


def _join(hashes: Iterable[str]) -> str:
    return "".join(sorted({sha256[:DIGITS] for sha256 in hashes}))


@dataclass(frozen=True, kw_only=True)
class Overlap(JsonRecord):
    """Samples held out for validation or test that networks have seen.

    seen, of: by split, how many were seen, of how many; patients: whose; complete: whether all that the networks have seen is
    recorded, so that there are no more.
    """

    seen: dict[str, int]
    of: dict[str, int]
    patients: tuple[str, ...] = ()
    complete: bool = False

    @property
    def found(self) -> bool:
        """Whether any were seen."""
        return any(self.seen.values())

    def __str__(self) -> str:
        """As "12 of 14 test samples (patients 2, 7)", "none" or "unknown"."""
        if not self.found:
            return "none" if self.complete else "unknown"
        counts = " and ".join(f"{count} of {self.of[split]} {split} samples" for split, count in self.seen.items() if count)
        shown = ", ".join(self.patients[:10]) + (f" and {len(self.patients) - 10} more" if len(self.patients) > 10 else "")
        return f"{counts} (patient{'s' * (len(self.patients) != 1)} {shown})"
