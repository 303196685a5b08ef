"""Content-addressed files: bytes in a local folder by SHA-256, one row for each content."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.errors import TooLarge
from ppworker.store import bulk
from ppworker.store.db import Tx
from ppworker.store.tables import blob_owners, blobs

_CHUNK = 1024 * 1024
_SYNCS = 8
"""Files that wait for the disk side by side."""
_ABANDONED_S = 24 * 3600.0


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

    def has(self, sha256: str) -> bool:
        """Whether the bytes of that content are there."""
        return self.path(sha256).is_file()

    def holds(self, path: Path) -> bool:
        """Whether that is the file of a content."""
        return path == self.path(path.name)

    @contextmanager
    def incoming(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A temporary file inside the store, open to be written; sync it before ``keep``.

        It is closed and gone at the end unless ``keep`` took it.
        """
        folder = self.root / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:
                yield path, out
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def receive(self, source: BinaryIO, *, limit: int) -> Iterator[Path]:
        """Copy a stream to a temporary file inside the store, for inspection before ``keep``.

        The file is gone at the end unless ``keep`` took it.

        Raises:
            TooLarge: the stream holds more than ``limit`` bytes.
        """
        with self.incoming() as (path, out):
            size = 0
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise too_large(limit)
                out.write(chunk)
            sync(out)
            yield path

    def keep(self, path: Path, sha256: str) -> None:
        """Give a received file its final name; its content is ``sha256``."""
        final = self.path(sha256)
        if final.exists():
            return
        if not final.parent.is_dir():
            final.parent.mkdir(parents=True, exist_ok=True)
            _sync_path(self.root)
        path.replace(final)
        _sync_path(final.parent)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder inside the store for files that `keep_all` may take; gone at the end."""
        folder = self.root / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            yield Path(name)

    def prune_incoming(self) -> int:
        """Throw away what a process that was killed had received; returns how much went.

        What is still written to, however slowly, is younger than a day.
        """
        gone = 0
        with suppress(FileNotFoundError):
            for path in list((self.root / "incoming").iterdir()):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime < _ABANDONED_S:
                        continue
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()
                    gone += 1
        return gone

    def keep_all(self, files: Mapping[str, Path]) -> None:
        """Give many files their final names, by content; they need not be on the disk yet.

        To wait for the disk file by file would take far longer than all of them together.
        """
        new = {sha256: path for sha256, path in files.items() if not self.has(sha256)}
        folders = {self.path(sha256).parent for sha256 in new}
        if any(not folder.is_dir() for folder in folders):
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            _sync_path(self.root)
        with ThreadPoolExecutor(_SYNCS) as syncs:
            list(syncs.map(_sync_path, new.values()))
            for sha256, path in new.items():
                path.replace(self.path(sha256))
            list(syncs.map(_sync_path, folders))


def too_large(limit: int) -> TooLarge:
    """The error of a file that is longer than files may be."""
    return TooLarge(
        f"the file has more than {limit} bytes; raise PPWORKER_MAX_FILE_BYTES to take it",
        field="file",
    )


def sync(file: BinaryIO) -> None:
    """Have what was written to a file survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def _sync_path(path: Path) -> None:
    """Have a file, or the names in a folder, survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def insert_blobs(tx: Tx, sizes: Mapping[str, int]) -> None:
    """Record contents by SHA-256 and size in bytes; known ones are left as they are."""
    bulk.insert(
        tx,
        blobs,
        ("sha256", "size_bytes"),
        sorted(sizes.items()),
        after="ON CONFLICT (sha256) DO NOTHING",
    )


def own(tx: Tx, user_id: UUID, sha256: str) -> None:
    """Record that a user stored a content, which lets the user's messages name it."""
    tx.execute(insert(blob_owners).values(user_id=user_id, sha256=sha256).on_conflict_do_nothing())


_IS_OWNED = sa.text("""
SELECT EXISTS (SELECT FROM blob_owners WHERE user_id = :user AND sha256 = :sha256)
  OR EXISTS (SELECT FROM dataset_items
    WHERE content_sha256 = :sha256 AND user_id = :user AND deleted_at IS NULL)
""")


def is_owned(tx: Tx, user_id: UUID, sha256: str) -> bool:
    """Whether the user stored that content, or has an item that carries it."""
    return bool(tx.execute(_IS_OWNED, {"user": user_id, "sha256": sha256}).scalar_one())


def text_sha256(text: str) -> str:
    """Hash of an item's text, by which a change of it is noticed."""
    return hashlib.sha256(text.encode()).hexdigest()
