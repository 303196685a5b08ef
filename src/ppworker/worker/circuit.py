"""Stops asking a redis that does not answer, so that nobody waits for it twice."""

import logging
import time
from collections.abc import Callable
from threading import Lock

log = logging.getLogger(__name__)


class Circuit:
    """Remembers a failure for ``cooldown_s`` seconds, then lets one caller at a time try again.

    Safe for threads. Logs each change between good and bad once, not each failure.
    """

    def __init__(
        self, duty: str, *, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._duty = duty
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._lock = Lock()
        self._closed_until: float | None = None

    def allows(self) -> bool:
        """Whether the caller may try now; after a failure one probe per cool-down may."""
        with self._lock:
            if self._closed_until is None:
                return True
            now = self._clock()
            if now < self._closed_until:
                return False
            # Take the probe for this caller: a hundred threads must not all wait for the time-out.
            self._closed_until = now + self._cooldown_s
            return True

    @property
    def has_failed(self) -> bool:
        """Whether the last try failed; a caller that was allowed all the same is a probe."""
        return self._closed_until is not None

    def seconds_left(self) -> float:
        """Seconds until the next try is allowed; 0 when it is allowed now."""
        with self._lock:
            if self._closed_until is None:
                return 0.0
            return max(0.0, self._closed_until - self._clock())

    def succeeded(self) -> None:
        """Note an answer."""
        if self._closed_until is None:  # unlocked on purpose: the usual case costs nothing
            return
        with self._lock:
            was_failing, self._closed_until = self._closed_until is not None, None
        if was_failing:
            log.info("redis answers again: %s", self._duty)

    def failed(self, error: BaseException) -> None:
        """Note a failure; nobody is allowed to try for the cool-down."""
        with self._lock:
            was_fine = self._closed_until is None
            self._closed_until = self._clock() + self._cooldown_s
        if was_fine:
            log.warning(
                "redis does not answer, going on without it: %s: %s: %s",
                self._duty,
                type(error).__name__,
                error,
            )
