"""Remembers where looking was in vain, so that a flood of hints does not become one of queries."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from uuid import UUID

GAP_S = 0.1
"""Least seconds between two looks at a post-processor that had nothing to do several times."""
_PATIENCE = 4
"""Looks in vain, one soon after the other, before the next one has to wait: a batch that recruits
a second slot, or two workers that follow one upload, look in vain now and then."""
_MANY = 256


@dataclass(slots=True)
class _Vain:
    times: int = 0
    at: float = 0.0


class Looks:
    """How often looking at a post-processor was in vain of late. Safe for threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._vain: dict[UUID, _Vain] = {}

    def wait_s(self, post_processor_id: UUID) -> float:
        """Seconds for which a hint has to wait; 0 when the caller is to begin with it now."""
        with self._lock:
            vain, now = self._vain.get(post_processor_id), self._clock()
            if vain is None or vain.times < _PATIENCE:
                return 0.0
            left_s = vain.at + GAP_S - now
            if left_s <= 0:
                vain.at = now  # for this caller alone: further hints wait for what it finds
            return max(0.0, left_s)

    def ended(self, post_processor_id: UUID, jobs: int) -> None:
        """Note that a turn ended, and how many jobs it had."""
        with self._lock:
            if jobs:
                self._vain.pop(post_processor_id, None)
                return
            now = self._clock()
            if len(self._vain) >= _MANY:
                self._vain = {id_: v for id_, v in self._vain.items() if now - v.at < 2 * GAP_S}
            vain = self._vain.setdefault(post_processor_id, _Vain())
            vain.times = vain.times + 1 if now - vain.at < 2 * GAP_S else 1
            vain.at = now

    def has_more(self, post_processor_id: UUID) -> None:
        """Note that there is more to do, so that the next hint is followed at once."""
        with self._lock:
            self._vain.pop(post_processor_id, None)
