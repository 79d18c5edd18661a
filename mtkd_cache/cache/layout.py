"""Teachers + sample store -> logit cache.

The unit of work is one shard file: the maps of BLOCK samples in one view. A unit's record, written after its shard, says of which
samples and which teachers it is; what a build has to do is the difference between that and what is wanted. So an interrupted
build, a teacher that was trained again, a dataset that grew and a repair are one mechanism, and nothing that is there already is
computed again.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zarr.codecs import BloscCodec

from mtkd_cache.cache.quantize import FILL
from mtkd_cache.cache.teacher_runner import Teachers
from mtkd_cache.data.augment import Views, draw_views, identity_views
from mtkd_cache.data.sample_store import PREPROCESSING, SampleStore
from mtkd_cache.errors import MtkdError
from mtkd_cache.recipe import Recipe, augmentation_from, seed_for
from mtkd_cache.storage.checked_json import digest
from mtkd_cache.storage.shard_writer import ArraySpec

PLAN = "plan.json"


def cache_settings(store: SampleStore, teachers: Teachers, recipe: Recipe, precision: str) -> dict:
    """Everything but samples and teachers that decides what a cache holds."""
    stride = teachers.networks[0].stride
    width, height = store.size
    views: dict = {"count": recipe.cache.views}
    if recipe.cache.views > 1:
        views |= {"seed": seed_for(recipe.seed, "views"), "augmentation": recipe.as_dict()["augmentation"]}
    return {
        "anatomies": list(store.anatomies),
        "size": [width, height],
        "preprocessing": PREPROCESSING,
        "stride": stride,
        "grid": [height // stride, width // stride],
        "upsampling": UPSAMPLING,
        "step": recipe.cache.step,
        "codec": CODEC_NAME,
        "views": views,
        "precision": precision,
    }


FORMAT = 1
KIND = "logit cache"
BLOCK = 32  # samples in a shard file
CODEC = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2)
CODEC_NAME = "int16, blosc zstd-5 bitshuffle, crc32c"
UPSAMPLING = "bilinear, corner-aligned"


def logits_spec(views: int, anatomies: int, grid: tuple[int, int], step: float) -> ArraySpec:
    """The array `logits` for maps of grid = (h, w) native logits."""
    return ArraySpec(
        "logits",
        "int16",
        (views, anatomies, *grid),
        ("sample", "view", "anatomy", "y", "x"),
        fill=FILL,
        shard=BLOCK,
        chunk_item=(1, anatomies, *grid),
        codec=CODEC,
        attributes=(("scale_factor", step), ("add_offset", 0.0), ("units", "logit"), ("long_name", "teachers' logits")),
    )


def check_kind(url: str, manifest: dict) -> None:
    """Raises MtkdError for another thing than a logit cache, and for one of a newer format."""
    if manifest.get("kind") != KIND or manifest["format"] > FORMAT:
        raise MtkdError(
            f"{url} is a {manifest.get('kind')} of format {manifest.get('format')}; a {KIND} of format {FORMAT} is needed."
        )


def samples_digest(hashes: Iterable[str]) -> str:
    """SHA-256 of a set of content hashes, whatever their order."""
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def fingerprint(settings: dict, teachers: dict, hashes: Iterable[str]) -> str:
    """The hash that ties a cache to its samples, preprocessing, views, teachers and codec; the order of rows is no part of it."""
    return digest({"settings": settings, "teachers": teachers, "samples": samples_digest(hashes)})


def recorded_views(settings: dict, hashes: Sequence[str], view: int) -> Views:
    """The views of samples that a cache with these settings records under a number."""
    if view == 0:
        return identity_views(len(hashes))
    about = settings["views"]
    return draw_views(augmentation_from(about["augmentation"]), about["seed"], hashes, view, tuple(settings["size"]))


FIGURES = ("crc32c", "max_error", "kl", "bits")  # what a record says of each map


@dataclass(frozen=True)
class ShardTask:
    """One shard file to bring up to date: BLOCK samples (fewer in the last one) in one view."""

    block: int
    view: int
    hashes: list[str]

    @property
    def record_key(self) -> str:
        return f"records/{self.block:05d}-{self.view:03d}.json"

    @property
    def shard_key(self) -> str:
        return f"logits/c/{self.block}/{self.view}/0/0/0"

    @property
    def rows(self) -> slice:
        """The cache's rows it holds."""
        return slice(self.block * BLOCK, self.block * BLOCK + len(self.hashes))

    def owns(self, record: dict, settings: dict) -> bool:
        """Was a record written for this shard file of a cache with these settings, and does it keep to their error bound?

        The first versions' records do not name their settings: those are told by the bound alone.
        """
        of_the_cache = record["key"] == self.shard_key and record.get("settings") in (None, digest(settings))
        return of_the_cache and all(0 <= error <= settings["step"] / 2 for row in record["rows"] for error in row["max_error"])


def shard_tasks(hashes: list[str], views: int) -> list[ShardTask]:
    blocks = range(0, len(hashes), BLOCK)
    return [ShardTask(start // BLOCK, view, hashes[start : start + BLOCK]) for start in blocks for view in range(views)]
