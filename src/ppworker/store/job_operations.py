"""What people ask of the job table: look, retry, cancel. Items are locked by the caller first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.jobs import NewJob, insert_jobs

_DETAILS = """
SELECT j.id, p.name AS post_processor, j.post_processor_id, j.item_id, i.name AS item,
  j.version_id, j.status, j.ready, j."order", j.attempts, j.max_attempts, j.lease_token,
  j.reason, j.error, j.dropped, j.crash_count, j.run_at, j.created_at, j.started_at,
  j.completed_at, extract(epoch FROM j.completed_at - j.started_at)::float8 AS seconds
FROM post_processor_jobs j
JOIN post_processors p ON p.id = j.post_processor_id
JOIN dataset_items i ON i.id = j.item_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A failed job that is pending again."""

    id: UUID
    item_id: UUID
    post_processor_id: UUID
    post_processor: str
    lease_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """A live job that was ended."""

    id: UUID
    item_id: UUID
    post_processor: str
    attempts: int
    lease_token: int
    was: str


def find_job(tx: Tx, user_id: UUID, job_id: UUID) -> sa.Row[Any] | None:
    """One job of the user with the names of its post-processor and item."""
    return tx.execute(
        sa.text(_DETAILS + "WHERE j.id = :id AND j.user_id = :user"),
        {"id": job_id, "user": user_id},
    ).one_or_none()


def list_jobs(
    tx: Tx,
    user_id: UUID,
    *,
    dataset_id: UUID | None = None,
    item_id: UUID | None = None,
    post_processor_id: UUID | None = None,
    status: str | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> Sequence[sa.Row[Any]]:
    """Jobs of the user by id, behind ``after``, that match every filter given."""
    filters = {
        "p.dataset_id = :dataset": ("dataset", dataset_id),
        "j.item_id = :item": ("item", item_id),
        "j.post_processor_id = :processor": ("processor", post_processor_id),
        "j.status = :status": ("status", status),
        "j.id > :after": ("after", after),
    }
    given = {sql: pair for sql, pair in filters.items() if pair[1] is not None}
    where = " AND ".join(["j.user_id = :user", *given])
    return tx.execute(
        sa.text(f"{_DETAILS} WHERE {where} ORDER BY j.id LIMIT :limit"),
        {"user": user_id, "limit": limit, **dict(given.values())},
    ).all()


def list_attempts(tx: Tx, job_id: UUID) -> Sequence[sa.Row[Any]]:
    """Ended attempts of a job, oldest first."""
    return tx.execute(
        sa.text(
            "SELECT attempt, lease_token, worker_id, started_at, ended_at, cause, reason, error, "
            "extract(epoch FROM ended_at - started_at)::float8 AS seconds "
            "FROM job_attempts WHERE job_id = :id ORDER BY lease_token"
        ),
        {"id": job_id},
    ).all()


def find_failed(
    tx: Tx,
    user_id: UUID,
    *,
    dataset_id: UUID | None,
    post_processor_id: UUID | None,
    reason: str | None,
    after: UUID | None,
    limit: int,
) -> list[tuple[UUID, UUID]]:
    """Failed jobs of the user as (job, item), by id behind ``after``."""
    filters = {
        "p.dataset_id = :dataset": ("dataset", dataset_id),
        "j.post_processor_id = :processor": ("processor", post_processor_id),
        "j.reason = :reason": ("reason", reason),
        "j.id > :after": ("after", after),
    }
    given = {sql: pair for sql, pair in filters.items() if pair[1] is not None}
    where = " AND ".join(["j.user_id = :user", "j.status = 'failed'", *given])
    rows = tx.execute(
        sa.text(
            "SELECT j.id, j.item_id FROM post_processor_jobs j "  # noqa: S608  constants above
            "JOIN post_processors p ON p.id = j.post_processor_id "
            f"WHERE {where} ORDER BY j.id LIMIT :limit"
        ),
        {"user": user_id, "limit": limit, **dict(given.values())},
    )
    return [(row.id, row.item_id) for row in rows]


# The newest failed job of a key, unless one of that key lives: the unique index would refuse it.
_RESTART = """
WITH wanted AS MATERIALIZED (
  SELECT j.id, j.item_id, j.version_id, j.post_processor_id, j.created_at
  FROM post_processor_jobs j {source} ORDER BY j.id FOR UPDATE OF j),
newest AS (
  SELECT DISTINCT ON (w.item_id, w.version_id, w.post_processor_id) w.id FROM wanted w
  WHERE NOT EXISTS (SELECT 1 FROM post_processor_jobs l
    WHERE l.item_id = w.item_id AND l.version_id = w.version_id
      AND l.post_processor_id = w.post_processor_id AND l.status IN ('pending','processing'))
  ORDER BY w.item_id, w.version_id, w.post_processor_id, w.created_at DESC, w.id DESC)
UPDATE post_processor_jobs j SET
  status = 'pending', ready = false, attempts = 0, crash_count = 0, reason = '', error = '',
  dropped = NULL, run_at = clock_timestamp(), started_at = NULL, completed_at = NULL,
  max_attempts = p.max_attempts
FROM newest n, post_processors p
WHERE j.id = n.id AND j.status = 'failed' AND p.id = j.post_processor_id
RETURNING j.id, j.item_id, j.post_processor_id, p.name AS post_processor, j.lease_token
"""
_RETRY = sa.text(_RESTART.format(source="WHERE j.id = ANY(:ids) AND j.status = 'failed'"))
_REVIVE = sa.text(
    _RESTART.format(
        source="JOIN post_processor_jobs e ON e.id = ANY(:ids) AND e.item_id = j.item_id "
        'AND e.version_id = j.version_id AND e."order" < j."order" '
        "WHERE j.status = 'failed' AND j.reason IN ('predecessor_failed', 'no_input')"
    )
)


def retry(tx: Tx, ids: Sequence[UUID]) -> list[Retried]:
    """Make failed jobs pending with a fresh budget; ``recompute_ready`` must follow."""
    return [Retried(**row._mapping) for row in tx.execute(_RETRY, {"ids": list(ids)})]  # noqa: SLF001


def revive_successors(tx: Tx, ids: Sequence[UUID]) -> list[Retried]:
    """Retry later jobs of the same items that failed only because of these."""
    return [Retried(**row._mapping) for row in tx.execute(_REVIVE, {"ids": list(ids)})]  # noqa: SLF001


def rerun_processing_successors(tx: Tx, ids: Sequence[UUID]) -> None:
    """Ask processing later jobs of the same items to run again after these."""
    tx.execute(
        sa.text(
            "UPDATE post_processor_jobs j SET rerun_requested = true "
            "FROM post_processor_jobs e WHERE e.id = ANY(:ids) AND e.item_id = j.item_id "
            'AND e.version_id = j.version_id AND e."order" < j."order" '
            "AND j.status = 'processing'"
        ),
        {"ids": list(ids)},
    )


def insert_successors(tx: Tx, ids: Sequence[UUID]) -> int:
    """Plan completed later post-processors of the same items anew; returns how many."""
    rows = tx.execute(
        sa.text(
            "SELECT DISTINCT ON (j.item_id, j.version_id, j.post_processor_id) "
            'j.post_processor_id, j.item_id, j.version_id, j.user_id, j."order", p.max_attempts '
            "FROM post_processor_jobs e JOIN post_processor_jobs j ON e.item_id = j.item_id "
            'AND e.version_id = j.version_id AND e."order" < j."order" '
            "JOIN post_processors p ON p.id = j.post_processor_id "
            "AND p.enabled AND p.deleted_at IS NULL "
            "WHERE e.id = ANY(:ids) AND j.status = 'completed'"
        ),
        {"ids": list(ids)},
    )
    return insert_jobs(
        tx,
        [NewJob(id=new_id(), ready=False, priority=1, **row._mapping) for row in rows],  # noqa: SLF001
    )


_CANCEL = sa.text("""
WITH live AS MATERIALIZED (
  SELECT j.* FROM post_processor_jobs j
  WHERE j.id = ANY(:ids) AND j.status IN ('pending','processing') ORDER BY j.id FOR UPDATE),
history AS (
  INSERT INTO job_attempts
    (job_id, lease_token, attempt, worker_id, started_at, ended_at, cause, reason, error)
  SELECT id, lease_token, attempts, lease_owner, started_at, clock_timestamp(), 'cancelled',
    'cancelled', '' FROM live WHERE status = 'processing')
UPDATE post_processor_jobs j SET
  status = 'failed', reason = 'cancelled', error = 'cancelled by a person', ready = false,
  lease_owner = NULL, lease_expires_at = NULL, batch_id = NULL, deadline_at = NULL,
  rerun_requested = false, completed_at = clock_timestamp()
FROM live WHERE j.id = live.id
RETURNING j.id, j.item_id, j.attempts, j.lease_token, live.status AS was,
  (SELECT p.name FROM post_processors p WHERE p.id = j.post_processor_id) AS post_processor
""")


def cancel(tx: Tx, ids: Sequence[UUID]) -> list[Cancelled]:
    """End live jobs as failed; a running attempt loses its lease."""
    return [Cancelled(**row._mapping) for row in tx.execute(_CANCEL, {"ids": list(ids)})]  # noqa: SLF001
