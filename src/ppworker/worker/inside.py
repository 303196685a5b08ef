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
    """The batches inside, each with its deadline. Safe for threads.

    Args:
        hangs_after_s: seconds past its deadline after which a batch is called hung; by then a sweep
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
    def watched(self, jobs: Collection[UUID], *, deadline: float) -> Iterator[None]:
        """Note that a model is asked about these jobs; ``deadline`` by the clock."""
        number = next(self._numbers)
        with self._lock:
            self._watched[number] = (deadline + self._hangs_after_s, frozenset(jobs))
        try:
            yield
        finally:
            with self._lock:
                del self._watched[number]

    def hung(self) -> list[frozenset[UUID]]:
        """The batches, as ids of their jobs, that are long past their deadline."""
        now = self._clock()
        with self._lock:
            return [jobs for ends_at, jobs in self._watched.values() if ends_at <= now]
