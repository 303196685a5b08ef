"""The commands' way through redis: take one, and keep it taken until it is settled.

Taking goes through dramatiq's own scripts, so that any dramatiq program can produce. What this
process has taken and not settled stands in a set of its own; its life signs keep it there, and when
they cease, whoever sweeps next puts it back into the queue. Every method may raise ``RedisError``;
what was in doubt then is put right before the next message is taken.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Self

import redis
from dramatiq.brokers.redis import MAINTENANCE_SCALE, RedisBroker
from dramatiq.common import dq_name

from ppworker.worker import link
from ppworker.worker.hints import NAMESPACE

QUEUE = "commands"
SILENCE_S = 10.0
"""Seconds without a life sign after which a worker's message goes back into the queue. A living one
that is thought dead does no harm: the key of a command lets it happen once."""

_TIMEOUT_S = 1.0
"""Seconds without a byte of redis' answer; a message may be long, and nobody waits for this one."""
_DELAYED = dq_name(QUEUE)
_TRIES_KEY = f"{NAMESPACE}:{QUEUE}.tries"


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that this process holds.

    Attributes:
        queue: where it lay.
        id: redis' own name of it.
        body: None when it is gone.
        tries: how often it was taken without being settled, this time included.
    """

    queue: str
    id: bytes
    body: bytes | None
    tries: int


class CommandLink:
    """Takes commands one by one. One thread takes and settles; others may beat and give back."""

    def __init__(
        self, client: redis.Redis, blocking: redis.Redis, *, silence_s: float = SILENCE_S
    ) -> None:
        """Build on two clients; ``blocking`` must outwait ``link.BLOCK_S`` on its socket."""
        self.silence_s = silence_s
        self._client = client
        self._blocking = blocking
        self._stock = self._broker(0)
        self._sweeping = self._broker(MAINTENANCE_SCALE)  # certain to sweep at each command
        self._sweeping.broker_id = self._stock.broker_id
        self._lock = Lock()
        self._in_doubt = {QUEUE, _DELAYED}
        self._done: set[bytes] = set()
        self._kept_tries: set[bytes] = set()

    @classmethod
    def from_url(cls, url: str, *, silence_s: float = SILENCE_S) -> Self:
        """Build from a URL, without connecting.

        Raises:
            ConfigurationError: the URL is malformed; the message does not repeat it.
        """
        return cls(
            link.open_client(url, timeout_s=_TIMEOUT_S),
            link.open_client(url, timeout_s=link.BLOCK_S + _TIMEOUT_S),
            silence_s=silence_s,
        )

    def take(self, *, block_s: float) -> Taken | None:
        """Wait up to ``block_s`` seconds for a message and take it; None when there is none."""
        self._settle()
        if not link.wait_for(self._blocking, f"{NAMESPACE}:{QUEUE}", block_s):
            return None
        return self._fetch(QUEUE)

    def take_delayed(self) -> Taken | None:
        """Take a message that its producer asked to delay; no worker would ever look at it."""
        self._settle()
        return self._fetch(_DELAYED)

    def done(self, taken: Taken) -> None:
        """Acknowledge a message: what it asks for is committed, or its dead letter is."""
        self._done.add(taken.id)
        self._settle()

    def give_back(self, taken: Taken | None = None, *, keeps_tries: bool = False) -> None:
        """Put back whatever is taken and not done.

        Args:
            taken: what ``keeps_tries`` is about.
            keeps_tries: have this try count as one that failed.
        """
        if taken is not None and keeps_tries:
            self._kept_tries.add(taken.id)
        self._settle()

    def reject(self, taken: Taken) -> None:
        """Move a message to dramatiq's own dead letters, where it lies for a week."""
        self._stock.do_nack(taken.queue, taken.id)
        self._client.hdel(_TRIES_KEY, taken.id)

    def beat(self) -> None:
        """Give a life sign, and put back what workers held that give none any more."""
        for queue in (QUEUE, _DELAYED):
            self._sweeping.do_fetch(queue, 0)

    def close(self) -> None:
        """Close the connections; never raises for a redis that is away."""
        for client in (self._client, self._blocking):
            client.close()
            client.connection_pool.disconnect()

    def _broker(self, maintenance_chance: int) -> RedisBroker:
        return RedisBroker(  # type: ignore[no-untyped-call]
            client=self._client,
            namespace=NAMESPACE,
            middleware=[],
            maintenance_chance=maintenance_chance,
            heartbeat_timeout=int(self.silence_s * 1000),
        )

    def _fetch(self, queue: str) -> Taken | None:
        # Before asking: the answer may be lost, and then we hold a message that we do not know.
        self._in_doubt.add(queue)
        bodies: list[bytes | None] = self._stock.do_fetch(queue, 1)
        if not bodies:
            self._in_doubt.discard(queue)
            return None
        held = self._held(queue)
        if not held:  # thought dead, and swept in between
            return None
        (id_,) = held
        tries = int(self._client.hincrby(_TRIES_KEY, id_, 1))
        return Taken(queue, id_, bodies[0], tries)

    def _held(self, queue: str) -> list[bytes]:
        held = self._client.smembers(f"{NAMESPACE}:__acks__.{self._stock.broker_id}.{queue}")
        return sorted(id_ for id_ in held if isinstance(id_, bytes))  # all are: nothing is decoded

    def _settle(self) -> None:
        """Acknowledge what is done and put back the rest, so that nothing is held."""
        with self._lock:
            for queue in sorted(self._in_doubt):
                for id_ in self._held(queue):
                    if id_ in self._done:
                        self._stock.do_ack(queue, id_)
                    else:
                        self._stock.do_requeue(queue, id_)
                    if id_ not in self._kept_tries:
                        self._client.hdel(_TRIES_KEY, id_)
                self._in_doubt.discard(queue)
            self._done.clear()
            self._kept_tries.clear()
