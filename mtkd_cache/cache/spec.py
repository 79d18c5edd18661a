"""The settings of a logit cache: everything but samples and teachers that decides what it holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mtkd_cache.data.augment import Views, draw_views, identity_views
from mtkd_cache.data.sample_store import PREPROCESSING, SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Recipe, augmentation_from
from mtkd_cache.storage.checked_json import digest
from mtkd_cache.storage.record import JsonRecord

CODEC_NAME = "int16, blosc zstd-5 bitshuffle, crc32c"
PCODEC_NAME = "int16, pcodec 8 of differences along x, crc32c"
CODEC_NAMES = {"blosc": CODEC_NAME, "pcodec": PCODEC_NAME}  # by `Cache.codec` of a recipe
UPSAMPLING = "bilinear, corner-aligned"
SOBOL = "scrambled Sobol"
LOGITS = "logits"  # the array of a cache of one stride; of several, logits_STRIDE each


@dataclass(frozen=True, kw_only=True)
class RecordedViews(JsonRecord):
    """How many views of each sample are recorded; augmentation and sequence determine those after the plain one.

    sequence: `SOBOL`, see `draw_views` without a seed. Caches of earlier versions have a seed, of independent draws.
    """

    count: int
    sequence: str | None = None
    seed: int | None = None
    augmentation: dict[str, float] | None = None


@dataclass(frozen=True)
class MapArray:
    """One array of maps: those of the anatomies whose teachers have one stride.

    Attributes:
        name: of the Zarr array.
        suffix: what ends the names of its records; empty in a cache of one stride.
        stride, grid: pixels of the image for each native logit; native logits of a map, (height, width).
        anatomies: which of the cache's anatomies, by index, in order.
    """

    name: str
    suffix: str
    stride: int
    grid: tuple[int, int]
    anatomies: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CacheSpec(JsonRecord):
    """Everything but samples and teachers that decides what a cache holds.

    Attributes:
        anatomies: of the maps, in order.
        size: (width, height) of the images.
        stride: pixels of the image for each native logit; {anatomy: stride} where the teachers differ in it (format 2).
        grid: native logits of a map, (height, width), where they do not differ.
        step: of the quantizer, in logits; the largest error is half of it.
        precision: in which the teachers run: "no", "bf16" or "fp16"; "external" where other programs computed the logits.
        source, license: of such logits, as the caller of `CacheWriter` states them; None where a build ran the teachers.
    """

    anatomies: tuple[str, ...]
    size: tuple[int, int]
    preprocessing: dict[str, str]
    stride: int | dict[str, int]
    grid: tuple[int, int] | None = None
    upsampling: str
    step: float
    codec: str
    views: RecordedViews
    precision: str
    source: str | None = None
    license: str | None = None

    @classmethod
    def of(cls, store: SampleStore, stride: int | Mapping[str, int], recipe: Recipe, precision: str = "no") -> "CacheSpec":
        """The spec of a new cache.

        Args:
            store: its samples.
            stride: of the teachers' native logits, or {anatomy: stride}, `Teachers.stride`.
            recipe: step and number of views; with several views also the augmentation.
            precision: in which the teachers run, `Accelerator.mixed_precision`.
        """
        if isinstance(stride, Mapping):
            stride = dict(stride) if len(set(stride.values())) > 1 else next(iter(stride.values()))
        drawn = {"sequence": SOBOL, "augmentation": recipe.as_dict()["augmentation"]}
        return cls(
            anatomies=store.anatomies,
            size=store.size,
            preprocessing=PREPROCESSING,
            stride=stride,
            grid=_grid(store.size, stride) if isinstance(stride, int) else None,
            upsampling=UPSAMPLING,
            step=recipe.cache.step,
            codec=CODEC_NAMES[recipe.cache.codec],
            views=RecordedViews(count=recipe.cache.views, **(drawn if recipe.cache.views > 1 else {})),
            precision=precision,
        )

    @property
    def format(self) -> int:
        """The first format version that holds such a cache."""
        return 2 if isinstance(self.stride, Mapping) or self.pcodec or self.views.sequence else 1

    @property
    def pcodec(self) -> bool:
        """Whether the maps are compressed by pcodec and not by Blosc. Raises MtkdError for a codec that this version has not."""
        if self.codec not in CODEC_NAMES.values():
            raise MtkdError(f"the cache's codec is {self.codec!r}, of a newer version. Install that one.")
        return self.codec == PCODEC_NAME

    def stride_of(self, anatomy: str) -> int:
        """Of the maps of one anatomy."""
        return self.stride if isinstance(self.stride, int) else self.stride[anatomy]

    def array_of(self, anatomy: str) -> MapArray:
        """The array with an anatomy's maps."""
        index = self.anatomies.index(anatomy)
        return next(array for array in self.arrays if index in array.anatomies)

    def names_of(self, array: MapArray) -> tuple[str, ...]:
        """The anatomies of one of the arrays, in order."""
        return tuple(self.anatomies[index] for index in array.anatomies)

    @cached_property
    def arrays(self) -> tuple[MapArray, ...]:
        """The arrays of maps, one for each stride, finest first."""
        strides = [self.stride_of(anatomy) for anatomy in self.anatomies]
        suffix = "" if isinstance(self.stride, int) else "_{}"
        return tuple(
            MapArray(
                LOGITS + suffix.format(stride),
                suffix.format(stride),
                stride,
                self.grid or _grid(self.size, stride),
                tuple(index for index, own in enumerate(strides) if own == stride),
            )
            for stride in sorted(set(strides))
        )

    @property
    def rewrite(self) -> str | None:
        """What to do where maps of another program are missing, as a sentence; None where a build ran the teachers."""
        return self.source and f"Run the program that writes it again ({self.source})."

    def grown(self, wanted: "CacheSpec") -> "CacheSpec | None":
        """These settings with as many views as are wanted, drawn as before; None where theirs are not the first of those."""
        drawn = self.n_views > 1
        if self.n_views > wanted.n_views or (drawn and self.views.augmentation != wanted.views.augmentation):
            return None
        same = drawn or wanted.n_views == 1
        return replace(self, views=replace(self.views, count=wanted.n_views) if same else wanted.views)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Of the settings of caches of 1, 2, ... views that grow into this one: that with index v is the first with view v."""
        fewer = [replace(self.views, count=count) for count in range(2, self.n_views)]
        views = [RecordedViews(count=1), *fewer] if self.n_views > 1 else []
        return tuple(digest(replace(self, views=each).to_json()) for each in [*views, self.views])

    @property
    def n_views(self) -> int:
        """How many views of each sample are recorded, the plain sample included."""
        return self.views.count

    def recorded_views(self, hashes: Sequence[str], view: int) -> Views:
        """The recorded view with a number, of the samples with these content hashes."""
        if view == 0:
            return identity_views(len(hashes))
        if self.views.augmentation is None:
            raise MtkdError(f"view {view}: the cache records only the plain samples. Build one with --views.")
        if (self.views.sequence, self.views.seed is None) not in ((SOBOL, True), (None, False)):
            raise MtkdError(f"the cache's views are drawn as {self.views.sequence!r}, by a newer version. Install that one.")
        return draw_views(augmentation_from(self.views.augmentation), self.views.seed, hashes, view, self.size)


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(height, width) of native logits of images of size = (width, height)."""
    return size[1] // stride, size[0] // stride
