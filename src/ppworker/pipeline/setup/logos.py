"""A dataset's logo: a small picture, looked into before it is kept."""

from pathlib import Path

from ppworker.errors import Invalid, TooLarge
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads import media
from ppworker.runners.inspector import Inspection
from ppworker.store import blobs, datasets
from ppworker.store.datasets import Dataset
from ppworker.store.db import Tx

MAX_BYTES = 5 * 1024 * 1024
MAX_SIDE = 4096
"""Pixels of a side at most."""

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg"}
"""Media types that a logo may have, and how files of them are named."""


def put(deps: Deps, dataset: Dataset, path: Path, *, name: str) -> None:
    """Give a dataset its logo, or another one.

    Args:
        deps: the collaborators.
        dataset: which one.
        path: the file, inside the blob store; it is taken away from there.
        name: as the client calls it; nothing is decided by it.

    Raises:
        Invalid: its content is no PNG or JPEG, or it has too many pixels.
        TooLarge: it has too many bytes.
    """
    if path.stat().st_size > MAX_BYTES:
        raise too_large()
    with Inspection(max_text_bytes=1) as inspection:
        found = media.inspect(path, name, inspection)
    if found.media_type not in EXTENSIONS:
        raise Invalid("a logo is a PNG or a JPEG; convert it", field="file")
    if not found.width or not found.height:
        raise Invalid(f"the picture cannot be read ({found.note}); save it anew", field="file")
    if max(found.width, found.height) > MAX_SIDE:
        raise Invalid(
            f"a logo has {MAX_SIDE} x {MAX_SIDE} pixels at most, this one {found.width} x "
            f"{found.height}; make it smaller",
            field="file",
        )
    deps.blobs.keep(path, found.sha256)

    def work(tx: Tx) -> None:
        blobs.insert_blobs(tx, {found.sha256: found.size_bytes})
        values = {"logo_sha256": found.sha256, "logo_media_type": found.media_type}
        datasets.update_dataset(tx, dataset.id, values)

    deps.db.transact(work)


def too_large() -> TooLarge:
    """The error of a logo with too many bytes."""
    return TooLarge(f"a logo has {MAX_BYTES} bytes at most; make it smaller", field="file")


def file_name(dataset: Dataset) -> str:
    """What a dataset's logo is called; empty where it has none."""
    if dataset.logo_sha256 is None:
        return ""
    return f"{dataset.id}.{EXTENSIONS[dataset.logo_media_type]}"
