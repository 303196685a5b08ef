"""Which batches are in the models that share this process, and which of them hang.

No thread can be stopped from outside, so whoever finds one that hangs ends the process.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import count
from uuid import UUID


class Inside:
    """The batches inside, each with its limit. Safe for threads.

    Args:
        hangs_after_s: seconds past its limit after which a batch is called hung; by then a sweep
            should have moved its jobs on.
        clock: seconds that only grow.
    """

    def __init__(
        self, *, hangs_after_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hangs_after_s = hangs_after_s
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = count()
        self._watched: dict[int, tuple[float, frozenset[UUID]]] = {}

    @contextmanager
    def watched(self, jobs: Collection[UUID], *, limit_s: float) -> Iterator[None]:
        """Note that a model is asked about these jobs, which may take ``limit_s`` seconds.

        They count from now: what came before, such as waiting for PostgreSQL, is no model's fault.
        """
        number = next(self._numbers)
        hangs_at = self._clock() + limit_s + self._hangs_after_s
        with self._lock:
            self._watched[number] = (hangs_at, frozenset(jobs))
        try:
            yield
        finally:
            with self._lock:
                del self._watched[number]

    def hung(self) -> list[frozenset[UUID]]:
        """The batches, as ids of their jobs, that are long past their limit."""
        now = self._clock()
        with self._lock:
            return [jobs for hangs_at, jobs in self._watched.values() if hangs_at <= now]
