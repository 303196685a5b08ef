"""What PostgreSQL and Redis have in common: be brought up, be looked at, be stopped.

Everything here runs under the start lock of the data folder, except `answers`.
"""

import enum
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

from ppworker.embedded import process, sockets
from ppworker.embedded.folder import Folder
from ppworker.embedded.process import Account
from ppworker.errors import ConfigurationError

# How long a living server may say nothing at all. One that says "I am recovering" may take days.
SILENCE_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
ORPHAN_LIMIT_S = 2.0
LAUNCHES = 3  # a server may be killed while it starts, as any process may


class State(enum.Enum):
    """What a server said when asked."""

    READY = "it answers"
    BUSY = "it lives, and recovers, loads or shuts down"
    SILENT = "nobody answers"


class Server(ABC):
    """One server of a data folder, living or not.

    Attributes:
        data: its private folder; it works in there, and its socket lies in there.
        account: the user it runs as.
        notes: sentences for a person about how it runs.

    """

    title: str
    programs: tuple[str, ...]
    socket_name: str
    pid_name: str
    log_name: str
    stop_signal: signal.Signals
    abort_signal: signal.Signals

    def __init__(self, folder: Folder, data: Path, account: Account) -> None:
        self.folder = folder
        self.data = data
        self.account = account
        self.notes: list[str] = []

    @property
    def address(self) -> Path:
        """The folder by which clients reach the socket: ``data`` or a short link to it."""
        return sockets.client_folder(self.data, self.socket_name, self.folder.key)

    @abstractmethod
    def state(self) -> State:
        """Ask the server, within seconds."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server needs no healing; cheap, and true of one that is merely full."""

    @abstractmethod
    def launch(self) -> int:
        """Start the server on its data, made first when there are none; returns its pid."""

    def leader(self) -> int | None:
        """Pid of the living server, or None."""
        pid = process.pid_in(self.data / self.pid_name)
        return pid if pid in self._living() else None

    def start(self) -> None:
        """Bring the server to where it answers: join a living one, else start it.

        Takes as long as a recovery takes.

        Raises:
            ConfigurationError: it does not start, or lives and stays silent for a minute.

        """
        pid = self.leader()
        launches = 0
        began = heard = time.monotonic()
        while (state := self.state()) is not State.READY:
            if state is State.BUSY:
                heard = time.monotonic()
                self.hasten()
            elif pid is None or not process.is_alive(pid):
                if launches == LAUNCHES:
                    raise self._failure("stopped while starting")
                self._clear_remains()
                pid = self.launch()
                launches += 1
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_LIMIT_S:
                raise self._failure(f"runs (process {pid}) but does not answer")
            process.pause(began)

    @abstractmethod
    def hasten(self) -> None:
        """Do what helps a busy server along."""

    def stop(self) -> None:
        """Stop the server cleanly; without a clean end in a minute, abort it (it recovers)."""
        if (pid := self.leader()) is not None:
            process.send([pid], self.stop_signal)
            self._await_end(pid, STOP_LIMIT_S)
        sockets.forget_client_folder(self.data, self.socket_name, self.folder.key)

    def _await_end(self, pid: int, limit_s: float) -> None:
        began = time.monotonic()
        aborted = False
        while process.is_alive(pid) and pid in self._living():
            if not aborted and time.monotonic() - began > limit_s:
                process.send([pid], self.abort_signal)
                aborted = True
            process.pause(began)

    def _clear_remains(self) -> None:
        """End what a killed server left behind: its children first, they may still write."""
        began = time.monotonic()
        process.send(self._living(), self.abort_signal)
        while orphans := self._living():
            if time.monotonic() - began > ORPHAN_LIMIT_S:
                process.send(orphans, signal.SIGKILL)
            process.pause(began)

    def _living(self) -> set[int]:
        return process.processes_in(self.data, self.programs, self.data / self.pid_name)

    def _failure(self, what: str) -> ConfigurationError:
        tail = self.folder.tail(self.log_name)
        return ConfigurationError(
            f"The embedded {self.title} {what}; see {self.folder.path / self.log_name}, or use a "
            f"server of your own (PPWORKER_DATABASE_URL, PPWORKER_REDIS_URL). Its last words:\n"
            f"{tail}"
        )
