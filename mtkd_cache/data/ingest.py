"""Dataset folder, CSV or listed samples -> sample store. Images are decoded and resized here once, and never during training."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mtkd_cache.data.dresden import Split, find_samples, with_split
from mtkd_cache.data.sample_csv import read_csv
from mtkd_cache.data.sample_store import PREPROCESSING, StoreSettings
from mtkd_cache.data.samples import SPLITS, Sample, complete, patient_order
from mtkd_cache.data.store_writer import write_store
from mtkd_cache.data.weak_labels import with_labels
from mtkd_cache.storage.folder import Folder

UNEVEN = 0.02  # aspect ratios that differ by more are reported


def ingest(
    dataset: Path,
    store: str,
    *,
    size: tuple[int, int] = (640, 512),
    split: Split | None = None,
    threshold: int | None = None,
    workers: int = 1,
    resplit: bool = False,
    without_labels: bool = False,
) -> dict[str, Any]:
    """Write the sample store of a dataset folder with ANATOMY/SURGERY/imageNN.png and maskNN.png.

    split: surgeries of validation and test; by default those of the reference split. without_labels: do not read the files
    weak_labels.csv. Everything else as `ingest_samples`, whose result it returns, with the number of files and folders of each
    kind that were skipped, and what of the labels was matched.
    """
    samples, skipped = find_samples(dataset)
    labels: Counter[str] = Counter()
    if not without_labels:
        samples, labels = with_labels(samples)
    name = dataset.resolve().name
    result = ingest_samples(
        with_split(samples, split or Split()), store, name=name, size=size, threshold=threshold, workers=workers, resplit=resplit
    )
    return {**result, "skipped": skipped, "labels": labels}


def ingest_csv(file: Path, store: str, **options: Any) -> dict[str, Any]:
    """Write the sample store of the samples in a CSV, see `read_csv`. options, result and errors: see `ingest_samples`."""
    samples, skipped = read_csv(file)
    return {**ingest_samples(samples, store, name=file.resolve().parent.name, **options), "skipped": skipped}


def ingest_samples(
    samples: Iterable[Sample],
    store: str,
    *,
    name: str,
    size: tuple[int, int] = (640, 512),
    threshold: int | None = None,
    workers: int = 1,
    resplit: bool = False,
) -> dict[str, Any]:
    """Write a sample store. What an earlier call wrote of unchanged files, and is whole, is kept.

    Args:
        samples: in any order. The anatomies of the store are theirs, in alphabetical order.
        store: folder, or fsspec URL, of the sample store.
        name: of the dataset.
        size: (width, height) of the stored images and masks.
        threshold: mask values above it are foreground. None: a mask must have at most two levels, 0 and one other.
        workers: processes that read and resize.
        resplit: samples that the store holds already may move to another split.

    Returns:
        What `mtkd-cache ingest --json` prints: samples, by_split, by_anatomy, patients {split: [patient]}, assigned (whether the
        patients' splits were not given), uneven_sizes {"WxH" of image files: their samples, the first one's name and how much
        more they are stretched in one direction than the commonest size, where that is more than 2 %}, removed (samples that
        the store had, and that are no longer given), skipped, labels, bytes, fingerprint, store.

    Raises:
        MtkdError: a sample breaks a rule of `Sample`, is unreadable or has a mask of another size than its image; a split lacks
            an anatomy; another process writes the store, it was started with other settings, holds other samples, or has
            samples in another split.
    """
    given = list(samples)
    listed = complete(given)
    settings = StoreSettings(size=size, threshold=threshold, preprocessing=PREPROCESSING)
    manifest, rows, removed = write_store(Folder(store), name, listed, settings, workers, resplit)
    samples_of = Counter(sample.split for sample in listed)
    return {
        "samples": len(listed),
        "by_split": {split: samples_of[split] for split in SPLITS if samples_of[split]},
        "by_anatomy": dict(Counter(sample.anatomy for sample in listed)),
        "patients": {
            split: sorted({sample.patient for sample in listed if sample.split == split}, key=patient_order) for split in SPLITS
        },
        "assigned": given[0].split is None,
        "uneven_sizes": _uneven_sizes(rows),
        "removed": removed,
        "skipped": {},
        "labels": {},
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
        "fingerprint": manifest.fingerprint,
        "store": store,
    }


def _uneven_sizes(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sizes of image files whose aspect ratio is not that of the commonest size, see `ingest_samples`."""
    of_size: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for sample in samples:
        of_size.setdefault(tuple(sample["size"]), []).append(sample)
    width, height = max(of_size, key=lambda size: len(of_size[size]))
    stretch = {size: height * size[0] / (width * size[1]) for size in of_size}
    return {
        f"{size[0]}x{size[1]}": {
            "samples": len(of_size[size]),
            "first": "{anatomy}, patient {surgery}, frame {frame}".format(**of_size[size][0]),
            "stretched": round(max(ratio, 1 / ratio) - 1, 3),
        }
        for size, ratio in stretch.items()
        if max(ratio, 1 / ratio) > 1 + UNEVEN
    }
