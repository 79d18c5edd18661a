"""The card of a logit cache: README.md in its folder, as a hub shows it, written when the cache is finished.

It is not listed in the manifest: whoever publishes a cache may edit it, and the cache stays whole.
"""

from collections.abc import Mapping
from typing import Any

from mtkd_cache.cache.layout import CacheManifest, CachePlan, TeacherInfo, licenses_of
from mtkd_cache.runtime.markdown import plain, templates
from mtkd_cache.runtime.progress import file_size
from mtkd_cache.storage.folder import Folder

CARD = "README.md"
MARK = "<!-- Written by mtkd-cache build, which writes it anew unless this line is gone. -->"


def write_card(folder: Folder, plan: CachePlan, manifest: CacheManifest, dataset: str) -> None:
    """Write the card of a cache. A README.md without the mark is somebody else's, and is left as it is."""
    text = card_text(plan, manifest, dataset).encode()
    present = folder.read(CARD) if folder.exists(CARD) else None
    if present is None or (MARK.encode() in present and present != text):
        folder.write(CARD, text)


def card_text(plan: CachePlan, manifest: CacheManifest, dataset: str) -> str:
    """The card in Markdown with YAML front matter; the same cache has the same text. dataset: the name of the sample store."""
    spec, errors = manifest.settings, manifest.errors.values()
    sizes = [entry["bytes"] for entry in manifest.files.values()]
    environment = templates("mtkd_cache", "cache", finalize=lambda value: plain(str(value)), keep_trailing_newline=True)
    return environment.get_template("card.md").render(
        dataset=dataset,
        spec=spec,
        manifest=manifest,
        samples=f"{len(plan.samples):,}",
        size=file_size(sum(sizes)),
        max_error=f"{max(error['max_abs_error'] for error in errors):.3g}",
        kl=f"{sum(error['mean_kl_nats'] for error in errors) / len(spec.anatomies):.2g}",
        teachers={anatomy: _teacher(info) for anatomy, info in manifest.teachers.items()},
        licenses=sorted(licenses_of(manifest.teachers)),
    )


def _teacher(info: TeacherInfo) -> str:
    """A teacher in a few words: its architecture, or who computed its logits, and its weights."""
    content: Mapping[str, Any] = info
    members = content.get("members")
    if members:
        return f"mean of {'; '.join(map(_teacher, members))}"
    return content.get("source") or f"{content['arch']}, weights (SHA-256) {content['weights_sha256'][:16]}"
