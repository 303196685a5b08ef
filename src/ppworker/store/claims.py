"""The claim: how a worker takes due jobs, and what it counts before.

A claim skips what somebody else has locked and waits for nobody, except for its turn to count the
batches of a post-processor with a cap.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx


class ClaimedJob(NamedTuple):
    """A job this worker may run until its lease ends, with what it needs to know of its item.

    A tuple in the order of the claim's columns: hundreds are made at a time, and a data class costs
    five times as much.
    """

    id: UUID
    item_id: UUID
    version_id: UUID
    user_id: UUID
    attempts: int
    max_attempts: int
    lease_token: int
    crash_count: int
    input_revision: str
    priority: int
    run_at: datetime
    waited_s: float
    item_name: str
    media_type: str
    content_sha256: str | None
    has_text: bool
    width: int | None
    height: int | None
    page_count: int | None
    duration_s: float | None
    multi_label: bool
    """Whether the item's dataset takes several class labels per item."""
    half_open: bool | None
    """Whether it runs as the probe of a pause by failures; None where no failure was noted."""


def lock_cap(tx: Tx, post_processor_id: UUID) -> None:
    """Wait for the right to count this post-processor's leases; held until the transaction ends.

    A statement of its own: counting in the same one would use a snapshot older than the lock.
    """
    tx.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
    tx.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
        {"key": f"ppworker.cap.{post_processor_id}"},
    )


def find_batch(tx: Tx, post_processor_id: UUID, batch_id: UUID) -> dict[UUID, tuple[UUID, int]]:
    """Processing jobs of one batch: job to (item, token)."""
    rows = tx.execute(
        sa.text(
            "SELECT id, item_id, lease_token FROM post_processor_jobs WHERE post_processor_id = "
            ":processor AND status = 'processing' AND batch_id = :batch"
        ),
        {"processor": post_processor_id, "batch": batch_id},
    )
    return {row.id: (row.item_id, row.lease_token) for row in rows}


def await_claim(tx: Tx, ids: Collection[UUID]) -> None:
    """Wait until whoever claimed these jobs has committed that, or has lost it.

    By their ids alone: as long as that COMMIT is in flight they are pending with their old token to
    everybody else, so whoever looked for the new one would find nothing to wait for.
    """
    tx.execute(
        sa.text("SELECT id FROM post_processor_jobs WHERE id = ANY(:ids) ORDER BY id FOR UPDATE"),
        {"ids": bulk.uuids(ids)},
    )


def count_batches(tx: Tx, post_processor_id: UUID) -> int:
    """Batches in flight for a post-processor, expired ones included until they are rescued."""
    return int(
        tx.execute(
            sa.text(
                "SELECT count(DISTINCT batch_id) FROM post_processor_jobs "
                "WHERE post_processor_id = :id AND status = 'processing'"
            ),
            {"id": post_processor_id},
        ).scalar_one()
    )


Place = tuple[datetime, UUID]
"""A place in the queue of one priority: run_at and id of a job."""
Places = Mapping[int, Place]
"""By priority, the place behind which a claim may begin."""
START: Place = (datetime.min.replace(tzinfo=UTC), UUID(int=0))
"""Before every job."""


class Claim(NamedTuple):
    """What a claim got."""

    jobs: list[ClaimedJob]
    suspects_wait: bool
    """Whether jobs are due that only ``claim_suspects`` takes."""


# "NOT coalesce" tells the planner that about half of the versions pass. From a plain IS NULL it
# takes nearly all for deleted, and reads and sorts a whole backlog for the first hundred jobs.
_IS_OPEN = """EXISTS (SELECT 1 FROM post_processors p
      WHERE p.id = :processor AND p.enabled AND NOT p.paused_by_operator
        AND p.deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM post_processor_circuits c
          WHERE c.post_processor_id = p.id AND c.open_until IS NOT NULL
            AND (c.open_until > now() OR NOT CAST(:is_probe AS boolean))))
    AND NOT coalesce((SELECT v.deleted_at IS NOT NULL FROM dataset_versions v
      WHERE v.id = j.version_id), false)"""

# In the words of their own index, which is nearly always empty. "coalesce" keeps the planner off
# the index of all ready jobs: a plan made on an empty table would walk a backlog by that one.
_IS_SUSPECT = """j.post_processor_id = :processor AND j.status = 'pending'
    AND j.is_suspect AND coalesce(j.ready, false)"""

_DUE = f"""
  SELECT j.id FROM post_processor_jobs j
  WHERE j.post_processor_id = :processor AND j.status = 'pending' AND j.ready
    AND j.priority = {{priority}} AND NOT j.is_suspect
    AND j.run_at <= now() AND (j.run_at, j.id) > ({{place}})
    AND {_IS_OPEN}
  ORDER BY j.run_at, j.id
  LIMIT {{limit}} FOR UPDATE OF j SKIP LOCKED"""  # noqa: S608  the constant above

# An array, because the planner takes it for ten ids. For a set with a limit that it does not know
# it expects a tenth of the queue, and reads the jobs from the first one on to join them by order.
_TAKE = """
taken AS (
UPDATE post_processor_jobs j SET
  status = 'processing', attempts = j.attempts + 1, lease_token = j.lease_token + 1,
  lease_owner = :worker, batch_id = :batch,
  lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s),
  deadline_at = clock_timestamp() + make_interval(secs => :deadline_s),
  started_at = clock_timestamp(), input_revision = coalesce(CASE :reads
    WHEN 'text' THEN i.text_sha256 WHEN 'file' THEN i.content_sha256
    ELSE coalesce(i.content_sha256, i.text_sha256) END, '')
FROM dataset_items i JOIN datasets d ON d.id = i.dataset_id
WHERE j.id = ANY(ARRAY(SELECT id FROM picked)) AND i.id = j.item_id
RETURNING j.id, j.item_id, j.version_id, j.user_id, j.attempts, j.max_attempts, j.lease_token,
  j.crash_count, j.input_revision, j.priority, j.run_at,
  extract(epoch FROM j.started_at - j.run_at)::float8 AS waited_s,
  i.name AS item_name, i.media_type, i.content_sha256, i.text IS NOT NULL AS has_text,
  i.width, i.height, i.page_count, i.duration_s, d.multi_label,
  (SELECT c.open_until IS NOT NULL FROM post_processor_circuits c
   WHERE c.post_processor_id = :processor) AS half_open)
"""

# One row comes in any case, for what it says of suspects.
CLAIM = sa.text(f"""
WITH first AS MATERIALIZED ({
    _DUE.format(priority="CAST(:first AS smallint)", place=":first_run_at, :first_id", limit=":n")
}),
second AS MATERIALIZED ({
    _DUE.format(
        priority="1 - CAST(:first AS smallint)",
        place=":second_run_at, :second_id",
        limit=":n - (SELECT count(*) FROM first)",
    )
}),
picked AS (SELECT * FROM first UNION ALL SELECT * FROM second),
{_TAKE}
SELECT s.wait, taken.* FROM (SELECT EXISTS (SELECT 1 FROM post_processor_jobs j
  WHERE {_IS_SUSPECT} AND j.run_at <= now()) AS wait) s LEFT JOIN taken ON true
""")  # noqa: S608  constants of this module

CLAIM_SUSPECTS = sa.text(f"""
WITH picked AS MATERIALIZED (
  SELECT j.id FROM post_processor_jobs j
  WHERE {_IS_SUSPECT} AND j.run_at <= now() AND {_IS_OPEN}
  ORDER BY j.priority, j.run_at, j.id
  LIMIT :n FOR UPDATE OF j SKIP LOCKED),
{_TAKE}
SELECT true, taken.* FROM taken
""")  # noqa: S608  constants of this module


class Lease(NamedTuple):
    """For whom a claim takes jobs, and for how long."""

    worker_id: UUID
    batch_id: UUID
    lease_s: float
    """Seconds until the jobs may be rescued without a heartbeat."""
    deadline_s: float
    """Seconds until they may be rescued in spite of heartbeats."""


def claim(
    tx: Tx,
    post_processor_id: UUID,
    lease: Lease,
    *,
    reads: str,
    limit: int,
    first: int = 0,
    behind: Places | None = None,
    is_probe: bool = False,
) -> Claim:
    """Lease up to ``limit`` due jobs that are no suspects: attempts and token grow by one.

    Args:
        tx: the transaction.
        post_processor_id: whose jobs.
        lease: for whom and how long.
        reads: what the runner reads, decides the recorded input revision.
        limit: most jobs.
        first: the priority that is served first; the other one gets what it leaves. Within a
            priority jobs come in their due order.
        behind: start behind these places; keeps claims flat while an old snapshot holds dead
            index entries. An answer that is not full then proves nothing: ask again without them.
        is_probe: also where a pause by failures is over and its model has not answered since.
    """
    places = behind or {}
    first_place, second_place = places.get(first, START), places.get(1 - first, START)
    rows = tx.execute(
        CLAIM,
        {
            **_parameters(post_processor_id, lease, reads=reads, limit=limit, is_probe=is_probe),
            "first": first,
            "first_run_at": first_place[0],
            "first_id": first_place[1],
            "second_run_at": second_place[0],
            "second_id": second_place[1],
        },
    ).all()
    claimed = [ClaimedJob._make(row[1:]) for row in rows if row.id is not None]
    return Claim(jobs=sorted(claimed, key=_due_order), suspects_wait=rows[0].wait)


def claim_suspects(
    tx: Tx,
    post_processor_id: UUID,
    lease: Lease,
    *,
    reads: str,
    limit: int,
    is_probe: bool = False,
) -> list[ClaimedJob]:
    """Lease up to ``limit`` due suspects; they must run in a process of their model's own.

    Arguments as of ``claim``.
    """
    parameters = _parameters(post_processor_id, lease, reads=reads, limit=limit, is_probe=is_probe)
    claimed = [ClaimedJob._make(row[1:]) for row in tx.execute(CLAIM_SUSPECTS, parameters)]
    return sorted(claimed, key=_due_order)


def _parameters(
    post_processor_id: UUID, lease: Lease, *, reads: str, limit: int, is_probe: bool
) -> dict[str, Any]:
    return {
        "processor": post_processor_id,
        "reads": reads,
        "worker": lease.worker_id,
        "batch": lease.batch_id,
        "n": limit,
        "lease_s": lease.lease_s,
        "deadline_s": lease.deadline_s,
        "is_probe": is_probe,
    }


def _due_order(job: ClaimedJob) -> tuple[int, datetime, UUID]:
    return (job.priority, job.run_at, job.id)
