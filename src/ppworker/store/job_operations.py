"""What people ask of the job table: look, retry, cancel. Items are locked by the caller first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx, by_name
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
JOIN dataset_versions v ON v.id = j.version_id AND v.deleted_at IS NULL
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
    age_s: float
    ran_s: float | None
    """Time since the claim, of one that was processing."""


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
    reason: str | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> Sequence[sa.Row[Any]]:
    """Jobs of the user by id, behind ``after``, that match every filter given."""
    filters = {
        "p.dataset_id = :dataset": ("dataset", dataset_id),
        "j.item_id = :item": ("item", item_id),
        "j.post_processor_id = :processor": ("processor", post_processor_id),
        "j.status = :status": ("status", status),
        "j.reason = :reason": ("reason", reason),
        "j.id > :after": ("after", after),
    }
    given = {sql: pair for sql, pair in filters.items() if pair[1] is not None}
    where = " AND ".join(["j.user_id = :user", *given])
    return tx.execute(
        sa.text(f"{_DETAILS} WHERE {where} ORDER BY j.id LIMIT :limit"),
        {"user": user_id, "limit": limit, **dict(given.values())},
    ).all()


def find_ready(tx: Tx, item_ids: Sequence[UUID]) -> set[UUID]:
    """Post-processors that have a pending job of these items which waits for nothing."""
    rows = tx.execute(
        sa.text(
            "SELECT DISTINCT post_processor_id FROM post_processor_jobs "
            "WHERE item_id = ANY(CAST(:items AS uuid[])) AND status = 'pending' AND ready"
        ),
        {"items": bulk.uuids(item_ids)},
    )
    return set(rows.scalars())


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


# The newest failed job of a key, unless one of that key lives: the unique index would refuse it.
_RESTART = """
WITH wanted AS MATERIALIZED (
  SELECT j.id, j.item_id, j.version_id, j.post_processor_id, j.created_at
  FROM post_processor_jobs j {source} ORDER BY j.id FOR UPDATE OF j),
newest AS (
  SELECT DISTINCT ON (w.item_id, w.version_id, w.post_processor_id) w.id,
    row_number() OVER (ORDER BY w.id) AS place FROM wanted w
  WHERE NOT EXISTS (SELECT 1 FROM post_processor_jobs l
    WHERE l.item_id = w.item_id AND l.version_id = w.version_id
      AND l.post_processor_id = w.post_processor_id AND l.status IN ('pending','processing'))
  ORDER BY w.item_id, w.version_id, w.post_processor_id, w.created_at DESC, w.id DESC)
UPDATE post_processor_jobs j SET
  status = 'pending', ready = false, attempts = 0, crash_count = 0, snooze_count = 0,
  is_suspect = false, reason = '', error = '', dropped = NULL,
  run_at = clock_timestamp() + make_interval(secs => n.place * :gap_s),
  priority = CASE WHEN :gap_s > 0 THEN 1 ELSE j.priority END,
  started_at = NULL, completed_at = NULL, max_attempts = p.max_attempts
FROM newest n, post_processors p
WHERE j.id = n.id AND j.status = 'failed' AND p.id = j.post_processor_id
  AND p.deleted_at IS NULL
RETURNING j.id, j.item_id, j.post_processor_id, p.name AS post_processor, j.lease_token
"""
_RETRY = sa.text(_RESTART.format(source="WHERE j.id = ANY(:ids) AND j.status = 'failed'"))
_REVIVE = sa.text(
    _RESTART.format(
        source="JOIN post_processor_jobs e ON e.id = ANY(:ids) AND e.item_id = j.item_id "
        'AND e.version_id = j.version_id AND e."order" < j."order" '
        "WHERE j.status = 'failed' AND j.reason IN ('predecessor_failed', 'no_input') "
        # Another one before it that failed may say stop as well: its own newest job, unless that
        # one is revived here too.
        "AND NOT EXISTS (SELECT 1 FROM post_processor_jobs o "
        "JOIN post_processors s ON s.id = o.post_processor_id AND s.on_failure = 'stop' "
        "AND s.deleted_at IS NULL "
        'WHERE o.item_id = j.item_id AND o.version_id = j.version_id AND o."order" < j."order" '
        "AND o.status = 'failed' AND o.reason <> 'predecessor_failed' "
        'AND NOT (o.reason = \'no_input\' AND o."order" > e."order") '
        "AND NOT EXISTS (SELECT 1 FROM post_processor_jobs n "
        "WHERE n.item_id = o.item_id AND n.version_id = o.version_id "
        "AND n.post_processor_id = o.post_processor_id AND n.id <> o.id "
        "AND (n.status IN ('pending', 'processing') OR n.created_at > o.created_at)) "
        # What answered since may be pruned already; its answer is there.
        "AND NOT EXISTS (SELECT 1 FROM job_results r WHERE r.item_id = o.item_id "
        "AND r.version_id = o.version_id AND r.post_processor_id = o.post_processor_id "
        "AND r.created_at > o.completed_at))"
    )
)


def retry(tx: Tx, ids: Sequence[UUID], *, gap_s: float = 0.0) -> list[Retried]:
    """Make failed jobs pending with a fresh budget; ``recompute_ready`` must follow.

    They are due at once; with a gap each by so many seconds later, and others go first.
    """
    rows = tx.execute(_RETRY, {"ids": list(ids), "gap_s": gap_s})
    return [Retried(**by_name(row)) for row in rows]


def revive_successors(tx: Tx, ids: Sequence[UUID]) -> list[Retried]:
    """Retry later jobs of the same items that failed only because of these."""
    return [
        Retried(**by_name(row)) for row in tx.execute(_REVIVE, {"ids": list(ids), "gap_s": 0.0})
    ]


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


def insert_successors(tx: Tx, ids: Sequence[UUID]) -> list[NewJob]:
    """Plan later post-processors of the same items anew that answered, where none of their jobs
    lives. Results tell who answered, since jobs are pruned.

    The items must be locked: nobody else plans for them then.
    """
    rows = tx.execute(
        sa.text(
            "SELECT DISTINCT ON (r.item_id, r.version_id, r.post_processor_id) "
            'r.post_processor_id, r.item_id, r.version_id, e.user_id, p."order", p.max_attempts '
            "FROM post_processor_jobs e "
            "JOIN job_results r ON r.item_id = e.item_id AND r.version_id = e.version_id "
            'JOIN post_processors p ON p.id = r.post_processor_id AND p."order" > e."order" '
            "AND p.enabled AND p.deleted_at IS NULL "
            "WHERE e.id = ANY(:ids) AND NOT EXISTS ("
            "SELECT 1 FROM post_processor_jobs l WHERE l.item_id = r.item_id "
            "AND l.version_id = r.version_id AND l.post_processor_id = r.post_processor_id "
            "AND l.status IN ('pending','processing'))"
        ),
        {"ids": list(ids)},
    )
    return _insert_anew(tx, [by_name(row) for row in rows])


def _insert_anew(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> list[NewJob]:
    planned = [NewJob(id=new_id(), ready=False, priority=1, **row) for row in rows]
    insert_jobs(tx, planned)
    return planned


_READERS = sa.text("""
SELECT r.post_processor_id, r.item_id, r.version_id, i.user_id, p."order", p.max_attempts
FROM unnest(CAST(:items AS uuid[]), CAST(:versions AS uuid[])) AS w(item, version)
JOIN dataset_items i ON i.id = w.item
JOIN job_results r ON r.item_id = w.item AND r.version_id = w.version
JOIN post_processors p ON p.id = r.post_processor_id AND p."order" > :order
  AND p.enabled AND p.deleted_at IS NULL
WHERE (p.reads = 'text' OR (p.reads = 'any' AND i.content_sha256 IS NULL)) AND NOT EXISTS (
  SELECT 1 FROM post_processor_jobs l WHERE l.item_id = w.item AND l.version_id = w.version
    AND l.post_processor_id = p.id AND l.status IN ('pending','processing'))
""")
_WITHOUT_TEXT = sa.text("""
SELECT j.id FROM unnest(CAST(:items AS uuid[]), CAST(:versions AS uuid[])) AS w(item, version)
JOIN post_processor_jobs j ON j.item_id = w.item AND j.version_id = w.version
WHERE j.status = 'failed' AND j.reason = 'no_input' AND j."order" > :order
""")


def rerun_readers(
    tx: Tx, pairs: Sequence[tuple[UUID, UUID]], *, order: int
) -> tuple[list[NewJob], list[Retried]]:
    """Run later post-processors again that read the texts of these (item, version).

    Those that answered for the text before get new jobs; those that found no text are retried.
    Results tell who answered, since jobs are pruned. Live jobs read the new text by themselves.
    ``recompute_ready`` must follow.
    """
    wanted = {
        "items": bulk.uuids(pair[0] for pair in pairs),
        "versions": bulk.uuids(pair[1] for pair in pairs),
        "order": order,
    }
    retried = retry(tx, list(tx.execute(_WITHOUT_TEXT, wanted).scalars()))
    rows = tx.execute(_READERS, wanted)
    return _insert_anew(tx, [by_name(row) for row in rows]), retried


_LOCK_COMPLETED = sa.text("""
SELECT j.id, j.dropped FROM post_processor_jobs j
WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.status = 'completed'
ORDER BY j.id FOR NO KEY UPDATE
""")


def lock_completed(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, Mapping[str, int]]:
    """Lock those of the jobs that are completed and still there; what each dropped, by reason."""
    rows = tx.execute(_LOCK_COMPLETED, {"ids": bulk.uuids(bulk.in_order(ids))})
    return {row.id: row.dropped or {} for row in rows}


def write_dropped(tx: Tx, dropped: Mapping[UUID, Mapping[str, int]]) -> None:
    """Say of locked jobs what their answers drop by the settings of today."""
    tx.execute(
        sa.text(
            "UPDATE post_processor_jobs j SET dropped = CAST(w.dropped AS jsonb) "
            "FROM unnest(CAST(:ids AS uuid[]), CAST(:drops AS text[])) AS w(id, dropped) "
            "WHERE j.id = w.id AND j.status = 'completed'"
        ),
        {
            "ids": bulk.uuids(dropped),
            "drops": bulk.texts(json.dumps(dict(each)) for each in dropped.values()),
        },
    )


def find_live_of_item(tx: Tx, item_id: UUID, version_id: UUID) -> dict[UUID, UUID]:
    """Live jobs of a locked item in a version: post-processor to job."""
    rows = tx.execute(
        sa.text(
            "SELECT id, post_processor_id FROM post_processor_jobs WHERE item_id = :item "
            "AND version_id = :version AND status IN ('pending','processing')"
        ),
        {"item": item_id, "version": version_id},
    )
    return {row.post_processor_id: row.id for row in rows}


def begin_anew(tx: Tx, ids: Sequence[UUID]) -> None:
    """Have live jobs of a locked item run with a fresh budget on what the item is now.

    Pending ones are due at once; processing ones are asked to run again. In this order: a claim
    takes no item lock, and one may come in between.
    """
    wanted = {"ids": sorted(ids)}
    tx.execute(
        sa.text(
            "UPDATE post_processor_jobs SET attempts = 0, crash_count = 0, snooze_count = 0, "
            "is_suspect = false, reason = '', error = '', run_at = clock_timestamp() "
            "WHERE id = ANY(:ids) AND status = 'pending'"
        ),
        wanted,
    )
    tx.execute(
        sa.text(
            "UPDATE post_processor_jobs SET rerun_requested = true "
            "WHERE id = ANY(:ids) AND status = 'processing'"
        ),
        wanted,
    )


_DELETE_PENDING = sa.text("""
WITH gone AS (
  DELETE FROM post_processor_jobs WHERE id = ANY(:ids) AND status = 'pending' RETURNING id),
history AS (DELETE FROM job_attempts WHERE job_id IN (SELECT id FROM gone))
SELECT id FROM gone
""")


def delete_pending(tx: Tx, ids: Sequence[UUID]) -> list[UUID]:
    """Delete pending jobs with their history; ``recompute_ready`` must follow."""
    return list(tx.execute(_DELETE_PENDING, {"ids": sorted(ids)}).scalars())


def find_live(
    tx: Tx, post_processor_id: UUID, *, after: UUID | None, limit: int
) -> list[tuple[UUID, UUID]]:
    """Live jobs of a post-processor as (job, item), by id behind ``after``."""
    rows = tx.execute(
        sa.text(
            "SELECT id, item_id FROM post_processor_jobs WHERE post_processor_id = :processor "
            "AND status IN ('pending','processing') AND id > :after ORDER BY id LIMIT :limit"
        ),
        {"processor": post_processor_id, "after": after or UUID(int=0), "limit": limit},
    )
    return [(row.id, row.item_id) for row in rows]


def find_kept_waiting(
    tx: Tx, post_processor_id: UUID, *, after: UUID | None, limit: int
) -> list[UUID]:
    """Items, by id behind ``after``, with a pending job of the post-processor and a pending one of
    higher order, which that one may keep waiting."""
    rows = tx.execute(
        sa.text(
            "SELECT DISTINCT j.item_id FROM post_processor_jobs j JOIN post_processor_jobs l "
            "ON l.item_id = j.item_id AND l.version_id = j.version_id AND l.status = 'pending' "
            'AND l."order" > j."order" WHERE j.post_processor_id = :processor '
            "AND j.status = 'pending' AND j.item_id > :after ORDER BY 1 LIMIT :limit"
        ),
        {"processor": post_processor_id, "after": after or UUID(int=0), "limit": limit},
    )
    return list(rows.scalars())


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
  extract(epoch FROM clock_timestamp() - j.created_at)::float8 AS age_s,
  CASE WHEN live.status = 'processing'
    THEN extract(epoch FROM clock_timestamp() - live.started_at)::float8 END AS ran_s,
  (SELECT p.name FROM post_processors p WHERE p.id = j.post_processor_id) AS post_processor
""")


def cancel(tx: Tx, ids: Sequence[UUID]) -> list[Cancelled]:
    """End live jobs as failed; a running attempt loses its lease."""
    return [Cancelled(**by_name(row)) for row in tx.execute(_CANCEL, {"ids": list(ids)})]
