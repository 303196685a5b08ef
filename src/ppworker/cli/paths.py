"""Finds the files to upload, and refuses what cannot be one before anything is written."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppworker.errors import Invalid
from ppworker.pipeline.uploads import ingest, media
from ppworker.settings import Settings

_FIELD = "PATH"


@dataclass(slots=True)
class Found:
    """Files to be uploaded, and what was passed over."""

    files: list[Path] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """Path and reason."""


def find(given: Sequence[str], limits: Settings) -> Found:
    """Every file of the given files and folders, folders walked in the order of their names.

    In folders hidden files, special files and links that lead out are passed over; what the
    caller named himself must be a file or a folder.

    Raises:
        Invalid: a path cannot be read, is no file or folder, climbs up, or is too large.
    """
    found = Found()
    for text in given:
        path = Path(text)
        if ".." in path.parts:
            raise Invalid(f"'{text}' climbs up by '..'; give the absolute path", field=_FIELD)
        mode = _stat(path).st_mode
        if stat.S_ISDIR(mode):
            _walk(path, found)
        elif stat.S_ISREG(mode):
            found.files.append(path)
        else:
            raise Invalid(f"'{text}' is a device, pipe or socket; name files", field=_FIELD)
    for path in found.files:
        _check(path, limits)
    return found


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _walk(folder: Path, found: Found) -> None:
    root = Path(os.path.realpath(folder))
    for entry in _entries(folder, found):
        path = Path(entry.path)
        if entry.is_symlink() and (reason := _link_fault(path, root)):
            found.skipped.append((path, reason))
        elif entry.is_file():
            found.files.append(path)
        else:
            found.skipped.append((path, "a device, pipe or socket"))


def _entries(folder: Path, found: Found) -> Iterator[os.DirEntry[str]]:
    """Entries below a folder that are no folders, each folder's in the order of their names."""
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(Path(error.filename or folder), error) from None
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                found.skipped.append((Path(entry.path), "hidden"))
            elif entry.is_dir(follow_symlinks=False):
                below.append(Path(entry.path))
            else:
                yield entry
        folders += reversed(below)


def _link_fault(path: Path, root: Path) -> str:
    target = Path(os.path.realpath(path))
    if not target.exists():
        return "a link to nothing"
    if target.is_dir():
        return "a link to a folder"
    return "" if target.is_relative_to(root) else "a link that leads out of the folder"


def _check(path: Path, limits: Settings) -> None:
    """Look at what would stop an upload in the middle: unreadable, or too large for its kind."""
    try:
        # Not blocking, in case the file has become a pipe since it was looked at.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        size = os.fstat(handle).st_size
    finally:
        os.close(handle)
    if size > limits.max_file_bytes:
        raise Invalid(
            f"'{path}' has {size} bytes, more than {limits.max_file_bytes}; "
            "raise PPWORKER_MAX_FILE_BYTES to take it",
            field=_FIELD,
        )
    if size > limits.max_text_bytes and _is_text(path):
        raise Invalid(
            f"the text of '{path}' has {size} bytes, more than {limits.max_text_bytes}; "
            "cut it up, or raise PPWORKER_MAX_TEXT_BYTES",
            field=_FIELD,
        )


def _is_text(path: Path) -> bool:
    try:
        return media.type_of(path, path.name) in ingest.TEXT_TYPES
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> Invalid:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT:
        return Invalid(f"'{path}' does not exist", field=_FIELD)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return Invalid(f"'{path}' cannot be read ({reason})", field=_FIELD)
