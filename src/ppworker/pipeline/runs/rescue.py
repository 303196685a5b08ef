"""Takes jobs from attempts that are dead or hung, and repairs what a missed step left behind."""

from functools import partial
from uuid import UUID

from ppworker.domain.events import Event
from ppworker.domain.job import DEADLINE, LEASE_EXPIRED, Outcome, Status
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.runs import facts, finish
from ppworker.store import items, jobs, model_entries
from ppworker.store.db import Tx

BATCH = 500
"""Most jobs one transaction rescues."""


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


def repair_ready(deps: Deps) -> int:
    """Make pending jobs ready that a missed step left waiting for nothing.

    Returns how many post-processors got work by it.
    """
    with deps.db.look() as tx:
        stuck = jobs.find_stuck(tx, limit=BATCH)
    if not stuck:
        return 0

    def work(tx: Tx) -> set[UUID]:
        locked = items.lock_items(tx, stuck, skip_locked=True)
        return jobs.recompute_ready(tx, list(locked))

    woken = deps.db.transact(work)
    deps.hint(woken)
    return len(woken)
