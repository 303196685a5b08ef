"""The data folder: its two locks and the files made in it.

``start.lock`` is held exclusively while servers are started, healed or stopped. ``users.lock`` is
held shared by every process that uses the servers; who can take it exclusively is the last one.
The kernel drops both when a process dies, however it dies. No server ever inherits them:
descriptors that Python opens are not inheritable, and only these would keep a lock alive.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ppworker.errors import ConfigurationError

LOG_LIMIT_BYTES = 10 * 1024 * 1024
TAIL_BYTES = 1500
PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True)
class Folder:
    """A data folder that exists and that this process may write to.

    Attributes:
        path: absolute, without symbolic links, so that all its users mean the same thing.
        uid: user id of its owner.
        gid: group id of its owner.

    """

    path: Path
    uid: int
    gid: int

    @classmethod
    def prepare(cls, data_dir: Path) -> Self:
        """Make the folder (mode 0700) unless it exists; an existing one is left as it is.

        Raises:
            ConfigurationError: it cannot be made or is not a folder.

        """
        try:
            data_dir.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            path = data_dir.resolve(strict=True)
            facts = path.stat()
        except OSError as error:
            raise ConfigurationError(
                f"PPWORKER_DATA_DIR {data_dir}: cannot be made ({error.strerror}); "
                "name a folder that this user can write to"
            ) from error
        return cls(path, facts.st_uid, facts.st_gid)

    @property
    def key(self) -> str:
        """A short name derived from the path, the same in every process."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Be the only process that starts, heals or stops servers; waits for its turn.

        Raises:
            ConfigurationError: the folder belongs to another user or cannot hold a lock.

        """
        fd = self._lock("start.lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            _unlock(fd)

    def join(self) -> int:
        """Become a user of the servers and return the descriptor that says so.

        To be called inside `starting`, so nobody stops the servers at the same moment.
        """
        return self._lock("users.lock", fcntl.LOCK_SH)

    def leave(self, users_fd: int) -> bool:
        """Stop being a user and say whether this was the last; call inside `starting`.

        A last user's lock stays exclusive until `left`.
        """
        try:
            # The step from shared to exclusive drops the shared lock first, even when it fails;
            # that is what leaving means.
            fcntl.flock(users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def left(self, users_fd: int) -> None:
        """Drop what `join` took."""
        _unlock(users_fd)

    def make(self, name: str, uid: int, gid: int) -> Path:
        """Make a private subfolder for that user; raises FileExistsError when it is there."""
        path = self.path / name
        path.mkdir(mode=PRIVATE_FOLDER)
        if os.geteuid() == 0:
            os.chown(path, uid, gid, follow_symlinks=False)
        return path

    def open_log(self, name: str) -> int:
        """Open a server's log for appending, emptied first when it has grown past 10 MB."""
        fd = self._open(name, os.O_WRONLY | os.O_APPEND)
        if os.fstat(fd).st_size > LOG_LIMIT_BYTES:
            os.ftruncate(fd, 0)
        return fd

    def tail(self, name: str) -> str:
        """The last lines of a log, for a message to a person; empty when there is none."""
        try:
            with (self.path / name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-8:])

    def _lock(self, name: str, kind: int) -> int:
        fd = self._open(name, os.O_RDWR)
        try:
            fcntl.flock(fd, kind)
        except BaseException as error:
            os.close(fd)
            if not isinstance(error, OSError):
                raise
            raise ConfigurationError(
                f"PPWORKER_DATA_DIR {self.path}: its file system cannot lock files "
                f"({error.strerror}); name a folder on a local disk"
            ) from error
        return fd

    def _open(self, name: str, flags: int) -> int:
        # O_NOFOLLOW: root may work in a folder whose owner could have planted a link.
        path = self.path / name
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as error:
            raise ConfigurationError(
                f"PPWORKER_DATA_DIR {self.path}: cannot open {name} ({error.strerror}); the folder "
                f"belongs to user id {self.uid}: run as that user or name another folder"
            ) from error
        if os.geteuid() == 0:
            # What root makes in somebody's folder must stay usable to that somebody.
            os.fchown(fd, self.uid, self.gid)
        return fd


def _unlock(fd: int) -> None:
    # In so many words: a child forked meanwhile keeps a closed descriptor's lock alive.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
