"""Keeps the tables small: removes what is old, a little at a time, as a sweep.

A round goes once through everything that ages. Each sweep does as much of it as fits into its
time, and the next one goes on there, so that neither a claim nor another sweep ever waits long;
when a round is through, the next one begins after a rest.
"""

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from uuid import UUID

from ppworker.domain.measurements import JobsPruned
from ppworker.pipeline.deps import Deps
from ppworker.store import attempts, retention
from ppworker.store.db import Tx
from ppworker.store.retention import FIRST, Over, Walked

MOST = 1_000
"""Rows that one transaction looks at, at most."""
_LEAST = 50
_SLOW_S = 0.2
"""Seconds after which a transaction is followed by a smaller one."""

Prune = Callable[[Tx, UUID, int], Walked]
"""Removes some of what lies behind a key, looking at so many rows at most."""


class Retention:
    """One process's way through what ages; safe in any number of processes.

    Args:
        deps: the collaborators.
        budget_s: seconds that one sweep takes, and at most one batch more.
        rest_s: seconds between the end of a round and the beginning of the next.
    """

    def __init__(self, deps: Deps, *, budget_s: float, rest_s: float) -> None:
        self._deps = deps
        self._budget_s = budget_s
        self._rest_s = rest_s
        self._round: Iterator[int | None] | None = None
        self._next_at = 0.0

    def sweep(self) -> int:
        """Go on with the round for a while; returns how many rows went, without their histories.

        Raises:
            StoreUnavailable: PostgreSQL is away; the next sweep begins a new round.
        """
        gone, until = 0, time.monotonic() + self._budget_s
        if self._round is None and time.monotonic() < self._next_at:
            return 0
        under_way, self._round = self._round or removals(self._deps), None
        for removed in under_way:
            gone += removed or 0
            if removed is None or time.monotonic() >= until:
                self._round = under_way  # to go on; after an error there is none
                return gone
        self._next_at = time.monotonic() + self._rest_s
        return gone


def removals(deps: Deps) -> Iterator[int | None]:
    """Remove everything that is too old, batch by batch.

    Yields after each batch: how many rows went, or None when another process was at it, and the
    same batch will be tried again.
    """
    settings = deps.settings
    with deps.db.look() as tx:
        now = retention.read_clock(tx)
    kept: tuple[tuple[Over, float], ...] = (
        ("completed", settings.keep_completed_s),
        ("failed", settings.keep_failed_s),
    )
    for status, keep_s in kept:
        if keep_s:
            yield from _ended(deps, status, now - timedelta(seconds=keep_s))
    if settings.keep_keys_s:
        before = now - timedelta(seconds=settings.keep_keys_s)
        yield from _counted(deps, lambda tx, n: retention.prune_keys(tx, before, limit=n))
    yield from _counted(deps, lambda tx, n: attempts.prune(tx, most=n))


def _ended(deps: Deps, status: Over, before: datetime) -> Iterator[int | None]:
    """Remove what ended in a status before a time."""
    with deps.db.look() as tx:
        owners = retention.find_owners(tx, status, before)
    for owner in owners:
        for gone in _walked(deps, _jobs(owner, status, before)):
            if gone:
                deps.emit([JobsPruned(status=status, jobs=gone)])
            yield gone
    yield from _walked(
        deps,
        lambda tx, after, n: retention.prune_operations(tx, status, before, after=after, limit=n),
    )
    replayed = status == "completed"
    yield from _walked(
        deps,
        lambda tx, after, n: retention.prune_letters(
            tx, before, replayed=replayed, after=after, limit=n
        ),
    )


def _jobs(owner: UUID, status: Over, before: datetime) -> Prune:
    return lambda tx, after, n: retention.prune_jobs(
        tx, owner, status, before, after=after, limit=n
    )


def _counted(deps: Deps, prune: Callable[[Tx, int], int]) -> Iterator[int | None]:
    """Walk what is removed from its front."""

    def walk(tx: Tx, _after: UUID, limit: int) -> Walked:
        gone = prune(tx, limit)
        return Walked(gone=gone, last=FIRST if gone == limit else None)

    return _walked(deps, walk)


def _walked(deps: Deps, prune: Prune) -> Iterator[int | None]:
    """Walk to the end in transactions that stay short, whatever a row costs here."""
    after: UUID | None = FIRST
    limit = MOST
    while after is not None:
        started = time.monotonic()
        place, most = after, limit
        walked = deps.db.transact(
            lambda tx: prune(tx, place, most) if retention.try_lock(tx) else None  # noqa: B023  used at once
        )
        if walked is None:
            yield None
            continue
        took_s = time.monotonic() - started
        limit = max(_LEAST, limit // 2) if took_s > _SLOW_S else min(MOST, limit * 2)
        after = walked.last
        yield walked.gone
