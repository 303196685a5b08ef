"""What redis says of itself to whoever looks for trouble ahead."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from redis import RedisError, ResponseError

from ppworker.monitoring.checkup import RedisFacts
from ppworker.worker.hints import NAMESPACE, QUEUE
from ppworker.worker.link import open_client

T = TypeVar("T")

_TIMEOUT_S = 1.0
_LOOK = "return redis.call('exists', KEYS[1])"


def read(url: str) -> RedisFacts:
    """Look at redis; takes a few seconds at most, whatever it does.

    Raises:
        ConfigurationError: the URL is malformed.
    """
    client = open_client(url, timeout_s=_TIMEOUT_S)
    try:
        started = time.monotonic()
        clock = _allowed(client.time)
        round_trip_s = time.monotonic() - started
        ahead_s = 0.0
        if clock is not None:
            ahead_s = clock[0] + clock[1] / 1e6 - time.time() + round_trip_s / 2
        info: dict[str, Any] = _allowed(client.info) or {}
        saves = _setting(client, "save")
        return RedisFacts(
            version=str(info.get("redis_version", "")),
            policy=info.get("maxmemory_policy") or _setting(client, "maxmemory-policy"),
            max_bytes=int(info.get("maxmemory", 0)),
            used_bytes=int(info.get("used_memory", 0)),
            is_persistent=None if saves is None else bool(saves or info.get("aof_enabled")),
            ahead_s=ahead_s,
            round_trip_s=round_trip_s,
            refusal=_refusal(client, info),
        )
    except (RedisError, OSError) as error:
        return RedisFacts(error=f"{type(error).__name__}: {error}")
    finally:
        client.close()


def _allowed(ask: Callable[[], T]) -> T | None:
    """The answer; None where this user may not ask, as with many hosted servers."""
    try:
        return ask()
    except ResponseError:
        return None


def _refusal(client: Any, info: dict[str, Any]) -> str:
    """Why this user can queue no hint there; empty when it can. Writes nothing to find out."""
    if info.get("role") == "slave":
        return "it is a replica, which takes no writes"
    try:
        client.eval(_LOOK, 1, f"{NAMESPACE}:{QUEUE}")
    except ResponseError as error:
        return str(error)
    return ""


def _setting(client: Any, name: str) -> str | None:
    """A setting of the server; None where this user may not ask."""
    found: dict[Any, Any] = _allowed(lambda: client.config_get(name)) or {}
    values = [v.decode() if isinstance(v, bytes) else str(v) for v in found.values()]
    return values[0] if values else None
