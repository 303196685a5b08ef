"""What goes once it is old: batch by batch, each one statement over a bounded number of rows.

Whoever removes holds an advisory lock until its transaction ends, so that of many processes one
removes at a time; rows that somebody holds are left for the next round. Jobs are found by the
indexes that lists of them need anyway: keys are times, and a job ends after it was made.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import db, ids
from ppworker.store.db import Tx

FIRST = UUID(int=0)
"""Before every key."""
_WRONG_BY = timedelta(days=1)
"""How wrong the clock may have been of whoever made a key."""

Over = Literal["completed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """One batch."""

    gone: int
    """Rows that were removed, without what hung on them."""
    last: UUID | None = None
    """The last row looked at, behind which the next batch begins; None when there was none."""


def try_lock(tx: Tx) -> bool:
    """Take the right to remove until the transaction ends; false while somebody else has it."""
    return db.try_lock(tx, "ppworker.retention")


def read_clock(tx: Tx) -> datetime:
    """The database's time."""
    now: datetime = tx.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    return now


_OWNERS = """
SELECT p.id FROM post_processors p CROSS JOIN LATERAL (
  SELECT 1 FROM post_processor_jobs j WHERE j.post_processor_id = p.id
    AND j.status = '{status}' AND j.id < :made_before ORDER BY j.id LIMIT 1) AS old
ORDER BY p.id
"""
# The status is written out, or a plan for all parameters could not use its partial index. Arrays
# are taken for ten ids; sets with a limit for a tenth of the table, which a join would walk whole.
_JOBS = """
WITH seen AS MATERIALIZED (
  SELECT j.id, j.completed_at FROM post_processor_jobs j
  WHERE j.post_processor_id = :processor AND j.status = '{status}'
    AND j.id > :after AND j.id < :made_before
  ORDER BY j.id LIMIT :n),
held AS MATERIALIZED (
  SELECT j.id FROM post_processor_jobs j
  WHERE j.id = ANY(ARRAY(SELECT id FROM seen WHERE completed_at < :ended_before))
    AND j.status = '{status}' AND j.completed_at < :ended_before
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED),
history AS (DELETE FROM job_attempts WHERE job_id = ANY(ARRAY(SELECT id FROM held))),
gone AS (DELETE FROM post_processor_jobs WHERE id = ANY(ARRAY(SELECT id FROM held)) RETURNING 1)
SELECT (SELECT count(*) FROM gone) AS gone,
  (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last
"""
_OVER: tuple[Over, ...] = ("completed", "failed")
_OWNERS_OF = {status: sa.text(_OWNERS.format(status=status)) for status in _OVER}
_JOBS_OF = {status: sa.text(_JOBS.format(status=status)) for status in _OVER}


def find_owners(tx: Tx, status: Over, before: datetime) -> list[UUID]:
    """Post-processors, deleted ones too, with jobs that may have ended before a time."""
    values = {"made_before": ids.first_id(before + _WRONG_BY)}
    return list(tx.execute(_OWNERS_OF[status], values).scalars())


def prune_jobs(
    tx: Tx, post_processor_id: UUID, status: Over, before: datetime, *, after: UUID, limit: int
) -> Walked:
    """Remove jobs that ended before a time, with their history; looks at ``limit`` of them behind
    ``after``."""
    values = {"processor": post_processor_id, "after": after, "n": limit}
    return _walk(tx, _JOBS_OF[status], values, before)


# A deletion that failed stays: what it was to remove is still there, and goes when it is retried.
_OPERATIONS = sa.text("""
WITH seen AS MATERIALIZED (
  SELECT o.id FROM operations o WHERE o.id > :after AND o.id < :made_before
  ORDER BY o.id LIMIT :n),
held AS MATERIALIZED (
  SELECT o.id FROM operations o
  WHERE o.id = ANY(ARRAY(SELECT id FROM seen)) AND o.status = :status
    AND o.completed_at < :ended_before AND (o.status = 'completed' OR o.kind <> 'delete')
  ORDER BY o.id FOR UPDATE OF o SKIP LOCKED),
gone AS (DELETE FROM operations WHERE id = ANY(ARRAY(SELECT id FROM held)) RETURNING 1)
SELECT (SELECT count(*) FROM gone) AS gone,
  (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last
""")


def prune_operations(tx: Tx, status: Over, before: datetime, *, after: UUID, limit: int) -> Walked:
    """Remove operations that ended before a time."""
    return _walk(tx, _OPERATIONS, {"status": status, "after": after, "n": limit}, before)


_LETTERS = sa.text("""
WITH seen AS MATERIALIZED (
  SELECT d.id FROM dead_letters d WHERE d.id > :after AND d.id < :made_before
  ORDER BY d.id LIMIT :n),
held AS MATERIALIZED (
  SELECT d.id FROM dead_letters d
  WHERE d.id = ANY(ARRAY(SELECT id FROM seen)) AND CASE
    WHEN :replayed THEN d.replayed_at < :ended_before
    ELSE d.replayed_at IS NULL AND d.created_at < :ended_before END
  ORDER BY d.id FOR UPDATE OF d SKIP LOCKED),
gone AS (DELETE FROM dead_letters WHERE id = ANY(ARRAY(SELECT id FROM held)) RETURNING 1)
SELECT (SELECT count(*) FROM gone) AS gone,
  (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last
""")


def prune_letters(tx: Tx, before: datetime, *, replayed: bool, after: UUID, limit: int) -> Walked:
    """Remove dead letters that were replayed, or else that were kept, before a time."""
    return _walk(tx, _LETTERS, {"replayed": replayed, "after": after, "n": limit}, before)


def _walk(tx: Tx, statement: sa.TextClause, values: dict[str, Any], before: datetime) -> Walked:
    limits = {"made_before": ids.first_id(before + _WRONG_BY), "ended_before": before}
    row = tx.execute(statement, values | limits).one()
    return Walked(gone=row.gone, last=row.last)


_KEYS = sa.text("""
DELETE FROM idempotency_keys k USING (
  SELECT user_id, key FROM idempotency_keys WHERE created_at < :before
  ORDER BY created_at LIMIT :n FOR UPDATE SKIP LOCKED) AS old
WHERE k.user_id = old.user_id AND k.key = old.key
""")


def prune_keys(tx: Tx, before: datetime, *, limit: int) -> int:
    """Forget idempotency keys that were used before a time; returns how many."""
    return tx.execute(_KEYS, {"before": before, "n": limit}).rowcount
