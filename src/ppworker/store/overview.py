"""Read-only questions of people who run the system; each costs the live jobs, never the history.

Live states are counted exactly through their partial indexes. The completed, of which there may be
millions, are counted only while the table is small, else estimated from a sample of its pages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.circuit import State
from ppworker.store.db import Tx, by_name

MOST = 100_000
"""Failed jobs, live jobs and deltas are counted up to here; beyond it a count says "at least"."""
LOST_S = 60.0
"""Seconds after which a worker that is not seen is taken for lost."""
_SAMPLED_ROWS = 30_000
"""Rows that a sample of a large table looks at, about."""
_BYTES_PER_ROW = 250
"""A guess for a table that was never analysed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorStatus:
    """How one post-processor stands."""

    id: UUID
    dataset: str
    name: str
    runner: str
    enabled: bool
    paused_by_operator: bool
    circuit: State
    """Its pause by failures."""
    circuit_until: datetime | None
    """When that ends, or ended without an answer since; None when there is none."""
    circuit_reason: str
    """Why its model failed last; empty where nothing was noted."""
    due: int = 0
    """Pending, ready, and their time has come."""
    scheduled: int = 0
    """Pending and ready, but later: a retry that waits."""
    waiting: int = 0
    """Pending behind an earlier job of their item."""
    processing: int = 0
    completed: int = 0
    failed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    """The failed by reason."""
    oldest_due_s: float | None = None

    @property
    def pending(self) -> int:
        """As the public status counts them."""
        return self.due + self.scheduled + self.waiting

    @property
    def is_held(self) -> bool:
        """Whether its due jobs do not run, or one at a time as probes, whoever stopped them."""
        return not self.enabled or self.paused_by_operator or self.circuit is not State.CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker process in the register."""

    id: UUID
    host: str
    pid: int
    version: str
    slots: int
    draining: bool
    """Whether it finishes what it has and takes nothing new."""
    started_at: datetime
    seen_s: float
    """Seconds since it was last seen."""
    leases: int
    """Jobs it holds now."""

    @property
    def state(self) -> str:
        """live, draining or lost."""
        if self.seen_s > LOST_S:
            return "lost"
        return "draining" if self.draining else "live"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A number of rows, counted up to a bound."""

    rows: int
    is_bound: bool
    """Whether there may be more."""


_PROCESSORS = sa.text("""
WITH ready AS (
  SELECT post_processor_id AS id, count(*) FILTER (WHERE run_at <= now()) AS due,
    count(*) FILTER (WHERE run_at > now()) AS scheduled,
    CASE WHEN min(run_at) <= now() THEN extract(epoch FROM now() - min(run_at)) END AS oldest_due_s
  FROM post_processor_jobs WHERE status = 'pending' AND ready GROUP BY 1),
waiting AS (
  SELECT post_processor_id AS id, count(*) AS n FROM post_processor_jobs
  WHERE status = 'pending' AND NOT ready GROUP BY 1),
running AS (
  SELECT post_processor_id AS id, count(*) AS n FROM post_processor_jobs
  WHERE status = 'processing' GROUP BY 1)
SELECT p.id, d.name AS dataset, p.name, p.runner, p.enabled, p.paused_by_operator,
  CASE WHEN c.open_until IS NULL THEN 'closed' WHEN c.open_until > now() THEN 'open'
    ELSE 'half_open' END AS circuit,
  c.open_until AS circuit_until, coalesce(c.reason, '') AS circuit_reason,
  coalesce(ready.due, 0) AS due, coalesce(ready.scheduled, 0) AS scheduled,
  coalesce(waiting.n, 0) AS waiting, coalesce(running.n, 0) AS processing,
  ready.oldest_due_s::float8 AS oldest_due_s
FROM post_processors p JOIN datasets d ON d.id = p.dataset_id
LEFT JOIN ready ON ready.id = p.id LEFT JOIN waiting ON waiting.id = p.id
LEFT JOIN running ON running.id = p.id
LEFT JOIN post_processor_circuits c ON c.post_processor_id = p.id
WHERE p.deleted_at IS NULL ORDER BY d.name, p."order", p.id
""")


def read_processors(
    tx: Tx, *, with_completed: bool = True
) -> tuple[list[ProcessorStatus], bool, bool]:
    """Every post-processor with its jobs by state.

    Args:
        tx: the transaction.
        with_completed: whether the completed are counted too, which looks at a part of the history.

    Returns also whether the failed are only those up to ``MOST``, and whether the completed are
    an estimate.
    """
    reasons, is_bound = _failed(tx)
    completed, is_estimate = _completed(tx) if with_completed else ({}, False)
    found = []
    for row in tx.execute(_PROCESSORS):
        own = reasons.get(row.id, {})
        found.append(
            ProcessorStatus(
                **by_name(row) | {"circuit": State(row.circuit)},
                reasons=own,
                failed=sum(own.values()),
                completed=completed.get(row.id, 0),
            )
        )
    return found, is_bound, is_estimate


def _failed(tx: Tx) -> tuple[dict[UUID, dict[str, int]], bool]:
    rows = tx.execute(
        sa.text(
            "SELECT post_processor_id, reason, count(*) AS n FROM ("
            "SELECT post_processor_id, reason FROM post_processor_jobs "
            "WHERE status = 'failed' LIMIT :most) f GROUP BY 1, 2 ORDER BY 3 DESC, 2"
        ),
        {"most": MOST},
    ).all()
    found: dict[UUID, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row.post_processor_id, {})[row.reason or "unknown"] = row.n
    return found, sum(row.n for row in rows) >= MOST


def _completed(tx: Tx) -> tuple[dict[UUID, int], bool]:
    size: Any = tx.execute(
        sa.text(
            "SELECT reltuples, pg_relation_size(oid) AS bytes FROM pg_class "
            "WHERE oid = 'post_processor_jobs'::regclass"
        )
    ).one()
    rows = max(float(size.reltuples), size.bytes / _BYTES_PER_ROW)
    if rows <= MOST:
        return _by_processor(tx, "", 1.0), False
    share = _SAMPLED_ROWS / rows
    return _by_processor(tx, f"TABLESAMPLE SYSTEM ({share * 100:.6f})", share), True


def _by_processor(tx: Tx, sample: str, share: float) -> dict[UUID, int]:
    found = tx.execute(
        sa.text(
            "SELECT post_processor_id AS id, count(*) AS n "  # noqa: S608  the sample is a number
            f"FROM post_processor_jobs {sample} WHERE status = 'completed' GROUP BY 1"
        )
    )
    return {row.id: round(row.n / share) for row in found}


def read_workers(tx: Tx) -> list[WorkerStatus]:
    """Worker processes, the oldest first."""
    rows = tx.execute(
        sa.text(
            "SELECT w.id, w.host, w.pid, w.version, w.slots, w.draining, w.started_at, "
            "extract(epoch FROM clock_timestamp() - w.seen_at)::float8 AS seen_s, "
            "coalesce(l.n, 0) AS leases FROM workers w LEFT JOIN ("
            "SELECT lease_owner, count(*) AS n FROM post_processor_jobs "
            "WHERE status = 'processing' GROUP BY 1) l ON l.lease_owner = w.id "
            "ORDER BY w.started_at, w.id"
        )
    )
    return [WorkerStatus(**by_name(row)) for row in rows]


def read_clock(tx: Tx) -> datetime:
    """The database's clock."""
    found: datetime = tx.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    return found


def count_deltas(tx: Tx) -> tuple[Count, float | None]:
    """Label-stat deltas that are not folded yet, and the age of the oldest in seconds."""
    row = tx.execute(
        sa.text(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM label_stat_deltas LIMIT :most) d) AS n, "
            "(SELECT extract(epoch FROM now() - created_at)::float8 FROM label_stat_deltas "
            "ORDER BY id LIMIT 1) AS oldest_s"
        ),
        {"most": MOST},
    ).one()
    return Count(rows=row.n, is_bound=row.n >= MOST), row.oldest_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Jobs of a user that are not over."""

    pending: int
    processing: int
    is_bound: bool


def count_live(tx: Tx, user_id: UUID, dataset_id: UUID | None) -> Live:
    """Live jobs of a user, of one dataset or of all, counted up to ``MOST``."""
    row = tx.execute(
        sa.text(
            "SELECT count(*) FILTER (WHERE status = 'pending') AS pending, "
            "count(*) FILTER (WHERE status = 'processing') AS processing FROM ("
            "SELECT j.status FROM post_processor_jobs j "
            "JOIN post_processors p ON p.id = j.post_processor_id "
            "WHERE j.status IN ('pending', 'processing') AND p.user_id = :user "
            "AND (CAST(:dataset AS uuid) IS NULL OR p.dataset_id = :dataset) LIMIT :most) live"
        ),
        {"user": user_id, "dataset": dataset_id, "most": MOST},
    ).one()
    is_bound = row.pending + row.processing >= MOST
    return Live(pending=row.pending, processing=row.processing, is_bound=is_bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A post-processor whose pending jobs do not run."""

    dataset: str
    name: str
    enabled: bool
    paused_by_operator: bool
    circuit_until: datetime | None
    """When its pause by failures ends."""
    circuit_reason: str


def find_held(tx: Tx, user_id: UUID, dataset_id: UUID | None) -> list[Held]:
    """Post-processors of a user, of one dataset or of all, that hold ready jobs back."""
    rows = tx.execute(
        sa.text(
            "SELECT d.name AS dataset, p.name, p.enabled, p.paused_by_operator, "
            "c.open_until AS circuit_until, coalesce(c.reason, '') AS circuit_reason "
            "FROM post_processors p JOIN datasets d ON d.id = p.dataset_id "
            "LEFT JOIN post_processor_circuits c ON c.post_processor_id = p.id "
            "AND c.open_until > now() "
            "WHERE p.user_id = :user AND p.deleted_at IS NULL "
            "AND (CAST(:dataset AS uuid) IS NULL OR p.dataset_id = :dataset) "
            "AND (NOT p.enabled OR p.paused_by_operator OR c.open_until IS NOT NULL) "
            "AND EXISTS (SELECT 1 FROM post_processor_jobs j WHERE j.post_processor_id = p.id "
            "AND j.status = 'pending' AND j.ready) ORDER BY d.name, p.name"
        ),
        {"user": user_id, "dataset": dataset_id},
    )
    return [Held(**by_name(row)) for row in rows]


def count_failed(tx: Tx, user_id: UUID, dataset_id: UUID | None) -> Count:
    """Failed jobs of a user, of one dataset or of all, counted up to ``MOST``."""
    rows = tx.execute(
        sa.text(
            "SELECT count(*) FROM (SELECT 1 FROM post_processor_jobs j "
            "JOIN post_processors p ON p.id = j.post_processor_id "
            "WHERE j.status = 'failed' AND p.user_id = :user "
            "AND (CAST(:dataset AS uuid) IS NULL OR p.dataset_id = :dataset) LIMIT :most) failed"
        ),
        {"user": user_id, "dataset": dataset_id, "most": MOST},
    ).scalar_one()
    return Count(rows=rows, is_bound=rows >= MOST)
