"""What redis says of itself to whoever looks for trouble ahead."""

import time
from typing import Any

from redis import RedisError, ResponseError

from ppworker.monitoring.checkup import RedisFacts
from ppworker.worker.link import open_client

_TIMEOUT_S = 1.0


def read(url: str) -> RedisFacts:
    """Look at redis; takes a few seconds at most, whatever it does.

    Raises:
        ConfigurationError: the URL is malformed.
    """
    client = open_client(url, timeout_s=_TIMEOUT_S)
    try:
        started = time.monotonic()
        seconds, micros = client.time()
        round_trip_s = time.monotonic() - started
        ahead_s = seconds + micros / 1e6 - time.time() + round_trip_s / 2
        info: dict[str, Any] = client.info()
        saves = _setting(client, "save")
        return RedisFacts(
            version=str(info.get("redis_version", "")),
            policy=info.get("maxmemory_policy") or _setting(client, "maxmemory-policy"),
            max_bytes=int(info.get("maxmemory", 0)),
            used_bytes=int(info.get("used_memory", 0)),
            is_persistent=None if saves is None else bool(saves or info.get("aof_enabled")),
            ahead_s=ahead_s,
            round_trip_s=round_trip_s,
        )
    except (RedisError, OSError) as error:
        return RedisFacts(error=f"{type(error).__name__}: {error}")
    finally:
        client.close()


def _setting(client: Any, name: str) -> str | None:
    """A setting of the server; None where this user may not ask, as with many hosted ones."""
    try:
        found: dict[Any, Any] = client.config_get(name)
    except ResponseError:
        return None
    values = [v.decode() if isinstance(v, bytes) else str(v) for v in found.values()]
    return values[0] if values else None
