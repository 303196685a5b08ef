"""Puts hints into redis in a thread of its own: no request and no batch waits for redis."""

import logging
import time
from collections.abc import Callable
from threading import Condition, Thread

from ppworker.worker.circuit import Circuit
from ppworker.worker.hints import Hint
from ppworker.worker.link import RedisLink

log = logging.getLogger(__name__)


class Sender:
    """Hints that wait to be sent, each kind once, and the thread that sends them.

    Its memory is bounded by the number of post-processors. What is asked for while redis is away is
    given up at once and told to ``given_up``: polling finds the jobs. Safe for threads; the thread
    is started by the first hint, and waits without polling.
    """

    def __init__(
        self,
        link: RedisLink,
        *,
        cooldown_s: float,
        counted: Callable[[str], None],
        given_up: Callable[[Hint], None],
    ) -> None:
        """Send through ``link``.

        Args:
            link: the way to redis.
            cooldown_s: seconds without a try after redis failed.
            counted: told ``sent``, ``coalesced`` or ``failed`` for each hint; must not raise.
            given_up: told each hint that redis did not take; must not raise.
        """
        self._link = link
        self._counted = counted
        self._given_up = given_up
        self._redis = Circuit("sending hints", cooldown_s=cooldown_s)
        self._changed = Condition()
        self._waiting: dict[Hint, None] = {}  # in the order they were asked for
        self._is_busy = False
        self._is_closed = False
        self._thread: Thread | None = None

    def send(self, hint: Hint) -> None:
        """Have a hint sent soon; takes microseconds, whatever redis does."""
        with self._changed:
            is_taken, is_new = not self._is_closed, hint not in self._waiting
            if is_taken:
                self._waiting[hint] = None
                if self._thread is None:
                    self._thread = Thread(target=self._run, name="hints", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        if not is_taken:
            self._give_up(hint)
        elif not is_new:
            self._counted("coalesced")

    def flush(self, wait_s: float) -> bool:
        """Wait until nothing waits to be sent; whether that was so within ``wait_s`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._is_busy, wait_s)

    def close(self, *, wait_s: float) -> bool:
        """Send what waits and end the thread; whether it ended within ``wait_s`` seconds."""
        until = time.monotonic() + wait_s
        self.flush(wait_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_busy = False
                if not self._waiting:
                    self._changed.notify_all()  # whoever flushes
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                # Taken out before it is sent: who asks again meanwhile is owed another one.
                hint = next(iter(self._waiting))
                del self._waiting[hint]
                self._is_busy = True
            self._offer(hint)

    def _offer(self, hint: Hint) -> None:
        if not self._redis.allows():
            self._give_up(hint)
            return
        try:
            is_new = self._link.offer(hint)
        except Exception as error:  # noqa: BLE001  whatever it is, the next hint is tried again
            self._redis.failed(error)
            self._give_up(hint)
        else:
            self._redis.succeeded()
            self._counted("sent" if is_new else "coalesced")

    def _give_up(self, hint: Hint) -> None:
        self._counted("failed")
        self._given_up(hint)
