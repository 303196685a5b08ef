"""``up``, ``api`` and ``worker``: processes that run until they are told to stop."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import typer

from ppworker import telemetry
from ppworker.cli import render
from ppworker.cli.session import USER, Call, Reached, command, connect, reach
from ppworker.monitoring import ports, vitals
from ppworker.monitoring.folder import Place, RuntimeFolder
from ppworker.pipeline.setup import accounts
from ppworker.settings import Settings
from ppworker.store import datasets
from ppworker.store.connections import shown
from ppworker.store.db import Database
from ppworker.worker.supervisor import Child, supervise

Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, max=64, help="Worker processes.", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=64, help="Batches at a time in each.", show_default=False),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", min=0, max=65535, help="Port of the HTTP API; 0 takes any.", show_default=False
    ),
]
Host = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST", help="Address to listen on.", show_default=False),
]
WorkerPort = Annotated[
    int | None,
    typer.Option(
        "--port", min=0, max=65535, help="Port of health and metrics; 0 takes any.",
        show_default=False,
    ),
]  # fmt: skip

_TICK_S = 0.2
_HEAL_S = 2.0
"""Seconds between looks whether the embedded servers live."""


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add one of the commands to the program."""
    functions: dict[str, Callable[..., None]] = {"up": up, "api": api, "worker": worker}
    command(root, name, summary=summary)(functions[name])


def up(
    call: Call,
    processes: Processes = None,
    threads: Threads = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Start servers, bring the schema up to date, run workers and the API until interrupted."""
    wanted = {"processes": processes, "threads": threads, "api_host": host, "api_port": port}
    with reach(call, **wanted) as reached:
        _serve(call, reached, workers=reached.settings.processes, door="api", migrate=True)


def api(call: Call, host: Host = None, port: Port = None) -> None:
    """Run the HTTP API until interrupted; a configured database must be migrated."""
    with reach(call, api_host=host, api_port=port) as reached:
        _serve(call, reached, workers=0, door="api", migrate=False)


def worker(
    call: Call, processes: Processes = None, threads: Threads = None, port: WorkerPort = None
) -> None:
    """Run worker processes until interrupted; a configured database must be migrated."""
    with reach(call, processes=processes, threads=threads, worker_port=port) as reached:
        door = None if reached.settings.worker_port is None else "monitor"
        _serve(call, reached, workers=reached.settings.processes, door=door, migrate=False)


def _serve(call: Call, reached: Reached, *, workers: int, door: str | None, migrate: bool) -> None:
    """Run processes until interrupted.

    Args:
        call: how to print.
        reached: servers that answer.
        workers: number of worker processes.
        door: role of the process that serves a port, None for no port.
        migrate: whether the schema may be brought up to date.
    """
    telemetry.configure(reached.settings)
    _hand_down(reached.settings)
    with ExitStack() as stack:
        opened = _open(reached.settings, door)
        if opened is not None:
            stack.callback(opened.close)
        with connect(reached, migrate=migrate) as db:  # the children connect for themselves
            key = _key(db, reached.settings) if door == "api" else None
        slots = [f"worker-{index}" for index in range(workers)]
        runtime = RuntimeFolder.make(slots, door=door)
        stack.callback(runtime.remove)
        children = [_child(slot, "worker", runtime) for slot in slots]
        if opened is not None and door is not None:
            children.append(_child(door, door, runtime, opened))
        _stop_on_hangup()
        ready = _Ready(call, reached, runtime, children, opened, key)

        code = supervise(
            children,
            grace_s=reached.settings.grace_s,
            ended=runtime.forget,
            stopping=runtime.drain,
            ticks=[ready.look, _healing(reached)],
            tick_s=_TICK_S,
        )
    if code:
        raise typer.Exit(code)


def _open(found: Settings, door: str | None) -> socket.socket | None:
    """The port, held open here so that it outlives the process that serves it."""
    if door == "monitor":
        return ports.listen(
            found.api_host, found.worker_port or 0, setting="PPWORKER_WORKER_PORT or --port"
        )
    if door == "api":
        # A second `up` on this machine, on another data folder, takes another port by itself.
        is_chosen = "api_port" in found.model_fields_set
        return ports.listen(
            found.api_host,
            found.api_port,
            setting="PPWORKER_API_PORT or --port",
            or_any=not is_chosen,
        )
    return None


def _child(
    slot: str, role: str, runtime: RuntimeFolder, opened: socket.socket | None = None
) -> Child:
    """A process of a role; one with a port stays while workers stop, so that it can tell of it."""
    environment = Place(slot, runtime.path).environment()
    if opened is not None:
        environment[ports.LISTEN_FD] = str(opened.fileno())
    return Child(
        name=slot,
        argv=[sys.executable, "-m", "ppworker.process", role],
        environment=environment,
        descriptors=() if opened is None else (opened.fileno(),),
        stays=opened is not None,
    )


def _key(db: Database, found: Settings) -> str:
    """The key of the user that commands act as, which lies in the data folder."""
    with db.begin() as tx:
        user_id = datasets.ensure_user(tx, USER)
    return accounts.keep_key(db, user_id, found.data_dir)


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


@dataclass(slots=True)
class _Ready:
    """Says once that everything runs: when every child has written that it began."""

    call: Call
    reached: Reached
    runtime: RuntimeFolder
    children: list[Child]
    opened: socket.socket | None
    key: str | None
    is_said: bool = False

    def look(self) -> None:
        if self.is_said:
            return
        notes = [vitals.read(self.runtime.path, child.name) for child in self.children]
        if all(note is not None and note.started_at is not None for note in notes):
            self.is_said = True
            self._say()

    def _say(self) -> None:
        found = self.reached.settings
        workers = sum(1 for child in self.children if not child.stays)
        address = None if self.opened is None else ports.url(self.opened)
        if self.call.as_json:
            about: dict[str, Any] = {
                "event": "ready",
                "address": address,
                "key": self.key,
                "database": _address(found),
                "data_dir": found.data_dir,
                "processes": workers,
                "threads": found.threads,
                "embedded": self.reached.servers is not None,
                "redis": _redis_address(found),
            }
            render.as_json(about)
        else:
            own = self.reached.servers is not None
            served = [] if address is None else [f"address    {address}"]
            if address is not None and self.key is not None:
                ask = f"curl -H 'Authorization: Bearer {self.key}' {address}/api/v1/datasets"
                served += [f"key        {self.key}", f"try        {ask}"]
            render.say(
                f"database   {_address(found)}" + (" (embedded)" if own else ""),
                f"redis      {_redis_address(found) or 'none: no messages, workers poll'}",
                f"data       {found.data_dir}",
                f"workers    {workers} processes of {found.threads} threads",
                *served,
                *(self.reached.servers.notes if self.reached.servers else ()),
                "ready; Ctrl-C stops it",
            )
        sys.stdout.flush()


def _address(found: Settings) -> str:
    """The database's URL for a person or psql."""
    return shown(found.database_url.get_secret_value()) if found.database_url else ""


def _redis_address(found: Settings) -> str | None:
    """Where producers send messages to: redis' URL without its password."""
    if found.redis_url is None:
        return None
    parts = urlsplit(found.redis_url.get_secret_value())
    where = parts.netloc.rpartition("@")[2]
    kept = urlencode([each for each in parse_qsl(parts.query) if "password" not in each[0]])
    return f"{parts.scheme}://{where}{parts.path}" + (f"?{kept}" if kept else "")
