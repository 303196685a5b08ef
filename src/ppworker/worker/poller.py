"""Asks the database who is due, on a jittered timer; the way of work while redis is away."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from uuid import UUID

from ppworker.errors import StoreUnavailable

log = logging.getLogger(__name__)

_GAP_S = 0.02
"""Least seconds between two polls, however many ask for one."""
_LEFTOVER_GAP_S = 0.25
"""The same while more post-processors are due than slots are idle."""
_LONGEST_BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True)
class Poll:
    """One look at the job table.

    Attributes:
        due: post-processors with jobs to claim now, the one to serve first in front.
        next_due_s: seconds until the next job becomes due, None when none waits.
        datasets: the dataset of each post-processor; one that is not named is its own.
    """

    due: Sequence[UUID]
    next_due_s: float | None = None
    datasets: Mapping[UUID, UUID] = field(default_factory=dict)


class Poller:
    """Decides when to look and whom to serve. One thread polls; any may call ``soon``."""

    def __init__(
        self,
        ask: Callable[[], Poll],
        *,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Poll ``ask`` about every ``interval_s`` seconds, at once at first."""
        self._ask = ask
        self._interval_s = interval_s
        self._clock = clock
        self._next_at = clock()
        self._earliest_at = -inf
        self._is_wanted = False
        self._failures = 0
        self._served_at: dict[UUID, float] = {}

    def soon(self) -> None:
        """Look as soon as a slot is idle, instead of at the next tick."""
        self._is_wanted = True

    def served(self, post_processor_id: UUID) -> None:
        """Note that a post-processor has its turn, whoever called it: others come before it now."""
        self._served_at[post_processor_id] = self._clock()

    def seconds_left(self) -> float:
        """Seconds until the next look; 0 when it is time."""
        at = self._next_at
        if self._is_wanted and not self._failures:
            at = min(at, self._earliest_at)
        return max(0.0, at - self._clock())

    def due(self, limit: int, running: Counter[UUID]) -> list[UUID]:
        """Look now and name at most ``limit`` post-processors to start.

        Datasets take turns, however many post-processors they have: those with the fewest slots in
        this process come first, and among them those whose last turn here is longest ago, or the
        one whose jobs wait longest would have every turn until its backlog is gone. So do the
        post-processors of a dataset. Each is named once: a deep backlog recruits its further slots
        by itself. A database that is away is logged once and asked less often.
        """
        self._is_wanted = False  # before asking: who asks meanwhile is owed another look
        try:
            poll = self._ask()
        except StoreUnavailable as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001  polling is what work depends on: it outlives a bug
            return self._failed(error)
        if self._failures:
            log.info("polling works again after %d failures", self._failures)
            self._failures = 0
        wait_s = self._interval_s * random.uniform(0.5, 1.5)  # noqa: S311  spreads, hides nothing
        if poll.next_due_s is not None:
            wait_s = min(wait_s, poll.next_due_s)
        if len(poll.due) > limit:
            wait_s = min(wait_s, _LEFTOVER_GAP_S)
        self._earliest_at = self._clock() + _GAP_S
        self._next_at = self._earliest_at + max(0.0, wait_s - _GAP_S)
        self._served_at = {id_: at for id_, at in self._served_at.items() if id_ in poll.due}
        return self._in_turn(poll, limit, running)

    def _in_turn(self, poll: Poll, limit: int, running: Counter[UUID]) -> list[UUID]:
        """At most ``limit`` of those due, one by one, each with what the ones before take."""
        dataset_of = poll.datasets
        busy: Counter[UUID] = Counter()
        for id_, slots in running.items():
            busy[dataset_of.get(id_, id_)] += slots
        served: dict[UUID, float] = {}
        for id_, at in self._served_at.items():
            dataset = dataset_of.get(id_, id_)
            served[dataset] = max(served.get(dataset, -inf), at)

        def turn(id_: UUID) -> tuple[float, ...]:
            dataset = dataset_of.get(id_, id_)
            of_dataset = busy[dataset], served.get(dataset, -inf)
            return (*of_dataset, running[id_], self._served_at.get(id_, -inf))

        waiting = list(poll.due)
        chosen: list[UUID] = []
        while waiting and len(chosen) < limit:
            first = min(waiting, key=turn)
            waiting.remove(first)
            chosen.append(first)
            busy[dataset_of.get(first, first)] += 1
        return chosen

    def _failed(self, error: Exception) -> list[UUID]:
        if not self._failures:
            is_bug = not isinstance(error, StoreUnavailable)
            log.warning("polling failed, trying again: %s", error, exc_info=is_bug)
        self._failures += 1
        wait_s = min(self._interval_s * 2.0 ** min(self._failures - 1, 8), _LONGEST_BACKOFF_S)
        self._next_at = self._clock() + wait_s * random.uniform(0.5, 1.0)  # noqa: S311
        return []
