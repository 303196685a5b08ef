"""The hints' way through redis: offer one, take some. Every method may raise ``RedisError``.

The queue is laid out as dramatiq's own, so that its producers and ours share it.
"""

from typing import Any, Self
from uuid import uuid4

import redis
from dramatiq.brokers.redis import RedisBroker
from redis.backoff import NoBackoff
from redis.retry import Retry

from ppworker.errors import ConfigurationError
from ppworker.worker.hints import MAX_AGE_S, NAMESPACE, QUEUE, Hint

COMMAND_TIMEOUT_S = 0.5
"""Seconds a command may take; a redis on the same network answers in under a millisecond."""
BLOCK_S = 0.5
"""Seconds one blocking call may wait for a hint; stopping waits for it at most once."""

_QUEUE_KEY = f"{NAMESPACE}:{QUEUE}"

# Mark and message in one round trip and one step. The mark names its message and holds only while
# that waits: whoever takes the message ends the mark by it, even if it dies in that moment. (A mark
# that had to be cleared outlived a killed worker for its whole time, and swallowed every hint.)
# The two writes are the layout that dramatiq's dispatch script documents (hash of bodies, list of
# ids).
_OFFER = """
local queued = redis.call('get', KEYS[1])
if queued and redis.call('hexists', KEYS[3], queued) == 1 then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'EX', ARGV[3])
redis.call('hset', KEYS[3], ARGV[1], ARGV[2])
redis.call('rpush', KEYS[2], ARGV[1])
return 1
"""

# Taken is gone: acknowledging afterwards would bind the end of a slice to redis, and a hint is not
# worth redelivery.
_TAKE = """
local ids = {}
for i = 1, tonumber(ARGV[1]) do
  local id = redis.call('lpop', KEYS[1])
  if not id then break end
  ids[i] = id
end
if #ids == 0 then return {} end
local bodies = redis.call('hmget', KEYS[2], unpack(ids))
redis.call('hdel', KEYS[2], unpack(ids))
return bodies
"""


class RedisLink:
    """Offers and takes hints. Safe for many offering threads and one taking thread."""

    def __init__(self, client: redis.Redis, blocking: redis.Redis) -> None:
        """Build on two clients; ``blocking`` must outwait ``BLOCK_S`` on its socket."""
        self._client = client
        self._blocking = blocking
        self._offer_script = client.register_script(_OFFER)
        self._take_script = client.register_script(_TAKE)
        # Not a broker that anybody sends to: only its way of queueing.
        self._stock = RedisBroker(client=client, namespace=NAMESPACE, middleware=[])  # type: ignore[no-untyped-call]

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Build from a ``redis://``, ``rediss://`` or ``unix://`` URL, without connecting.

        Raises:
            ConfigurationError: the URL is malformed; the message does not repeat it.
        """
        return cls(
            open_client(url, timeout_s=COMMAND_TIMEOUT_S),
            open_client(url, timeout_s=BLOCK_S + COMMAND_TIMEOUT_S),
        )

    def offer(self, hint: Hint) -> bool:
        """Queue a hint unless one of its kind is queued; whether it was new. One round trip."""
        message_id = str(uuid4())
        body = hint.to_message(redis_message_id=message_id).encode()
        return bool(
            self._offer_script(
                keys=[hint.mark, _QUEUE_KEY, f"{_QUEUE_KEY}.msgs"],
                args=[message_id, body, MAX_AGE_S],
            )
        )

    def take(self, limit: int, *, block_s: float) -> list[bytes | None]:
        """Wait up to ``block_s`` seconds for messages, then take at most ``limit`` of them; from
        then on a hint of the same kind is queued again.

        None stands for a message whose body is gone. Several workers wake for one message, and
        all but one fetch nothing; the list is empty then, so they wait again.
        """
        if block_s > 0 and not wait_for(self._blocking, _QUEUE_KEY, block_s):
            return []
        taken: list[bytes | None] = self._take_script(
            keys=[_QUEUE_KEY, f"{_QUEUE_KEY}.msgs"], args=[limit]
        )
        return taken

    def enqueue(self, queue: str, body: bytes) -> None:
        """Put a message as it is at the end of a queue."""
        self._stock.do_enqueue(queue, str(uuid4()), body)

    def ping(self) -> None:
        """Ask for the shortest answer there is."""
        self._client.ping()

    def close(self) -> None:
        """Close the connections; never raises for a redis that is away."""
        for client in (self._client, self._blocking):
            client.close()
            client.connection_pool.disconnect()


def open_client(url: str, *, timeout_s: float) -> redis.Redis:
    """A client of redis, not connected yet.

    Raises:
        ConfigurationError: the URL is malformed; the message does not repeat it.
    """
    try:
        pool = redis.ConnectionPool.from_url(url)
        pool.make_connection()  # connects nowhere, but knows each option of the URL
    except (ValueError, TypeError, redis.RedisError):
        raise ConfigurationError(
            "PPWORKER_REDIS_URL: not a URL like redis://host:6379/0; "
            "in a password write @ as %40, : as %3A and / as %2F"
        ) from None
    # After parsing, so that a time-out in the URL cannot undo ours: an upload waits for a hint.
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": COMMAND_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),  # redis-py's default waits for seconds
        "decode_responses": False,
    }
    pool.connection_kwargs.update(options)
    return redis.Redis(connection_pool=pool)


def wait_for(client: redis.Redis, queue_key: str, block_s: float) -> bool:
    """Whether something lies in the queue by ``block_s`` seconds from now.

    The head of the queue stays where it is: whoever fetches first takes it.
    """
    arrived = client.blmove(
        queue_key,
        queue_key,
        max(round(block_s, 3), 0.001),  # type: ignore[arg-type]  # redis takes fractions; 0: for ever
        src="LEFT",
        dest="LEFT",
    )
    return arrived is not None
