"""A logit cache of logits that another program computed, with the plan, records, quantizer, checks and manifest of a build."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mtkd_cache.cache.build import finalize_cache, hashes_of, write_plan
from mtkd_cache.cache.gathered import GatheredShards
from mtkd_cache.cache.layout import PLAN, CachePlan, TeacherInfo
from mtkd_cache.cache.overlap import find_overlap
from mtkd_cache.cache.quantize import check_step
from mtkd_cache.cache.shards import quantize_maps
from mtkd_cache.cache.spec import CacheSpec, MapArray
from mtkd_cache.data.augment import Views
from mtkd_cache.data.sample_store import SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.models.seen import UNKNOWN
from mtkd_cache.recipe import Recipe, load_recipe
from mtkd_cache.storage.checked_json import digest, mark_incomplete, read_record
from mtkd_cache.storage.folder import Folder
from mtkd_cache.storage.lock import locked

EXTERNAL = "external"  # stands for the architecture, and the precision, of networks that we do not know


class ExternalInfo(TeacherInfo, total=False):
    """What a cache records in place of a teacher. weights_sha256: of source and license.

    maps_sha256: of the checksums of the anatomy's maps, in the order of the samples' hashes; only in the manifest.
    """

    source: str
    maps_sha256: str


class CacheWriter:
    """Writes a logit cache from logits that any program computed; students, `verify` and `inspect` take it like a built one.

    Use it in a with block and give it each map that `missing` names, in any order:

        with mc.CacheWriter("data/logits.zarr", store, source="nnU-Net 2d, fold all", license="CC BY 4.0", stride=4) as writer:
            for row, anatomy, view in writer.missing():
                writer.add(row, anatomy, logits, view)

    When the block is left and all maps are there, the cache is finished. With maps missing, and after an exception, it stays
    unfinished: readers refuse it, and the same writer resumes it. A killed process loses the maps that were in memory, those of 4
    shard files of 32 samples at most. It is fastest to give all anatomies of a sample, or all samples of an anatomy, in a row.

    Opening a cache that is there reads all of it: maps that turn out damaged are missing, and are written again.

    Args:
        url: folder, or fsspec URL, of the cache.
        store: the samples; the logits are of its images, at their size, and of all its anatomies.
        source: who computed the logits, for people: the network, its version, what it was trained on. Recorded, and part of the
            fingerprint; so are the maps' checksums.
        license: of the logits, as "CC BY-NC-SA 4.0". Recorded like the source, also by students that learn from the cache.
        stride: pixels of the image for each logit along each axis, or {anatomy: stride}. A map is (height / stride,
            width / stride); it is upsampled bilinearly, corners aligned (torch: align_corners=True).
        splits: whose samples the cache holds: "train", "validation", "test".
        recipe: its quantization step (each logit is stored within half of it), number of views and their augmentation. None: the
            recipe "paper", step 1/4 and only view 0, the plain sample. See `draw_views`.

    Raises:
        MtkdError: an empty source or license, a stride that does not divide the image, a step that is no power of two. When the
            block is entered: another process writes there, or the cache was begun with other settings, source, license or
            samples. When it is left: see `add`.
    """

    def __init__(
        self,
        url: str,
        store: SampleStore,
        *,
        source: str,
        license: str,
        stride: int | Mapping[str, int] = 1,
        splits: Sequence[str] = ("train",),
        recipe: Recipe | None = None,
    ):
        recipe = recipe or load_recipe("paper")
        check_step(recipe.cache.step)
        for name, text in (("source", source), ("license", license)):
            if not text.strip():
                raise MtkdError(f"{url}: the {name} of the logits is empty. State it: it is recorded, and cannot be looked up.")
        _check_strides(store, stride)
        self.folder, self.store = Folder(url), store
        self.spec = replace(CacheSpec.of(store, stride, recipe, EXTERNAL), source=source, license=license)
        temperature, samples = recipe.distillation.temperature, hashes_of(store, splits)
        self._plan = CachePlan(settings=self.spec, temperature=temperature, samples=samples)
        stated = digest({"source": source, "license": license})
        self._info = ExternalInfo(arch=EXTERNAL, weights_sha256=stated, source=source, license=license)
        self._store_row = {str(sha256): row for row, sha256 in enumerate(store.hashes)}
        self._block = ExitStack()
        self._shards: GatheredShards | None = None

    def __enter__(self) -> Self:
        with ExitStack() as block:
            block.enter_context(locked(self.folder))
            write_plan(self.folder, self._plan)
            plan = read_record(self.folder, PLAN, CachePlan)
            assert plan is not None, "it was just written"
            self._plan, self.spec = plan, plan.settings
            self._row_of = {sha256: row for row, sha256 in enumerate(plan.samples)}
            self._shards = GatheredShards(self.folder, plan, dict.fromkeys(self.spec.anatomies, self._info))
            if not self._shards.present.all():
                mark_incomplete(self.folder)
            self._block = block.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        shards, self._shards = self._opened, None
        with self._block:
            failed = []
            for key in list(shards.shards):
                try:
                    shards.write(key)
                except (MtkdError, OSError) as failure:
                    failed.append(failure)
            if kind is None and failed:
                raise failed[0]
            if kind is None and shards.present.all():
                self._finish(shards.figures["crc32c"])

    @property
    def _opened(self) -> GatheredShards:
        if self._shards is None:
            raise MtkdError(f"{self.folder}: a CacheWriter works in its with block.")
        return self._shards

    def missing(self) -> list[tuple[int, str, int]]:
        """The maps that are not there yet, sample by sample.

        Returns:
            (row of the sample in the store, anatomy, view) of each.
        """
        absent = np.argwhere(~self._opened.present)
        samples, anatomies = self._plan.samples, self.spec.anatomies
        return [(self._store_row[samples[row]], anatomies[anatomy], int(view)) for row, view, anatomy in absent]

    def draw_views(self, samples: Sequence[int | str], view: int) -> Views:
        """The view with a number, which `add` wants the logits of.

        Args:
            samples: rows in the store, or content hashes.
            view: less than the recipe's number of views; 0 is the plain sample.

        Returns:
            The views, on the CPU, for `apply_views`.
        """
        return self.spec.recorded_views([self._hash_of(sample) for sample in samples], view)

    def add(self, sample: int | str, anatomy: str, logits: np.ndarray | Tensor, view: int = 0) -> None:
        """Add a map. One that is there already is accepted again if it is the same, so that a program may simply run again.

        Args:
            sample: its row in the store, or its content hash (`SampleStore.hashes`).
            anatomy: one of the store's.
            logits: floating point (height / stride, width / stride), an array or a tensor on any device: before the sigmoid,
                positive where the anatomy is. Of probabilities p they are log(p) - log(1 - p).
            view: which view of the sample they are of.

        Raises:
            MtkdError: the cache has no such sample, anatomy or view; the logits have another shape or type, are not finite or do
                not fit 16 bits; the map is there with other values; a shard file is full and all its logits lie between 0 and 1,
                as probabilities do. What is refused is not stored.
        """
        shards, row, index = self._opened, self._row_of.get(self._hash_of(sample)), self._index_of(anatomy)
        where = f"{self._name(sample)}, {anatomy}, view {view}"
        if row is None:
            raise MtkdError(f"{self.folder} is not to hold {where}: the sample is of another split, or of another store.")
        if not 0 <= view < self.spec.n_views:
            raise MtkdError(
                f"{where}: the cache has {self.spec.n_views} views, counted from 0; the recipe's cache.views says so."
            )
        values, figures = self._quantize(where, logits, shards.task_of(row, view, index).array)
        if not shards.present[row, view, index]:
            shards.add(row, view, index, values, figures)
        elif shards.figures["crc32c"][row, view, index] != figures["crc32c"]:
            raise MtkdError(
                f"{where}: the cache has other logits of it. Delete {self.folder}, or name another, to write it anew."
            )

    def _hash_of(self, sample: int | str) -> str:
        if not isinstance(sample, Integral):
            return str(sample)
        if not 0 <= sample < len(self.store):
            raise MtkdError(f"{self.store.url} has no row {sample}: its {len(self.store)} samples are counted from 0.")
        return str(self.store.hashes[sample])

    def _name(self, sample: int | str) -> str:
        row = self._store_row.get(self._hash_of(sample))
        return f"the sample {str(sample)[:12]}" if row is None else self.store.describe(row)

    def _index_of(self, anatomy: str) -> int:
        if anatomy not in self.spec.anatomies:
            raise MtkdError(f"{self.folder} has no anatomy {anatomy!r}. Name one of {', '.join(self.spec.anatomies)}.")
        return self.spec.anatomies.index(anatomy)

    def _quantize(self, where: str, logits: np.ndarray | Tensor, array: MapArray) -> tuple[np.ndarray, np.ndarray]:
        """A map as int16 (h, w), and its figures. Raises MtkdError, see `add`."""
        tensor = torch.as_tensor(logits).detach().cpu()
        if not tensor.is_floating_point():
            raise MtkdError(f"{where}: logits are floating point, these are {tensor.dtype}. Give them as the network has them.")
        if tensor.shape != array.grid:
            stride = f"stride {array.stride} of {self.store.size[0]}x{self.store.size[1]}"
            raise MtkdError(
                f"{where}: logits of shape {tuple(tensor.shape)} instead of {array.grid}, (height, width) at {stride}."
            )
        if not torch.isfinite(tensor).all():
            raise MtkdError(f"{where}: the logits are not finite. Clip probabilities of exactly 0 or 1 before taking logarithms.")
        precise = tensor if tensor.dtype == torch.float64 else tensor.float()
        values, figures = quantize_maps(where, precise[None], self.spec, self._plan.temperature)
        return values[0], figures[0]

    def _finish(self, crc32c: np.ndarray) -> None:
        """Write the manifest. crc32c: uint32 (rows, views, anatomies), of all maps."""
        ordered = crc32c[np.argsort(self._plan.samples)].astype("<u4")
        hashes = [hashlib.sha256(ordered[:, :, index].tobytes()).hexdigest() for index in range(ordered.shape[2])]
        teachers: dict[str, TeacherInfo] = {
            anatomy: ExternalInfo(**self._info, maps_sha256=sha256)
            for anatomy, sha256 in zip(self.spec.anatomies, hashes, strict=True)
        }
        finalize_cache(self.folder, self._plan, teachers, UNKNOWN, find_overlap(UNKNOWN, self.store), self.store.name)


def _check_strides(store: SampleStore, stride: int | Mapping[str, int]) -> None:
    """Raises MtkdError unless each anatomy has a stride that divides the images."""
    strides = dict(stride) if isinstance(stride, Mapping) else dict.fromkeys(store.anatomies, stride)
    if strides.keys() != set(store.anatomies):
        raise MtkdError(f"strides of {', '.join(strides)}, but {store.url} has {', '.join(store.anatomies)}. Give one of each.")
    width, height = store.size
    for anatomy, own in strides.items():
        if own < 1 or width % own or height % own:
            raise MtkdError(f"stride {own} of {anatomy} does not divide the images, {width}x{height}. Resample the logits.")
