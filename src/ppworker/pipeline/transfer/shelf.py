"""The files of an import or export while it lasts: one folder for each operation, gone in the end.

They are no stored contents: nobody names them by their hash, and they may be thrown away whole.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from ppworker.errors import CommitUnknown
from ppworker.pipeline.deps import Deps

ARCHIVE = "archive"
"""The zip file that came, or that is made."""
MANIFEST = "manifest.jsonl"
LOCK = "lock"
_IMPORTS_KEPT_S = 14 * 24 * 3600.0
"""Seconds after which the files of an import that did not end are given up."""
_LOOK_S = 0.05
_PATIENCE_S = 20.0


class BusyError(Exception):
    """Somebody else still works in the folder: a chunk that has lost its lease, as a rule."""


def root(deps: Deps) -> Path:
    """The folder of all of them, on the disk of the stored files."""
    return deps.blobs.root / "transfers"


def folder(deps: Deps, operation_id: UUID) -> Path:
    """The folder of one operation, whether or not it is there."""
    return root(deps) / str(operation_id)


@contextmanager
def staging(deps: Deps, operation_id: UUID) -> Iterator[Path]:
    """A new folder of an operation to be; gone again unless the block ends well.

    Where nobody knows whether the operation was written it stays: that one would need it.
    """
    path = folder(deps, operation_id)
    path.mkdir(parents=True)
    try:
        yield path
    except CommitUnknown:
        raise  # `prune` takes it in the end, if nobody else does
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Have the files of a folder, and their names, survive a power cut."""
    for each in (*path.iterdir(), path, path.parent):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else works in the folder during the block.

    Raises:
        BusyError: somebody else does, for long.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("wb") as file:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BusyError from None
                time.sleep(_LOOK_S)
        yield


def drop(deps: Deps, operation_id: UUID) -> None:
    """Throw an operation's files away."""
    shutil.rmtree(folder(deps, operation_id), ignore_errors=True)


def prune(deps: Deps) -> int:
    """Throw away what is too old to be asked for; returns how many operations' files went."""
    gone = 0
    now = time.time()
    with suppress(FileNotFoundError):
        for path in list(root(deps).iterdir()):
            is_import = (path / MANIFEST).exists()
            kept_s = _IMPORTS_KEPT_S if is_import else deps.settings.export_keep_s
            with suppress(FileNotFoundError):
                if now - _touched(path) > kept_s:
                    shutil.rmtree(path, ignore_errors=True)
                    gone += 1
    return gone


def _touched(path: Path) -> float:
    return max(each.stat().st_mtime for each in (path, *path.iterdir()))
