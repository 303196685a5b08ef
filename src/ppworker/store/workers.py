"""The register of worker processes, for people to look at; leases never depend on it."""

from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx


def register(tx: Tx, worker_id: UUID, *, host: str, pid: int, version: str, slots: int) -> None:
    """Record a worker process that has just started."""
    tx.execute(
        sa.text(
            "INSERT INTO workers (id, host, pid, version, slots) "
            "VALUES (:id, :host, :pid, :version, :slots) "
            "ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()"
        ),
        {"id": worker_id, "host": host, "pid": pid, "version": version, "slots": slots},
    )


def mark_seen(tx: Tx, worker_id: UUID, *, draining: bool = False) -> bool:
    """Say that the worker lives, and whether it takes no more work; False when its row is gone and
    must be registered again."""
    seen = tx.execute(
        sa.text(
            "UPDATE workers SET seen_at = clock_timestamp(), draining = :draining WHERE id = :id"
        ),
        {"id": worker_id, "draining": draining},
    )
    return bool(seen.rowcount)


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
