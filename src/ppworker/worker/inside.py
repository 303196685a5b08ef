"""Who is in the models that share this process: they die together, and none can be stopped."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import count
from uuid import UUID

_LOOK_S = 0.2
"""Seconds between looks of a waiting slot whether the process stops."""


class Inside:
    """Lets batches in together, suspects alone, and tells which of them hang. Safe for threads.

    Whoever dies alone is known to be the cause.

    Args:
        stopping: set when nobody shall wait any longer.
        patience_s: seconds that suspects wait for those inside to come out; newcomers wait too.
        rest_s: seconds after a wait in vain in which nobody waits again.
        hangs_after_s: seconds past its deadline after which a batch is called hung; by then a sweep
            should have moved its jobs on.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        stopping: threading.Event,
        *,
        patience_s: float = 5.0,
        rest_s: float = 30.0,
        hangs_after_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stopping = stopping
        self._patience_s = patience_s
        self._rest_s = rest_s
        self._hangs_after_s = hangs_after_s
        self._clock = clock
        self._changed = threading.Condition()
        self._together = 0
        self._is_taken = False  # by one who is alone, or waits to be
        self._rests_until = 0.0
        self._numbers = count()
        self._watched: dict[int, tuple[float, frozenset[UUID]]] = {}

    @contextmanager
    def together(self) -> Iterator[bool]:
        """Be inside beside others; waits while somebody is alone in there. The value says whether
        that was to be had before the process stops."""
        with self._changed:
            while self._is_taken and not self._stopping.is_set():
                self._changed.wait(_LOOK_S)
            is_inside = not self._is_taken
            self._together += is_inside
        try:
            yield is_inside
        finally:
            with self._changed:
                self._together -= is_inside
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Be inside with nobody else; the value says whether that was to be had."""
        is_alone = self._empty()
        try:
            yield is_alone
        finally:
            if is_alone:
                self._free()

    def _empty(self) -> bool:
        with self._changed:
            until = self._clock() + self._patience_s
            if self._is_taken or self._clock() < self._rests_until:
                return False
            self._is_taken = True
            while self._together and self._clock() < until and not self._stopping.is_set():
                self._changed.wait(_LOOK_S)
            if not self._together:
                return True
            self._rests_until = self._clock() + self._rest_s
        self._free()
        return False

    def _free(self) -> None:
        with self._changed:
            self._is_taken = False
            self._changed.notify_all()

    @contextmanager
    def watched(self, jobs: Collection[UUID], *, deadline: float) -> Iterator[None]:
        """Note that a model is asked about these jobs; ``deadline`` by the clock."""
        number = next(self._numbers)
        with self._changed:
            self._watched[number] = (deadline + self._hangs_after_s, frozenset(jobs))
        try:
            yield
        finally:
            with self._changed:
                del self._watched[number]

    def hung(self) -> list[frozenset[UUID]]:
        """The batches, as ids of their jobs, that are long past their deadline."""
        now = self._clock()
        with self._changed:
            return [jobs for ends_at, jobs in self._watched.values() if ends_at <= now]
