"""``up`` and ``worker``: processes that run until they are told to stop."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Annotated

import sqlalchemy as sa
import typer

from ppworker import telemetry
from ppworker.cli import render
from ppworker.cli.session import Call, Reached, command, connect, reach
from ppworker.errors import StoreUnavailable
from ppworker.settings import Settings
from ppworker.store import overview
from ppworker.store.db import Database
from ppworker.worker.supervisor import supervise

Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, max=64, help="Worker processes.", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=64, help="Batches at a time in each.", show_default=False),
]

_TICK_S = 0.2
_HEAL_S = 2.0
"""Seconds between looks whether the embedded servers live."""


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add one of the commands to the program."""
    command(root, name, summary=summary)({"up": up, "worker": worker}[name])


def up(call: Call, processes: Processes = None, threads: Threads = None) -> None:
    """Start servers, bring the schema up to date, run workers until interrupted."""
    _serve(call, processes, threads, migrate=True)


def worker(call: Call, processes: Processes = None, threads: Threads = None) -> None:
    """Run worker processes until interrupted; a configured database must be migrated."""
    _serve(call, processes, threads, migrate=False)


def _serve(call: Call, processes: int | None, threads: int | None, *, migrate: bool) -> None:
    with (
        reach(call, processes=processes, threads=threads) as reached,
        connect(reached, migrate=migrate) as db,
    ):
        telemetry.configure(reached.settings)
        _hand_down(reached.settings)
        _stop_on_hangup()
        ready = _Ready(call, reached, db)
        code = supervise(
            lambda _: [sys.executable, "-m", "ppworker.process"],
            reached.settings.processes,
            grace_s=reached.settings.grace_s,
            ticks=[ready.look, _healing(reached)],
            tick_s=_TICK_S,
        )
    if code:
        raise typer.Exit(code)


def _hand_down(found: Settings) -> None:
    """Tell the children by their environment what this process uses."""
    urls = {"PPWORKER_DATABASE_URL": found.database_url, "PPWORKER_REDIS_URL": found.redis_url}
    for variable, url in urls.items():
        os.environ.pop(variable, None)
        if url is not None:
            os.environ[variable] = url.get_secret_value()
    os.environ["PPWORKER_DATA_DIR"] = str(found.data_dir)
    os.environ["PPWORKER_THREADS"] = str(found.threads)


def _stop_on_hangup() -> None:
    """Have a terminal that closes stop the workers as a signal to end does, not kill them."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def _healing(reached: Reached) -> Callable[[], None]:
    """A check that restarts an embedded server that was killed."""
    next_at = time.monotonic() + _HEAL_S

    def heal() -> None:
        nonlocal next_at
        if reached.servers is not None and time.monotonic() >= next_at:
            reached.servers.ensure()
            next_at = time.monotonic() + _HEAL_S

    return heal


class _Ready:
    """Says once that everything runs: when all worker processes have registered."""

    def __init__(self, call: Call, reached: Reached, db: Database) -> None:
        self._call = call
        self._reached = reached
        self._db = db
        self._is_said = False
        with db.begin() as tx:
            self._since = overview.read_clock(tx)

    def look(self) -> None:
        if self._is_said:
            return
        try:
            with self._db.begin() as tx:
                started = overview.count_started(tx, host=socket.gethostname(), since=self._since)
        except StoreUnavailable:
            return  # the next look will see
        if started >= self._reached.settings.processes:
            self._is_said = True
            self._say()

    def _say(self) -> None:
        found = self._reached.settings
        address = _address(found)
        if self._call.as_json:
            render.as_json(
                {
                    "event": "ready",
                    "address": address,
                    "key": None,
                    "data_dir": found.data_dir,
                    "processes": found.processes,
                    "threads": found.threads,
                    "embedded": self._reached.servers is not None,
                    "redis": found.redis_url is not None,
                }
            )
            return
        own = self._reached.servers is not None
        render.say(
            f"database   {address}" + (" (embedded)" if own else ""),
            "redis      " + ("yes" if found.redis_url else "none: workers poll"),
            f"data       {found.data_dir}",
            f"workers    {found.processes} processes of {found.threads} threads",
            *(self._reached.servers.notes if self._reached.servers else ()),
            "ready; Ctrl-C stops it",
        )
        sys.stdout.flush()


def _address(found: Settings) -> str:
    """The database's URL for a person or psql: no driver, no password."""
    url = sa.make_url(found.database_url.get_secret_value() if found.database_url else "")
    shown = sa.URL.create(  # anew: `set` cannot take the password out
        "postgresql", url.username, None, url.host, url.port, url.database, url.query
    )
    return shown.difference_update_query(["password", "sslpassword"]).render_as_string()
