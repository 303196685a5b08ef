"""The register of worker processes, and what they know together of the server's absences.

While PostgreSQL is away nobody can renew a lease. When it comes back, whoever looks first finds
leases of living workers expired, whose answers wait for just that moment. So nobody rescues before
the server has answered some worker for one whole lease without an interruption: in that time every
living worker that can reach it has renewed its leases. Each row says since when that is so. One
that has just started takes over what others know, so that workers that die often, one after the
other, do not keep each other's jobs from being rescued.

Leases depend on no row here: one that is pruned hides no job.
"""

from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx

_MOST_GAP = 0.5
"""Longest time between two answers, in leases, that is no interruption. A lease is renewed each
third of its life at the latest, so none can run out in an interruption of half a life."""

_OTHERS_SINCE = """coalesce((SELECT min(o.steady_since) FROM workers o WHERE o.id <> :id
  AND o.seen_at > clock_timestamp() - make_interval(secs => :gap)), clock_timestamp())"""

_REGISTER = sa.text(f"""
INSERT INTO workers (id, host, pid, version, slots, seen_at, steady_since)
VALUES (:id, :host, :pid, :version, :slots, clock_timestamp(), {_OTHERS_SINCE})
ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()
""")  # noqa: S608  the constant above
_SEE = sa.text(f"""
UPDATE workers w SET seen_at = clock_timestamp(), draining = :draining,
  steady_since = CASE WHEN w.seen_at > clock_timestamp() - make_interval(secs => :gap)
    THEN w.steady_since ELSE {_OTHERS_SINCE} END
WHERE w.id = :id
""")  # noqa: S608  the constant above


def register(
    tx: Tx, worker_id: UUID, *, host: str, pid: int, version: str, slots: int, lease_s: float
) -> None:
    """Record a worker process that has just started."""
    values = {"id": worker_id, "host": host, "pid": pid, "version": version, "slots": slots}
    tx.execute(_REGISTER, {**values, "gap": _MOST_GAP * lease_s})


def mark_seen(tx: Tx, worker_id: UUID, *, lease_s: float, draining: bool = False) -> bool:
    """Say that the worker lives, and whether it takes no more work; False when its row is gone and
    must be registered again."""
    values = {"id": worker_id, "draining": draining, "gap": _MOST_GAP * lease_s}
    return bool(tx.execute(_SEE, values).rowcount)


def may_rescue(tx: Tx, worker_id: UUID, *, lease_s: float) -> bool:
    """Whether every living worker has had the time to renew its leases, as far as this one knows,
    which must have been seen itself within half a lease."""
    found: bool | None = tx.execute(
        sa.text(
            "SELECT seen_at > clock_timestamp() - make_interval(secs => :gap) "
            "AND steady_since <= clock_timestamp() - make_interval(secs => :lease) "
            "FROM workers WHERE id = :id"
        ),
        {"id": worker_id, "gap": _MOST_GAP * lease_s, "lease": lease_s},
    ).scalar_one_or_none()
    return bool(found)


def forget(tx: Tx, worker_id: UUID) -> None:
    """Remove a worker that stopped."""
    tx.execute(sa.text("DELETE FROM workers WHERE id = :id"), {"id": worker_id})


def prune(tx: Tx, *, unseen_s: float) -> int:
    """Remove workers not seen for that many seconds; returns how many."""
    return tx.execute(
        sa.text(
            "DELETE FROM workers WHERE seen_at < clock_timestamp() - make_interval(secs => :s)"
        ),
        {"s": unseen_s},
    ).rowcount
