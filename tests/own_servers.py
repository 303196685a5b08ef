"""PostgreSQL servers of a test's own, on ports of the loopback address: to be stopped and broken."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psycopg

from ppworker.embedded import folder as data_folder
from ppworker.embedded.binaries import executable_by, postgres_programs
from ppworker.embedded.process import Account, unprivileged_account

TESTS = Path(__file__).parent
REGISTERED = "SELECT count(*) FROM workers"
_START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], *, seconds: float, what: str) -> float:
    """Wait for it; returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - started


class Place:
    """A folder that a server's user can write to, gone afterwards."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="ppworker-own-", dir="/tmp"))  # short, and for another user
        made = data_folder.Folder.prepare(self.path)
        self.account: Account = unprivileged_account(made, self.path / "none")
        self.give(self.path)

    def give(self, path: Path) -> None:
        """Have a file or a tree belong to the server's user."""
        if os.geteuid() != 0:
            return
        for each in [path, *path.rglob("*")]:
            os.chown(each, self.account.uid, self.account.gid, follow_symlinks=False)

    def spawn(self, command: Sequence[str | Path], log: str) -> subprocess.Popen[bytes]:
        with (self.path / log).open("ab") as out:
            return subprocess.Popen(
                command, cwd=self.path, stdout=out, stderr=out, start_new_session=True, **self._as()
            )

    def run(self, command: Sequence[str | Path]) -> None:
        subprocess.run(command, cwd=self.path, check=True, capture_output=True, **self._as())

    def _as(self) -> dict[str, Any]:
        if not self.account.is_other:
            return {}
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}


@contextmanager
def own_place() -> Iterator[Place]:
    place = Place()
    try:
        yield place
    finally:
        shutil.rmtree(place.path, ignore_errors=True)


class Postgres:
    """One PostgreSQL; its superuser and its database are named ppworker."""

    def __init__(self, place: Place, name: str, programs: Path | None = None) -> None:
        self._place = place
        self.data = place.path / name
        self._log = f"{name}.log"
        self.port = free_port()
        self._bin = programs or wheel_programs(place.account)
        self._process: subprocess.Popen[bytes] | None = None
        self._options: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"postgresql://ppworker@127.0.0.1:{self.port}/ppworker"

    def make(self) -> None:
        self._place.run(
            [self._bin / "initdb", "-D", self.data, "-U", "ppworker", "-A", "trust", "-N",
             "--encoding=UTF8", "--locale=C"]
        )  # fmt: skip

    def copy_of(self, primary: "Postgres") -> None:
        """Become a standby of a server that was made and not yet started."""
        shutil.copytree(primary.data, self.data)
        (self.data / "standby.signal").touch()
        conninfo = f"host=127.0.0.1 port={primary.port} user=ppworker"
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{conninfo}'\n")
        self.data.chmod(0o700)
        self._place.give(self.data)

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers; ``options`` are name=value."""
        self._options = options or self._options
        given = ["listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={self.port}",
                 "fsync=off", "wal_keep_size=512MB", *self._options]  # fmt: skip
        settings = [part for each in given for part in ("-c", each)]
        self._process = self._place.spawn(
            [self._bin / "postgres", "-D", self.data, *settings], self._log
        )
        until(self._answers, seconds=_START_S, what="the start of PostgreSQL")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._place.path / self._log).read_text()
        try:
            self.ask("SELECT 1", database="postgres")
        except psycopg.OperationalError:
            return False
        return True

    def ask(self, statement: str, *, database: str = "ppworker") -> Any:
        """The first value of a statement's answer, outside a transaction."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="ppworker", dbname=database, autocommit=True
        ) as link:
            found = link.execute(statement)
            row = found.fetchone() if found.description else None
            return row[0] if row else None

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it: SIGQUIT is "immediate", SIGINT is "fast"."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(60)
        self._process = None


def wheel_programs(account: Account) -> Path:
    """The folder of the wheel's newest programs, as that user can reach it."""
    return executable_by(account, next(iter(postgres_programs().values()))).parent


def debian_programs() -> Path:
    """The folder of Debian's newest programs."""
    found = Path("/usr/lib/postgresql").glob("*/bin")
    return max(found, key=lambda path: int(path.parent.name))


class Workers:
    """Worker processes without a supervisor, on any database; all are ended with the test."""

    def __init__(self, url: str, folder: Path, **more: str) -> None:
        self.path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        self._environment = os.environ | {
            "PPWORKER_DATABASE_URL": url,
            "PPWORKER_DATA_DIR": str(folder / "d"),
            "PPWORKER_LEASE_S": "6",
            "PPWORKER_SWEEP_S": "0.5",
            "PPWORKER_POLL_S": "0.3",
            "PPWORKER_BATCH_TARGET_S": "0.2",
            "PYTHONPATH": self.path,
        }
        self._environment |= more
        self._log = (folder / "workers.log").open("ab")
        self.log = folder / "workers.log"
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, **more: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ppworker.process"],
            env=self._environment | more,
            stdout=self._log,
            stderr=self._log,
        )
        self.running.append(process)
        return process

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.terminate()
        for process in self.running:
            process.wait(40)
        self._log.close()


@contextmanager
def workers(url: str, folder: Path, **more: str) -> Iterator[Workers]:
    group = Workers(url, folder, **more)
    try:
        yield group
    finally:
        group.stop()
