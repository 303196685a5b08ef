"""What goes on this minute, for people who watch: attempts that just ended, long work under way,
messages that wait for a person.

Each question costs what happens, never what happened long ago.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import overview
from ppworker.store.db import Tx, by_name
from ppworker.store.overview import MOST, Count, ProcessorStatus, WorkerStatus

WINDOW_S = 10.0
"""Seconds over which rates are taken."""
_LOOKED_UP = 5_000
"""Attempts whose post-processor is looked up, about; busy times are judged by a shorter window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStatus:
    """An operation that is not over."""

    id: UUID
    kind: str
    dataset: str | None
    status: str
    done: int
    total: int | None
    attempts: int
    """Claims since its last progress."""
    age_s: float

    @property
    def percent(self) -> float | None:
        """How much of it is done, None while nobody knows how much there is."""
        return None if self.total is None else 100 * self.done / max(self.total, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Everything that a person who watches wants to see at once."""

    at: datetime
    """By the database's clock."""
    processors: list[ProcessorStatus]
    failed_is_bound: bool
    workers: list[WorkerStatus]
    ended: Mapping[str, float]
    """Attempts that ended, a second, by the cause that ``domain.job.EDGES`` names."""
    finished: Mapping[UUID, float]
    """Jobs completed a second by post-processor."""
    operations: list[OperationStatus]
    operations_live: int
    deltas: Count
    oldest_delta_s: float | None
    dead_letters: Count


def read_activity(tx: Tx, *, timeout_s: float, most_operations: int = 50) -> Activity:
    """Read it all, in a transaction of its own.

    Args:
        tx: the transaction.
        timeout_s: the database gives up a statement that takes longer.
        most_operations: so many of them are named.
    """
    # However stale the planner's statistics are: whoever watches must never read a history.
    tx.execute(
        sa.text(
            "SELECT set_config(name, value, true) FROM (VALUES ('enable_seqscan', 'off'), "
            "('jit', 'off'), ('statement_timeout', :ms)) AS s(name, value)"
        ),
        {"ms": str(round(timeout_s * 1000))},
    )
    processors, failed_is_bound, _ = overview.read_processors(tx, with_completed=False)
    ended = count_ended(tx, seconds=WINDOW_S)
    window_s = WINDOW_S * min(1.0, _LOOKED_UP / max(sum(ended.values()), 1))
    finished = count_finished(tx, seconds=window_s)
    operations, operations_live = read_operations(tx, limit=most_operations)
    deltas, oldest_delta_s = overview.count_deltas(tx)
    return Activity(
        at=overview.read_clock(tx),
        processors=processors,
        failed_is_bound=failed_is_bound,
        workers=overview.read_workers(tx),
        ended={cause: n / WINDOW_S for cause, n in ended.items()},
        finished={id_: n / window_s for id_, n in finished.items()},
        operations=operations,
        operations_live=operations_live,
        deltas=deltas,
        oldest_delta_s=oldest_delta_s,
        dead_letters=count_dead_letters(tx),
    )


def count_ended(tx: Tx, *, seconds: float) -> dict[str, int]:
    """Attempts that ended in the last seconds, by cause."""
    rows = tx.execute(
        sa.text(
            "SELECT cause, count(*) AS n FROM job_attempts "
            "WHERE ended_at > now() - make_interval(secs => :s) GROUP BY 1 ORDER BY 2 DESC, 1"
        ),
        {"s": seconds},
    )
    return {row.cause: row.n for row in rows}


def count_finished(tx: Tx, *, seconds: float) -> dict[UUID, int]:
    """Jobs completed in the last seconds, by post-processor."""
    rows = tx.execute(
        sa.text(
            "SELECT j.post_processor_id AS id, count(*) AS n FROM job_attempts a "
            "JOIN post_processor_jobs j ON j.id = a.job_id "
            "WHERE a.ended_at > now() - make_interval(secs => :s) AND a.cause = 'finished' "
            "GROUP BY 1"
        ),
        {"s": seconds},
    )
    return {row.id: row.n for row in rows}


def read_operations(tx: Tx, *, limit: int) -> tuple[list[OperationStatus], int]:
    """Operations that are not over, in the order in which they are due, and how many there are."""
    rows = tx.execute(
        sa.text(
            "SELECT o.id, o.kind, d.name AS dataset, o.status, o.done, o.total, o.attempts, "
            "extract(epoch FROM clock_timestamp() - o.created_at)::float8 AS age_s "
            "FROM operations o LEFT JOIN datasets d ON d.id = o.dataset_id "
            "WHERE o.status IN ('pending', 'processing') ORDER BY o.run_at, o.id LIMIT :limit"
        ),
        {"limit": limit},
    )
    found = [OperationStatus(**by_name(row)) for row in rows]
    if len(found) < limit:
        return found, len(found)
    live: int = tx.execute(
        sa.text("SELECT count(*) FROM operations WHERE status IN ('pending', 'processing')")
    ).scalar_one()
    return found, live


def count_dead_letters(tx: Tx) -> Count:
    """Messages that could not be followed and were not replayed, counted up to ``MOST``."""
    rows = tx.execute(
        sa.text(
            "SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE replayed_at IS NULL "
            "LIMIT :most) d"
        ),
        {"most": MOST},
    ).scalar_one()
    return Count(rows=rows, is_bound=rows >= MOST)
