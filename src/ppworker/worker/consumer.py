"""Gives idle threads something to look at: hints from redis, or due post-processors by polling.

Never raises for redis or the database: dramatiq would stop consuming for three seconds each time.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING

import dramatiq
from dramatiq import MessageProxy
from redis import RedisError

from ppworker.worker.circuit import Circuit
from ppworker.worker.command_link import QUEUE as COMMANDS_QUEUE
from ppworker.worker.hints import REFRESH, Hint, MalformedHint, decode, is_stale, read
from ppworker.worker.link import BLOCK_S, RedisLink
from ppworker.worker.messages import COMMANDS

if TYPE_CHECKING:
    from ppworker.worker.broker import HintBroker

log = logging.getLogger(__name__)

_REST_S = 0.05
"""Seconds between looks of a stopping consumer."""


class HintConsumer(dramatiq.Consumer):
    """The consumer of one process; dramatiq's consumer thread asks it for the next message.

    A hint that is taken is gone from redis, so the end of a slice never touches it.
    """

    def __init__(self, broker: "HintBroker", *, capacity: int, cooldown_s: float) -> None:
        """Consume for ``capacity`` slots; try a failed redis again every ``cooldown_s`` seconds."""
        self._broker = broker
        self._capacity = capacity
        self._taking = Circuit("taking hints", cooldown_s=cooldown_s)
        self._taken: deque[Hint] = deque()
        self._held_back: dict[Hint, float] = {}  # until when, by the monotonic clock
        self._polled: deque[Hint] = deque()
        self._astray: deque[bytes] = deque()

    def __next__(self) -> MessageProxy | None:
        """The next message, or None when there is nothing to start now."""
        self._broker.looked_at = time.monotonic()
        self._broker.wake.clear()  # before looking: whoever sets it later ends the wait below
        if self._broker.stopping.is_set():
            time.sleep(_REST_S)
            return None
        if self._broker.take_refresh():
            return self._start(REFRESH)
        if not self._polled and not self._taken:
            self._look()
        if self._polled:
            return self._start(self._polled.popleft(), is_local=True)
        while self._taken:
            hint = self._taken.popleft()
            if not self._is_held_back(hint):
                return self._start(hint)
        return None

    def ack(self, message: MessageProxy) -> None:
        """Free the slot."""
        self._broker.slots.give(message.message_id)
        self._broker.wake.set()

    def nack(self, message: MessageProxy) -> None:
        """Free the slot; there are no dead letters."""
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Pass on what no thread began; another process may have an idle slot for it."""
        for message in messages:
            self.ack(message)
            if not message.options.get("local"):
                self._pass_on(read(message._message))  # noqa: SLF001  the proxy has no other way

    def close(self) -> None:
        """Pass on what was taken and not handed out."""
        self._polled.clear()
        for hint in {**dict.fromkeys(self._taken), **self._held_back}:
            self._pass_on(hint)
        self._taken.clear()
        self._held_back.clear()

    def _look(self) -> None:
        """Find something to start, waiting for it a short while."""
        broker, running = self._broker, self._broker.slots.running()
        idle = self._capacity - running.total()
        if idle <= 0:
            broker.wake.wait(BLOCK_S)
            return
        if self._held_back and (ripe := self._ripe()) is not None:
            self._taken.append(ripe)
            return
        held_s = min(self._held_back.values(), default=inf) - time.monotonic()
        poll_in_s = inf if broker.poller is None else broker.poller.seconds_left()
        if broker.poller is not None and poll_in_s <= 0:
            due = broker.poller.due(idle, running)
            self._polled.extend(Hint(post_processor_id) for post_processor_id in due)
        elif broker.link is not None and self._taking.allows():
            self._take(broker.link, idle, block_s=max(0.0, min(poll_in_s, held_s, BLOCK_S)))
        else:
            retry_in_s = BLOCK_S if broker.link is None else self._taking.seconds_left()
            broker.wake.wait(max(0.0, min(poll_in_s, held_s, retry_in_s, BLOCK_S)))

    def _is_held_back(self, hint: Hint) -> bool:
        """Whether to look later, because this process looked just now and found nothing.

        However many hints of a kind are held back, they become one look, at the end of the gap.
        """
        if hint.post_processor_id is None:
            return False
        if hint in self._held_back:
            return True
        wait_s = self._broker.looks.wait_s(hint.post_processor_id)
        if wait_s > 0:
            self._held_back[hint] = time.monotonic() + wait_s
        return wait_s > 0

    def _ripe(self) -> Hint | None:
        now = time.monotonic()
        ripe = next((hint for hint, at in self._held_back.items() if at <= now), None)
        if ripe is not None:
            del self._held_back[ripe]
        return ripe

    def _take(self, link: RedisLink, limit: int, *, block_s: float) -> None:
        try:
            if self._taking.has_failed:
                link.ping()  # polling does not wait out a blocking call to find it still hangs
            bodies = link.take(limit, block_s=block_s)
            hints = [hint for body in bodies if (hint := self._accept(body)) is not None]
            for hint in hints:
                if hint == REFRESH:
                    self._broker.want_refresh()
                else:
                    self._taken.append(hint)
            while self._astray:
                link.enqueue(COMMANDS_QUEUE, self._astray[0])
                self._astray.popleft()
        except (RedisError, OSError) as error:
            self._taking.failed(error)
        else:
            self._taking.succeeded()

    def _accept(self, body: bytes | None) -> Hint | None:
        try:
            message = decode(body)
            if body is not None and message.actor_name in list(COMMANDS):  # which may be no text
                # Its producer's stub names no queue; a command is too dear to drop for that.
                log.warning("a command was sent to the queue of hints; it is moved to its own")
                self._astray.append(body)
                return None
            hint = read(message)
            if is_stale(message, now_s=time.time()):
                self._broker.count("stale")
                return None
        except MalformedHint as error:
            self._broker.count("malformed")
            log.warning("a message on the queue of hints was dropped: %s", error)
            return None
        self._broker.count("taken")
        return hint

    def _start(self, hint: Hint, *, is_local: bool = False) -> MessageProxy:
        if is_local:
            self._broker.count("polled")
        message = hint.to_message(local=is_local)
        self._broker.slots.take(message.message_id, hint.post_processor_id)
        if self._broker.poller is not None and hint.post_processor_id is not None:
            self._broker.poller.served(hint.post_processor_id)
        return MessageProxy(message)

    def _pass_on(self, hint: Hint) -> None:
        if hint.post_processor_id is None:
            self._broker.refresh_label_stats()
        else:
            self._broker.hint(hint.post_processor_id)
