"""Serves an ASGI application on an open socket until a signal, in a thread beside the main one."""

import signal
import socket
import time
from collections.abc import Callable
from threading import Thread

import uvicorn
from fastapi import FastAPI

from ppworker.errors import PpworkerError

_TICK_S = 0.25
_LAST_REQUESTS_S = 3.0
"""Seconds that requests under way have after a signal; the supervisor kills after five."""


class ServerError(PpworkerError):
    """The server ended by itself; a new process may do better."""


def serve(
    app: FastAPI,
    opened: socket.socket,
    wait_for_signal: Callable[[float], int | None],
    *,
    started: Callable[[], None],
    tick: Callable[[], None] = lambda: None,
) -> bool:
    """Answer requests until a signal; whether those under way were answered in time.

    Args:
        app: what answers.
        opened: the listening socket.
        wait_for_signal: waits up to that many seconds; returns its number, or None.
        started: called once, when requests are answered.
        tick: called several times a second.

    Raises:
        ServerError: the server ended by itself.
    """
    config = uvicorn.Config(
        app,
        log_config=None,  # the lines of libraries come through ours
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(_LAST_REQUESTS_S),
    )
    server = uvicorn.Server(config)
    # Not in the main thread: there uvicorn would take the signals for itself.
    thread = Thread(target=server.run, kwargs={"sockets": [opened]}, name="http", daemon=True)
    thread.start()
    is_said = False
    while (caught := wait_for_signal(_TICK_S)) is None:
        if not thread.is_alive():
            raise ServerError("the HTTP server ended by itself")
        if server.started and not is_said:
            is_said = True
            started()
        tick()
    server.should_exit = True
    interrupts = int(caught == signal.SIGINT)
    until = time.monotonic() + _LAST_REQUESTS_S + 1
    while thread.is_alive() and time.monotonic() < until:
        interrupts += wait_for_signal(0.05) == signal.SIGINT
        server.force_exit = interrupts > 1
    return not thread.is_alive()
