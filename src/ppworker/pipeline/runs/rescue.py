"""Takes jobs from attempts that are dead or hung, and repairs what a missed step left behind."""

import time
from functools import partial
from math import inf
from uuid import UUID

from ppworker.domain.events import Event
from ppworker.domain.job import DEADLINE, LEASE_EXPIRED, Outcome, Status
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import facts, finish
from ppworker.store import items, jobs, model_entries, waiting
from ppworker.store.db import Tx

BATCH = 500
"""Most jobs one transaction rescues, and items one step of the repair looks at."""


def rescue(deps: Deps) -> int:
    """Move processing jobs on whose lease or deadline is over; returns how many.

    Safe to run anywhere, any number of times: candidates are read without locks, their items are
    locked (those that somebody holds are left for the next sweep), then the jobs, which are
    checked again under the lock. Those that were in a model which died with its worker, or hung in
    it, become suspects: they run in a process of their own, where a death is theirs alone.
    """
    total = 0
    while True:
        with deps.db.look() as tx:
            candidates = jobs.find_expired(tx, limit=BATCH)
        if not candidates:
            return total
        events, woken = deps.db.transact(partial(_rescue, candidates=candidates))
        deps.emit(events)
        deps.hint(woken)
        total += len(events)
        if len(candidates) < BATCH or not events:
            return total


def _rescue(tx: Tx, candidates: list[tuple[UUID, UUID]]) -> tuple[list[Event], set[UUID]]:
    locked = items.lock_items(tx, [item_id for _, item_id in candidates], skip_locked=True)
    held = jobs.lock_expired(tx, [id_ for id_, item_id in candidates if item_id in locked])
    names = jobs.names_of(tx, {job.post_processor_id for job in held})
    moves = [
        jobs.Move(
            job=job,
            transition=finish.decide_held(job, _EXPIRED if job.lease_expired else _HUNG),
        )
        for job in held
    ]
    jobs.move(tx, moves, have_left=False)
    # Not before the last of a batch was moved: this one may have got some of it only.
    model_entries.leave(tx, {job.batch_id for job in held if job.in_model})
    failed = [m.job.id for m in moves if m.transition.to is Status.FAILED]
    stopped = jobs.stop_successors(tx, failed)
    woken = jobs.recompute_ready(tx, [job.item_id for job in held])
    events: list[Event] = [
        facts.moved_event(names.get(m.job.post_processor_id, ""), m.job, m.transition)
        for m in moves
    ]
    return [*events, *facts.stopped_events(stopped)], woken


_EXPIRED = Outcome(
    kind="lease_expired",
    code=LEASE_EXPIRED,
    message="its lease ran out: the worker died or lost the database",
)
_HUNG = Outcome(kind="lease_expired", code=DEADLINE, message="its deadline passed: the model hung")


class Repair:
    """One process's walk along the jobs that wait; safe in any number of processes.

    A sweep walks for a while and the next one goes on there, so that a million jobs that wait
    rightly cost little; of all processes one walks at a time.

    Args:
        deps: the collaborators.
        budget_s: seconds that one sweep takes, and at most one step more.
    """

    def __init__(self, deps: Deps, *, budget_s: float = inf) -> None:
        self._deps = deps
        self._budget_s = budget_s
        self._after = waiting.FIRST

    def sweep(self) -> int:
        """Make pending jobs ready that a missed step left waiting for nothing.

        Returns how many post-processors got work by it.
        """
        woken, until = set[UUID](), time.monotonic() + self._budget_s
        while walked := self._deps.db.transact(self._step):
            found, last = walked
            self._deps.hint(found)
            woken |= found
            self._after = last or waiting.FIRST
            if last is None or time.monotonic() >= until:
                break
        return len(woken)

    def _step(self, tx: Tx) -> tuple[set[UUID], UUID | None] | None:
        if not waiting.try_lock(tx):
            return None
        stuck, last = waiting.find_stuck(tx, after=self._after, limit=BATCH)
        locked = items.lock_items(tx, stuck, skip_locked=True) if stuck else {}
        return jobs.recompute_ready(tx, list(locked)) if locked else set(), last
