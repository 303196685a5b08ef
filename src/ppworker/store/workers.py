"""The register of worker processes, and what they know together of the server's absences.

While PostgreSQL is away nobody can renew a lease. When it comes back, whoever looks first finds
leases of living workers expired, whose answers wait for just that moment. So nobody rescues before
the server has answered some worker for one whole lease without an interruption: in that time every
living worker that can reach it has renewed its leases. Each row says since when that is so. One
that has just started takes over what others know, so that workers that die often, one after the
other, do not keep each other's jobs from being rescued.

Workers may have leases of different length. What is an interruption to the shortest is one to all,
so all beat often enough to notice it; and all wait for the longest under which a job runs.

Leases depend on no row here: one that is pruned hides no job.
"""

from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx

_MOST_GAP = 0.5
"""Longest time between two answers, in leases, that is no interruption. A lease is renewed each
third of its life at the latest, so none can run out in an interruption of half a life."""
_LEAST_GAP_S = 2.0
"""Seconds that are none in any case, so that one very short lease does not keep all others from
being rescued where the server is slow."""

_UNBROKEN = f"""clock_timestamp() - make_interval(
  secs => greatest({_LEAST_GAP_S}, {_MOST_GAP} * (SELECT min(s.lease_s) FROM workers s)))"""  # noqa: S608  the constants above
_OTHERS_SINCE = f"""coalesce((SELECT min(o.steady_since) FROM workers o
  WHERE o.id <> :id AND o.seen_at > {_UNBROKEN}), clock_timestamp())"""  # noqa: S608  the constant above

_REGISTER = sa.text(f"""
INSERT INTO workers (id, host, pid, version, slots, lease_s, seen_at, steady_since)
VALUES (:id, :host, :pid, :version, :slots, :lease_s, clock_timestamp(), {_OTHERS_SINCE})
ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()
""")  # noqa: S608  the constant above
_SEE = sa.text(f"""
UPDATE workers w SET seen_at = clock_timestamp(), draining = :draining,
  steady_since = CASE WHEN w.seen_at > {_UNBROKEN} THEN w.steady_since ELSE {_OTHERS_SINCE} END
WHERE w.id = :id RETURNING (SELECT min(s.lease_s) FROM workers s)
""")  # noqa: S608  the constants above
_MAY_RESCUE = sa.text(f"""
SELECT w.seen_at > {_UNBROKEN} AND w.steady_since <= clock_timestamp() - make_interval(
  secs => greatest(w.lease_s, (SELECT max(o.lease_s) FROM workers o WHERE o.id IN (
    SELECT j.lease_owner FROM post_processor_jobs j WHERE j.status = 'processing'))))
FROM workers w WHERE w.id = :id
""")  # noqa: S608  the constant above


def register(
    tx: Tx, worker_id: UUID, *, host: str, pid: int, version: str, slots: int, lease_s: float
) -> None:
    """Record a worker process that has just started, and how long its leases live."""
    values = {"id": worker_id, "host": host, "pid": pid, "version": version, "slots": slots}
    tx.execute(_REGISTER, {**values, "lease_s": lease_s})


def mark_seen(tx: Tx, worker_id: UUID, *, draining: bool = False) -> float | None:
    """Say that the worker lives, and whether it takes no more work.

    Returns:
        Seconds of the shortest lease in the register, within half of which it must be seen again;
        None when its row is gone and must be registered again.
    """
    values = {"id": worker_id, "draining": draining}
    shortest: float | None = tx.execute(_SEE, values).scalar_one_or_none()
    return shortest


def may_rescue(tx: Tx, worker_id: UUID) -> bool:
    """Whether every living worker has had the time to renew its leases, as far as this one knows,
    which must have been seen itself within half of the shortest."""
    found: bool | None = tx.execute(_MAY_RESCUE, {"id": worker_id}).scalar_one_or_none()
    return bool(found)


def forget(tx: Tx, worker_id: UUID) -> None:
    """Remove a worker that stopped."""
    tx.execute(sa.text("DELETE FROM workers WHERE id = :id"), {"id": worker_id})


def prune(tx: Tx, *, unseen_s: float) -> int:
    """Remove workers not seen for that many seconds, nor for two leases; returns how many."""
    return tx.execute(
        sa.text(
            "DELETE FROM workers WHERE seen_at < clock_timestamp() "
            "- make_interval(secs => greatest(:s, 2 * lease_s))"
        ),
        {"s": unseen_s},
    ).rowcount
