"""Content-addressed files: bytes in a local folder by SHA-256, one row for each content."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ppworker.errors import Invalid
from ppworker.store import bulk
from ppworker.store.db import Tx
from ppworker.store.tables import blobs

_CHUNK = 1024 * 1024


class BlobStore:
    """A folder of immutable files; equal contents are stored once.

    A file appears under its final name only when its bytes are on disk, so a crash leaves at most
    an unnamed temporary file behind.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the bytes of that content lie, whether or not they are there."""
        return self.root / sha256[:2] / sha256

    @contextmanager
    def receive(self, source: BinaryIO, *, limit: int) -> Iterator[Path]:
        """Copy a stream to a temporary file inside the store, for inspection before ``keep``.

        The file is gone at the end unless ``keep`` took it.

        Raises:
            Invalid: the stream holds more than ``limit`` bytes.
        """
        incoming = self.root / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=incoming)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:
                size = 0
                while chunk := source.read(_CHUNK):
                    size += len(chunk)
                    if size > limit:
                        raise Invalid(
                            f"the file has more than {limit} bytes; raise "
                            "PPWORKER_MAX_FILE_BYTES to take it",
                            field="file",
                        )
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep(self, path: Path, sha256: str) -> None:
        """Give a received file its final name; its content is ``sha256``."""
        final = self.path(sha256)
        if final.exists():
            return
        if not final.parent.is_dir():
            final.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(self.root)
        path.replace(final)
        _sync_folder(final.parent)


def _sync_folder(path: Path) -> None:
    """Make a new name in the folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def insert_blobs(tx: Tx, sizes: Mapping[str, int]) -> None:
    """Record contents by SHA-256 and size in bytes; known ones are left as they are."""
    bulk.insert(
        tx,
        blobs,
        ("sha256", "size_bytes"),
        sorted(sizes.items()),
        after="ON CONFLICT (sha256) DO NOTHING",
    )


def text_sha256(text: str) -> str:
    """Hash of an item's text, by which a change of it is noticed."""
    return hashlib.sha256(text.encode()).hexdigest()
