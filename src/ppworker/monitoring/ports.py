"""The listening socket: opened by the supervisor, so that it outlives the process behind it."""

import os
import socket

from ppworker.errors import ConfigurationError

LISTEN_FD = "PPWORKER_LISTEN_FD"
"""Environment variable by which a child knows the descriptor of the socket it shall serve."""

_BACKLOG = 256


def listen(host: str, port: int, *, setting: str, or_any: bool = False) -> socket.socket:
    """Open a port; callers wait in its queue while the process behind it is started again.

    Args:
        host: name or address of this machine.
        port: 0 takes any free one.
        setting: what the port is called, for the error.
        or_any: take any free port where this one is used; for a port that nobody asked for.

    Raises:
        ConfigurationError: the port is used, or there is no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(f"PPWORKER_API_HOST: no address '{host}': {error}") from None
    # By its name, else asyncio leaves answers waiting: 40 ms each, on a connection kept open.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        if or_any and port:
            return listen(host, 0, setting=setting)
        raise ConfigurationError(
            f"{setting}: {host}:{port} cannot be listened on ({error.strerror}); choose another"
        ) from None
    return opened


def inherited() -> socket.socket:
    """The socket that the supervisor handed to this process.

    Raises:
        ConfigurationError: there is none; the process was not started by a supervisor.
    """
    descriptor = os.environ.pop(LISTEN_FD, "")  # none of what our own children are given
    if not descriptor.isdigit():
        raise ConfigurationError("this process serves a port; start it with `ppworker up` or `api`")
    found = socket.socket(fileno=int(descriptor))
    found.set_inheritable(False)
    return found


def url(opened: socket.socket) -> str:
    """The address of a listening socket for a person or a program."""
    host, port = opened.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104  said, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
