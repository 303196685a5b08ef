"""Walks the failed jobs of a user to restart them, and looks at how busy the workers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The failed jobs of some post-processors, as they were at a moment."""

    at: datetime
    total: int
    last: UUID | None
    """The greatest of their ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """Failed jobs in the order of their ids."""

    wanted: Sequence[tuple[UUID, UUID]]
    """Those to be restarted, as (job, item)."""
    seen: int
    last: UUID | None
    """Behind which the walk goes on, None at its end."""


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


_OWNERS = sa.text("""
SELECT p.id FROM post_processors p WHERE p.user_id = :user AND p.deleted_at IS NULL
  AND p.dataset_id = coalesce(CAST(:dataset AS uuid), p.dataset_id)
  AND p.id = coalesce(CAST(:processor AS uuid), p.id)
""")


def find_owners(
    tx: Tx, user_id: UUID, *, dataset_id: UUID | None, post_processor_id: UUID | None
) -> list[UUID]:
    """The user's post-processors, of a dataset, or the one named."""
    values = {"user": user_id, "dataset": dataset_id, "processor": post_processor_id}
    return list(tx.execute(_OWNERS, values).scalars())


_EXTENT = sa.text("""
SELECT clock_timestamp() AS at, coalesce(sum(f.n), 0)::bigint AS total,
  (array_agg(f.last ORDER BY f.last DESC NULLS LAST))[1] AS last
FROM unnest(CAST(:owners AS uuid[])) AS o(id) CROSS JOIN LATERAL (
  SELECT (SELECT count(*) FROM post_processor_jobs j
      WHERE j.post_processor_id = o.id AND j.status = 'failed') AS n,
    (SELECT j.id FROM post_processor_jobs j
      WHERE j.post_processor_id = o.id AND j.status = 'failed' ORDER BY j.id DESC LIMIT 1) AS last
) f
""")


def measure(tx: Tx, owners: Sequence[UUID]) -> Extent:
    """How many jobs of these post-processors have failed by now."""
    row = tx.execute(_EXTENT, {"owners": bulk.uuids(owners)}).one()
    return Extent(at=row.at, total=row.total, last=row.last)


_WALK = sa.text("""
SELECT f.id, f.item_id, f.is_wanted FROM unnest(CAST(:owners AS uuid[])) AS o(id)
CROSS JOIN LATERAL (
  SELECT j.id, j.item_id, j.completed_at <= :failed_by
    AND j.reason = coalesce(CAST(:reason AS text), j.reason) AS is_wanted
  FROM post_processor_jobs j WHERE j.post_processor_id = o.id AND j.status = 'failed'
    AND j.id > :after AND j.id <= :last
  ORDER BY j.id LIMIT :n) f
ORDER BY f.id LIMIT :n
""")


def walk(
    tx: Tx,
    owners: Sequence[UUID],
    *,
    failed_by: datetime,
    reason: str | None,
    after: UUID,
    last: UUID,
    most: int,
    limit: int,
) -> Walked:
    """At most ``most`` failed jobs to be restarted, looking at ``limit`` between two ids.

    One that failed later than ``failed_by`` is left alone: it was restarted since, or is new.
    """
    values: dict[str, Any] = {
        "owners": bulk.uuids(owners),
        "failed_by": failed_by,
        "reason": reason,
        "after": after,
        "last": last,
        "n": limit,
    }
    rows = tx.execute(_WALK, values).all()
    wanted: list[tuple[UUID, UUID]] = []
    for place, row in enumerate(rows):
        if row.is_wanted:
            wanted.append((row.id, row.item_id))
        if len(wanted) == most:
            return Walked(wanted=wanted, seen=place + 1, last=row.id)
    return Walked(wanted=wanted, seen=len(rows), last=rows[-1].id if len(rows) == limit else None)


_LOAD = sa.text("""
SELECT (SELECT count(DISTINCT j.batch_id) FROM post_processor_jobs j
    WHERE j.status = 'processing') AS busy,
  (SELECT coalesce(sum(w.slots), 0)::bigint FROM workers w WHERE NOT w.draining
    AND w.seen_at > clock_timestamp() - make_interval(secs => greatest(60, w.lease_s))) AS slots,
  EXISTS (SELECT 1 FROM unnest(CAST(:owners AS uuid[])) AS o(id)
    JOIN post_processors p ON p.id = o.id AND p.enabled AND NOT p.paused_by_operator
      AND NOT EXISTS (SELECT 1 FROM post_processor_circuits c
        WHERE c.post_processor_id = o.id AND c.open_until IS NOT NULL)
    CROSS JOIN LATERAL (SELECT j.run_at FROM post_processor_jobs j
      WHERE j.post_processor_id = o.id AND j.status = 'pending' AND j.ready AND j.priority = 1
      ORDER BY j.run_at LIMIT 1) first
    WHERE first.run_at < clock_timestamp() - make_interval(secs => :late_s)
      AND (first.run_at > clock_timestamp() - make_interval(secs => :given_up_s)
        OR EXISTS (SELECT 1 FROM post_processor_jobs r
          WHERE r.post_processor_id = o.id AND r.status = 'processing'))) AS is_behind
""")
_GIVEN_UP_S = 300.0
"""Seconds after which jobs that wait keep no other ones waiting, if none of their post-processor
runs: no worker that is there may have its runner."""


def read_load(tx: Tx, owners: Sequence[UUID], *, late_s: float) -> tuple[int, int, bool]:
    """Batches that run, slots there are, and whether jobs of these post-processors that let others
    go first have been due for so long."""
    values = {"owners": bulk.uuids(owners), "late_s": late_s, "given_up_s": _GIVEN_UP_S}
    row = tx.execute(_LOAD, values).one()
    return row.busy, row.slots, row.is_behind
