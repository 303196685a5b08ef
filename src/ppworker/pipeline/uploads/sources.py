"""Where the bytes that a message names come from: a stored blob, or a file below the inbox.

Both are checked before anything is read: a blob must be the user's own, and on the way to a file
nothing may lead out of the inbox.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from uuid import UUID

from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.store import blobs
from ppworker.store.db import Tx

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking, or a named pipe in the inbox would hold the worker for ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE})
"""Errors that say nothing of the file: it may well be opened later."""


def keep_file(deps: Deps, user_id: UUID, path: Path) -> str:
    """Store a file as a blob of the user; returns its SHA-256, by which messages name it.

    Raises:
        Invalid: it is larger than a file may be.
        OSError: it cannot be read.
    """
    with (
        path.open("rb") as source,
        deps.blobs.receive(source, limit=deps.settings.max_file_bytes) as received,
    ):
        return keep_received(deps, user_id, received)


def keep_received(deps: Deps, user_id: UUID, received: Path) -> str:
    """Make a file that the blob store has received a blob of the user; returns its SHA-256."""
    with received.open("rb") as stored:
        sha256 = hashlib.file_digest(stored, "sha256").hexdigest()
    size = received.stat().st_size
    deps.blobs.keep(received, sha256)

    def write(tx: Tx) -> None:
        blobs.insert_blobs(tx, {sha256: size})
        blobs.own(tx, user_id, sha256)

    deps.db.transact(write)
    return sha256


def stored_file(deps: Deps, tx: Tx, user_id: UUID, sha256: str, *, field: str) -> Path:
    """Where the bytes of the user's blob lie.

    Raises:
        NotFound: the user has no such blob.
    """
    path = deps.blobs.path(sha256)
    if not blobs.is_owned(tx, user_id, sha256) or not path.is_file():
        raise NotFound(
            f"no stored file {sha256}; `ppworker blobs add FILE` stores one", field=field
        )
    return path


@contextmanager
def inbox_file(root: Path | None, name: str, *, field: str) -> Iterator[BinaryIO]:
    """Open a file below the inbox, every part of its path looked at while it is walked.

    Args:
        root: the inbox; its own path may lead over links, as its operator likes.
        name: path in it, or absolute and below it.
        field: what the message calls the path.

    Raises:
        Invalid: there is no inbox; the path leads out of it or over a symbolic link; it is no
            regular file, or cannot be read.
        OSError: this process or its machine cannot open any.
    """
    if root is None:
        raise Invalid(
            "no inbox is configured; set PPWORKER_INBOX_DIR for the workers, or send a blob",
            field=field,
        )
    parts = _parts(root, name, field)
    try:
        handle = _walk(root.resolve(), parts)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in _OURS:
            raise
        raise Invalid(f"'{name}' in the inbox {_reason(error)}", field=field) from None
    with os.fdopen(handle, "rb") as source:
        yield source


def _parts(root: Path, name: str, field: str) -> tuple[str, ...]:
    """The steps from the inbox to the file."""
    path = PurePosixPath(name)
    if path.is_absolute():
        base = next((b for b in (root.absolute(), root.resolve()) if path.is_relative_to(b)), None)
        if base is None:
            raise Invalid("the path leads out of the inbox; name a file below it", field=field)
        path = path.relative_to(base)
    if ".." in path.parts:
        raise Invalid("the path climbs by '..'; name a file below the inbox", field=field)
    if "\0" in name or not path.parts:
        raise Invalid("the path names no file", field=field)
    return path.parts


def _walk(root: Path, parts: Sequence[str]) -> int:
    """Open a regular file, one folder after the other."""
    handle = os.open(root, _FOLDER)
    for number, part in enumerate(parts, start=1):
        try:
            below = os.open(part, _FILE if number == len(parts) else _FOLDER, dir_fd=handle)
        finally:
            os.close(handle)
        handle = below
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no regular file")
    return handle


def _reason(error: OSError | UnicodeError) -> str:
    number = error.errno if isinstance(error, OSError) else errno.EILSEQ
    if number == errno.ENOENT:
        return "does not exist"
    if number == errno.EINVAL:
        return "is no regular file"
    if number in {errno.ELOOP, errno.ENOTDIR}:  # what Linux and others say of a link in the way
        return "is behind a symbolic link, or behind something that is no folder"
    return f"cannot be read ({os.strerror(number or errno.EIO)})"
