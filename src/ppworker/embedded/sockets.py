"""Paths by which clients reach a server's socket.

A server binds its socket by a relative name inside its own private folder, so neither the length
of the folder's path nor who may walk it matters to the server. Clients need an absolute path,
and that may hold 107 bytes only, and no comma; else they go through a short link in a private
folder of theirs.
"""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from ppworker.embedded.folder import PRIVATE_FOLDER
from ppworker.errors import ConfigurationError

PATH_LIMIT_BYTES = 107 if sys.platform == "linux" else 103


def client_folder(data: Path, socket_name: str, key: str) -> Path:
    """A path of ``data`` that clients can use for ``socket_name``; makes the link it needs.

    Raises:
        ConfigurationError: there is no safe and short place for a link.

    """
    if _fits(data / socket_name):
        return data
    link = _link_folder(data, socket_name, key) / data.name
    with suppress(FileNotFoundError):
        if link.readlink() == data:
            return link
        link.unlink()
    # Another process of ours may be faster; the folder is private, so it makes the same link.
    with suppress(FileExistsError):
        link.symlink_to(data)
    return link


def forget_client_folder(data: Path, socket_name: str, key: str) -> None:
    """Remove the link again, if one was needed."""
    if _fits(data / socket_name):
        return
    for base in _bases():
        private = base / _name(key)
        with suppress(OSError):
            if (private / data.name).readlink() == data:
                (private / data.name).unlink()
            private.rmdir()


def _link_folder(data: Path, socket_name: str, key: str) -> Path:
    for base in _bases():
        private = base / _name(key)
        if not _fits(private / data.name / socket_name):
            continue
        with suppress(FileExistsError):
            private.mkdir(mode=PRIVATE_FOLDER)
        # In a folder open to all, somebody else may have been there first.
        facts = private.lstat()
        if (
            not stat.S_ISDIR(facts.st_mode)
            or facts.st_uid != os.geteuid()
            or stat.S_IMODE(facts.st_mode) & 0o077
        ):
            raise ConfigurationError(
                f"{private} is not a private folder of this user; remove it, or set "
                "PPWORKER_DATA_DIR to a shorter path"
            )
        return private
    raise ConfigurationError(
        f"PPWORKER_DATA_DIR {data.parent}: too long for a socket path "
        f"({PATH_LIMIT_BYTES} bytes at most); name a shorter one"
    )


def _bases() -> list[Path]:
    return list(dict.fromkeys([Path(tempfile.gettempdir()), Path("/tmp")]))  # noqa: S108  verified


def _name(key: str) -> str:
    return f"ppworker-{os.geteuid()}-{key}"


def _fits(path: Path) -> bool:
    # libpq takes a comma for the end of one host and the start of the next.
    return len(os.fsencode(path)) <= PATH_LIMIT_BYTES and "," not in str(path)
