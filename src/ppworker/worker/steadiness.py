"""Tells whether the database has been there for long enough to call a lease abandoned.

While PostgreSQL is away nobody can renew a lease. When it comes back, whoever looks first finds
leases of living workers expired, whose answers wait for just that moment. So nobody rescues before
it has seen the database answer for one whole lease: in that time every living worker that can reach
it has renewed its leases.
"""

import time
from collections.abc import Callable
from threading import Lock

_MOST_GAP = 0.5
"""Longest time between two answers, in leases, that is no interruption. A lease is renewed each
third of its life at the latest, so none can run out in an interruption of half a life."""


class Steadiness:
    """How long the database has answered this process without an interruption. Safe for threads.

    Args:
        lease_s: life of a lease in seconds.
        clock: seconds that only grow.
    """

    def __init__(self, lease_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._lock = Lock()
        self._since: float | None = None
        self._last = 0.0

    def note(self, *, answered: bool) -> None:
        """Note the end of a heartbeat."""
        with self._lock:
            now = self._clock()
            if not answered:
                self._since = None
            elif self._since is None or now - self._last > _MOST_GAP * self._lease_s:
                self._since = now
            self._last = now

    def lasts_a_lease(self) -> bool:
        """Whether every living worker has had the time to renew its leases."""
        with self._lock:
            now = self._clock()
            if self._since is None or now - self._last > _MOST_GAP * self._lease_s:
                return False
            return now - self._since >= self._lease_s
