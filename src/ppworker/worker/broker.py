"""Sends hints and hands them to the threads; with redis, without it, and while it is away."""

import logging
from collections import Counter
from collections.abc import Callable
from threading import Event, Lock
from typing import Any
from uuid import UUID

import dramatiq
from dramatiq import Message

from ppworker.worker.consumer import HintConsumer
from ppworker.worker.hints import REFRESH, Hint, read
from ppworker.worker.link import RedisLink
from ppworker.worker.looks import Looks
from ppworker.worker.poller import Poll, Poller
from ppworker.worker.sender import Sender
from ppworker.worker.slots import Slots

log = logging.getLogger(__name__)

_COOLDOWN_S = 1.5
"""Seconds without a try after redis failed."""
_CLOSE_S = 1.0
"""Seconds in which the last hints may go out when a process ends."""


class HintBroker(dramatiq.Broker):
    """A dramatiq broker for hints: no retries, no delays, no time limits, no dead letters.

    ``hint`` and ``refresh_label_stats`` never raise and never wait for redis: a thread sends what
    they ask for, and ``close`` waits for it a second at most. Safe for threads. One
    ``dramatiq.Worker`` at most consumes from it.

    Attributes:
        stopping: set when this process shall take no more hints.
        slots: what this process is following now.
        looks: where this process looked in vain of late.
        wake: set to make a waiting consumer look again.
        poller: None in a process that only sends.
        link: None without redis.
        looked_at: when the consumer looked for work last, by the monotonic clock.
    """

    def __init__(
        self,
        *,
        link: RedisLink | None = None,
        poller: Poller | None = None,
        stopping: Event | None = None,
        counted: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Build on what there is; without ``link`` work is found by polling alone.

        ``counted`` is told the name of each counter that grows; it must be quick.
        """
        super().__init__(middleware=[])
        self.link = link
        self.poller = poller
        self.stopping = stopping or Event()
        self.slots = Slots()
        self.looks = Looks()
        self.wake = Event()
        self.looked_at: float | None = None
        self._refresh_wanted = Event()
        self._counted = counted
        self._counts: Counter[str] = Counter()
        self._counts_lock = Lock()
        self._sender: Sender | None = None
        if link is not None:
            self._sender = Sender(
                link, cooldown_s=_COOLDOWN_S, counted=self.count, given_up=self._follow_here
            )

    def hint(self, post_processor_id: UUID) -> None:
        """Say that a post-processor may have jobs; call it after the COMMIT that made them.

        Without redis, and while it is away, this process polls soon, if it polls at all.
        """
        self._offer(Hint(post_processor_id))

    def refresh_label_stats(self) -> None:
        """Say that label stats have deltas to fold."""
        self._offer(REFRESH)

    def wait_sent(self, wait_s: float = _CLOSE_S) -> bool:
        """Wait until redis has what was asked for; whether it has within ``wait_s`` seconds."""
        return self._sender is None or self._sender.flush(wait_s)

    def poll_soon(self) -> None:
        """Have this process poll as soon as it has an idle slot."""
        if self.poller is not None:
            self.poller.soon()
        self.wake.set()

    def take_refresh(self) -> bool:
        """Whether a refresh is wanted in this process and none is under way; asks it off."""
        if not self._refresh_wanted.is_set() or self.slots.is_refreshing:
            return False
        self._refresh_wanted.clear()
        return True

    def want_refresh(self) -> None:
        """Have this process refresh the label stats as soon as no refresh is under way."""
        self._refresh_wanted.set()
        self.wake.set()

    def count(self, name: str) -> None:
        """Add one to a counter."""
        with self._counts_lock:
            self._counts[name] += 1
        self._counted(name)

    @property
    def counts(self) -> dict[str, int]:
        """Hints since the start: sent, coalesced, failed; taken, polled, stale, malformed."""
        names = ("sent", "coalesced", "failed", "taken", "polled", "stale", "malformed")
        with self._counts_lock:
            return {name: self._counts[name] for name in names}

    def _offer(self, hint: Hint) -> None:
        if self._sender is None:
            self._follow_here(hint)
        else:
            self._sender.send(hint)

    def _follow_here(self, hint: Hint) -> None:
        if hint == REFRESH:
            self.want_refresh()
        else:
            self.poll_soon()

    # What dramatiq asks of a broker.

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue without its delay queue: hints never wait, and a delay queue would cost
        another polling thread.
        """
        if queue_name in self.queues:
            return
        self.emit_before("declare_queue", queue_name)
        self.queues[queue_name] = None
        self.emit_after("declare_queue", queue_name)

    def consume(
        self,
        queue_name: str,  # noqa: ARG002  there is one queue
        prefetch: int = 1,
        timeout: int = 30_000,  # noqa: ARG002  the consumer knows its deadlines better
    ) -> HintConsumer:
        """Build the consumer; ``prefetch`` is the number of slots."""
        return HintConsumer(self, capacity=prefetch, cooldown_s=_COOLDOWN_S)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Send an actor's message as the hint it is.

        Raises:
            ValueError: it asks for a delay, or is no hint.
        """
        if delay is not None:
            raise ValueError("a hint has no delay; put the time into the job's run_at")
        self._offer(read(message))
        return message

    def close(self) -> None:
        """Send what was asked for, within a second, and close the connections to redis."""
        if self._sender is not None:
            self._sender.close(wait_s=_CLOSE_S)
        if self.link is not None:
            try:
                self.link.close()
            except Exception as error:  # noqa: BLE001  closing must not fail a stop
                log.debug("closing redis failed: %s", error)


def connect(
    redis_url: str | None,
    *,
    ask: Callable[[], Poll] | None = None,
    poll_s: float = 1.0,
    stopping: Event | None = None,
    counted: Callable[[str], None] = lambda _: None,
) -> HintBroker:
    """Build the broker of a process, without connecting yet.

    Args:
        redis_url: where redis is; None polls only.
        ask: looks at the job table; None in a process that runs no jobs.
        poll_s: seconds between looks, jittered by half.
        stopping: event to share; a new one by default.
        counted: told the name of each counter of hints that grows.

    Raises:
        ConfigurationError: the URL is malformed.
    """
    return HintBroker(
        link=None if redis_url is None else RedisLink.from_url(redis_url),
        poller=None if ask is None else Poller(ask, interval_s=poll_s),
        stopping=stopping,
        counted=counted,
    )
