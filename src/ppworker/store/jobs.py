"""The job table: one function per statement of its life.

Locks are taken in the order item, job; every write of a running job is fenced by its id and lease
token; only the database's clock decides.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.job import Transition
from ppworker.store import bulk
from ppworker.store.db import Tx, by_name
from ppworker.store.tables import post_processor_jobs

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be planned."""

    id: UUID
    post_processor_id: UUID
    item_id: UUID
    version_id: UUID
    user_id: UUID
    order: int
    ready: bool
    max_attempts: int
    priority: int = 0


class HeldJob(NamedTuple):
    """A processing job read under its lock, by whoever wants to move it.

    A tuple in the order of the columns of ``_HELD``.
    """

    id: UUID
    item_id: UUID
    version_id: UUID
    post_processor_id: UUID
    attempts: int
    max_attempts: int
    lease_token: int
    crash_count: int
    snoozes: int
    """Waits that its model asked it for."""
    rerun_requested: bool
    input_revision: str
    ran_s: float
    age_s: float
    """Time since it was planned."""
    lease_expired: bool
    """Whether its lease was over when it was locked; of rescue candidates the others hung."""
    version_deleted: bool | None
    """None where there is no such version, which only a row written by hand can say."""
    settings: str | None
    """``PostProcessor.revision`` of today, if it was asked for."""
    batch_id: UUID
    is_suspect: bool
    in_model: bool
    """Whether it was in a model of its worker's own process. Asked for rescue only."""


class Move(NamedTuple):
    """A decided edge of one job, to be written."""

    job: HeldJob
    transition: Transition
    dropped: str | None = None
    """JSON object of drops by reason."""


_COLUMNS = (
    "id",
    "post_processor_id",
    "item_id",
    "version_id",
    "user_id",
    "order",
    "ready",
    "max_attempts",
    "priority",
)


def insert_jobs(tx: Tx, jobs: Sequence[NewJob]) -> int:
    """Plan jobs as pending; one that lives already for its key is left as it is.

    Returns how many were new.
    """
    return bulk.insert(
        tx,
        post_processor_jobs,
        _COLUMNS,
        [[getattr(job, name) for name in _COLUMNS] for job in jobs],
        after="ON CONFLICT (item_id, version_id, post_processor_id) "
        "WHERE status IN ('pending','processing') DO NOTHING",
    )


_EXTEND = sa.text("""
WITH wanted AS (
  SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:tokens AS bigint[])) AS w(id, token)),
held AS MATERIALIZED (
  SELECT j.id FROM post_processor_jobs j JOIN wanted w ON j.id = w.id
  WHERE j.status = 'processing' AND j.lease_token = w.token
  ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED),
extended AS (
  UPDATE post_processor_jobs j
  SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
  FROM held WHERE j.id = held.id)
SELECT w.id FROM wanted w LEFT JOIN post_processor_jobs j ON j.id = w.id
WHERE j.id IS NULL OR j.status <> 'processing' OR j.lease_token <> w.token
""")


def extend_leases(tx: Tx, held: Mapping[UUID, int], *, lease_s: float) -> set[UUID]:
    """Renew leases given as id to token; returns those that are lost.

    A row somebody else has locked is neither renewed nor lost: its turn comes at the next beat.
    """
    rows = tx.execute(_EXTEND, {**_held_arrays(held), "lease_s": lease_s})
    return set(rows.scalars())


def _held_arrays(held: Mapping[UUID, int]) -> dict[str, Any]:
    ids = bulk.in_order(held)
    return {"ids": bulk.uuids(ids), "tokens": bulk.numbers(held[id_] for id_ in ids)}


_HELD = """SELECT j.id, j.item_id, j.version_id, j.post_processor_id, j.attempts, j.max_attempts,
  j.lease_token, j.crash_count, j.snooze_count AS snoozes, j.rerun_requested,
  coalesce(j.input_revision, '') AS input_revision,
  coalesce(extract(epoch FROM clock_timestamp() - j.started_at), 0)::float8 AS ran_s,
  extract(epoch FROM clock_timestamp() - j.created_at)::float8 AS age_s,
  j.lease_expires_at < clock_timestamp() AS lease_expired,
  (SELECT v.deleted_at IS NOT NULL FROM dataset_versions v WHERE v.id = j.version_id) AS gone,
  (SELECT CAST(p.xmin AS text) FROM post_processors p WHERE p.id = :settings_of) AS settings,
  j.batch_id, j.is_suspect, {in_model} AS in_model
FROM post_processor_jobs j """

_LOCK_LEASED = sa.text(
    _HELD.format(in_model="false")
    + """JOIN unnest(CAST(:ids AS uuid[]), CAST(:tokens AS bigint[])) AS w(id, token)
  ON j.id = w.id AND j.lease_token = w.token
WHERE j.status = 'processing' ORDER BY j.id FOR UPDATE OF j"""
)


def lock_leased(
    tx: Tx, held: Mapping[UUID, int], *, settings_of: UUID | None = None
) -> list[HeldJob]:
    """Lock the jobs that are still ours by id and token; the absent ones are lost.

    With ``settings_of`` they also tell which settings that post-processor has now, read after the
    items' locks were won.
    """
    rows = tx.execute(_LOCK_LEASED, {**_held_arrays(held), "settings_of": settings_of})
    return [HeldJob._make(row) for row in rows]


class EndedAttempt(NamedTuple):
    """An attempt as the history tells it, in the order of the columns."""

    job_id: UUID
    attempt: int
    cause: str
    reason: str
    error: str
    seconds: float
    age_s: float


def finished_by(tx: Tx, held: Mapping[UUID, int], worker_id: UUID) -> dict[UUID, EndedAttempt]:
    """Of jobs given as id to token, those whose attempt this worker has ended: the answer to a
    lost COMMIT, read after the rows were locked."""
    rows = tx.execute(
        sa.text(
            "SELECT a.job_id, a.attempt, a.cause, a.reason, a.error, "
            "extract(epoch FROM a.ended_at - a.started_at)::float8, "
            "extract(epoch FROM a.ended_at - j.created_at)::float8 "
            "FROM job_attempts a JOIN post_processor_jobs j ON j.id = a.job_id "
            "JOIN unnest(CAST(:ids AS uuid[]), CAST(:tokens AS bigint[])) AS w(id, token) "
            "ON a.job_id = w.id AND a.lease_token = w.token "
            "WHERE a.worker_id = :worker AND a.cause NOT IN ('rescued', 'suspected', 'cancelled')"
        ),
        {**_held_arrays(held), "worker": worker_id},
    )
    return {row[0]: EndedAttempt._make(row) for row in rows}


_MOVE = sa.text("""
WITH m AS (
  SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:tokens AS bigint[]), CAST(:statuses AS text[]),
    CAST(:delays AS float8[]), CAST(:attempts AS int[]), CAST(:crashes AS int[]),
    CAST(:snoozes AS int[]),
    CAST(:reasons AS text[]), CAST(:errors AS text[]), CAST(:causes AS text[]),
    CAST(:drops AS text[]), CAST(:suspects AS boolean[]))
  AS m(id, token, status, delay_s, attempts, crashes, snoozes, reason, error, cause,
    dropped, is_suspect)),
outside AS (
  DELETE FROM model_entries WHERE batch_id = ANY(CAST(:left AS uuid[]))),
history AS (
  INSERT INTO job_attempts
    (job_id, lease_token, attempt, worker_id, started_at, ended_at, cause, reason, error)
  SELECT j.id, j.lease_token, j.attempts, j.lease_owner, j.started_at, clock_timestamp(),
    m.cause, m.reason, m.error
  FROM m JOIN post_processor_jobs j ON j.id = m.id
  WHERE j.lease_token = m.token AND j.status = 'processing')
UPDATE post_processor_jobs j SET
  status = m.status, attempts = m.attempts, crash_count = m.crashes,
  snooze_count = m.snoozes, reason = m.reason,
  error = m.error, dropped = coalesce(CAST(m.dropped AS jsonb), j.dropped),
  lease_owner = NULL, lease_expires_at = NULL, batch_id = NULL, deadline_at = NULL,
  rerun_requested = false, is_suspect = m.is_suspect,
  run_at = CASE WHEN m.status = 'pending' AND m.delay_s > 0
    THEN clock_timestamp() + make_interval(secs => m.delay_s) ELSE j.run_at END,
  completed_at = CASE WHEN m.status IN ('completed', 'failed') THEN clock_timestamp() END
FROM m WHERE j.id = m.id AND j.lease_token = m.token AND j.status = 'processing'
""")


def move(tx: Tx, moves: Sequence[Move], *, have_left: bool = True) -> int:
    """Take processing jobs along their decided edges and append their attempts to the history.

    Guarded by id, token and status although the caller holds the locks. Returns rows moved.

    Args:
        tx: the transaction.
        moves: at most one of each job.
        have_left: whether their batches are out of the model, so that nobody is suspected of what
            happens from now on.
    """
    left = {m.job.batch_id for m in moves} if have_left else set[UUID]()
    return tx.execute(
        _MOVE,
        {
            "ids": bulk.uuids(m.job.id for m in moves),
            "tokens": bulk.numbers(m.job.lease_token for m in moves),
            "statuses": bulk.texts(m.transition.to for m in moves),
            "delays": bulk.numbers(m.transition.delay_s for m in moves),
            "attempts": bulk.numbers(m.transition.attempts for m in moves),
            "crashes": bulk.numbers(m.transition.crash_count for m in moves),
            "snoozes": bulk.numbers(m.transition.snoozes for m in moves),
            "reasons": bulk.texts(m.transition.reason for m in moves),
            "errors": bulk.texts(m.transition.error for m in moves),
            "causes": bulk.texts(m.transition.cause for m in moves),
            "drops": bulk.texts(m.dropped for m in moves),
            "suspects": bulk.numbers(m.transition.is_suspect for m in moves),
            "left": bulk.uuids(left),
        },
    ).rowcount


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A pending job that was failed because an earlier one of its item failed."""

    id: UUID
    item_id: UUID
    post_processor: str
    attempts: int
    lease_token: int
    age_s: float


_STOP_SUCCESSORS = sa.text("""
UPDATE post_processor_jobs j SET status = 'failed', reason = 'predecessor_failed', ready = false,
  error = 'not run: ' || f.name || ' failed before it and says stop',
  completed_at = clock_timestamp()
FROM (SELECT e.item_id, e.version_id, e."order", p.name
  FROM post_processor_jobs e JOIN post_processors p ON p.id = e.post_processor_id
  WHERE e.id = ANY(:failed) AND e.status = 'failed' AND p.on_failure = 'stop') f
WHERE j.item_id = f.item_id AND j.version_id = f.version_id AND j."order" > f."order"
  AND j.status = 'pending'
RETURNING j.id, j.item_id, j.attempts, j.lease_token,
  extract(epoch FROM clock_timestamp() - j.created_at)::float8 AS age_s,
  (SELECT p.name FROM post_processors p WHERE p.id = j.post_processor_id) AS post_processor
""")


def stop_successors(tx: Tx, failed: Sequence[UUID]) -> list[Stopped]:
    """Fail the pending later jobs of items whose earlier job failed and says stop."""
    if not failed:
        return []
    rows = tx.execute(_STOP_SUCCESSORS, {"failed": list(failed)})
    return [Stopped(**by_name(row)) for row in rows]


# Whoever waits for a job that nobody runs waits for ever: the pending ones of a disabled
# post-processor block nothing.
BLOCKED = """EXISTS (
    SELECT 1 FROM post_processor_jobs l JOIN post_processors b ON b.id = l.post_processor_id
    WHERE l.item_id = p.item_id AND l.version_id = p.version_id
      AND l.status IN ('pending','processing') AND l."order" < p."order"
      AND (b.enabled OR l.status = 'processing'))"""

_RECOMPUTE = sa.text(f"""
UPDATE post_processor_jobs j SET ready = r.ready,
  run_at = CASE WHEN r.ready THEN greatest(j.run_at, clock_timestamp()) ELSE j.run_at END
FROM (SELECT p.id, NOT {BLOCKED} AS ready
  FROM post_processor_jobs p
  WHERE p.item_id = ANY(CAST(:items AS uuid[])) AND p.status = 'pending') r
WHERE j.id = r.id AND j.ready <> r.ready AND j.status = 'pending'
RETURNING j.post_processor_id, j.ready
""")  # noqa: S608  the constant above


def recompute_ready(tx: Tx, item_ids: Sequence[UUID]) -> set[UUID]:
    """Make pending jobs ready when every job of lower order of their item is over, and unready
    those in front of which one lives again. The items must be locked, in an earlier statement.

    Jobs that are pending while their post-processor is disabled keep nobody waiting.

    Returns the post-processors that got a ready job.
    """
    rows = tx.execute(_RECOMPUTE, {"items": bulk.uuids(set(item_ids))}).all()
    return {row.post_processor_id for row in rows if row.ready}


# An expired lease frees a dead worker's job; a passed deadline frees a hung one's.
EXPIRED = sa.text("""
SELECT id, item_id FROM post_processor_jobs
WHERE status = 'processing'
  AND (lease_expires_at < clock_timestamp() OR deadline_at < clock_timestamp())
ORDER BY post_processor_id, id LIMIT :n
""")


def find_expired(tx: Tx, *, limit: int) -> list[tuple[UUID, UUID]]:
    """Candidates for rescue as (job, item), read without locks."""
    return [(row.id, row.item_id) for row in tx.execute(EXPIRED, {"n": limit})]


_LOCK_EXPIRED = sa.text(
    _HELD.format(  # noqa: S608  constants of this module
        in_model="EXISTS (SELECT 1 FROM model_entries e WHERE e.batch_id = j.batch_id)"
    )
    + """WHERE j.id = ANY(:ids) AND j.status = 'processing'
  AND (j.lease_expires_at < clock_timestamp() OR j.deadline_at < clock_timestamp())
ORDER BY j.id FOR UPDATE OF j SKIP LOCKED"""
)


def lock_expired(tx: Tx, ids: Sequence[UUID]) -> list[HeldJob]:
    """Lock candidates for rescue, checking again under the lock that their lease is over."""
    rows = tx.execute(_LOCK_EXPIRED, {"ids": sorted(ids), "settings_of": None})
    return [HeldJob._make(row) for row in rows]


DUE = sa.text("""
SELECT p.id,
  (SELECT min(first.run_at) FROM (VALUES (0), (1)) AS v(priority) CROSS JOIN LATERAL (
     SELECT j.run_at FROM post_processor_jobs j
     WHERE j.post_processor_id = p.id AND j.status = 'pending' AND j.ready
       AND j.priority = v.priority
     ORDER BY j.run_at LIMIT 1) first) AS first_run_at,
  c.open_until, clock_timestamp() AS now
FROM post_processors p
LEFT JOIN post_processor_circuits c ON c.post_processor_id = p.id AND c.open_until > now()
WHERE p.enabled AND NOT p.paused_by_operator AND p.deleted_at IS NULL
""")


def find_due(tx: Tx) -> tuple[list[UUID], float | None]:
    """Post-processors with a job due now, longest waiting first, and seconds until the next
    later one (None when there is none)."""
    due: list[tuple[datetime, UUID]] = []
    wait: float | None = None
    for row in tx.execute(DUE):
        if row.first_run_at is None:
            continue
        due_at = max(row.first_run_at, row.open_until or row.first_run_at)
        if due_at <= row.now:
            due.append((row.first_run_at, row.id))
        else:
            ahead = (due_at - row.now).total_seconds()
            wait = ahead if wait is None else min(wait, ahead)
    return [id_ for _, id_ in sorted(due)], wait


def names_of(tx: Tx, post_processor_ids: Collection[UUID]) -> dict[UUID, str]:
    """Names of post-processors, deleted ones included."""
    rows = tx.execute(
        sa.text("SELECT id, name FROM post_processors WHERE id = ANY(:ids)"),
        {"ids": list(post_processor_ids)},
    )
    return {row.id: row.name for row in rows}
