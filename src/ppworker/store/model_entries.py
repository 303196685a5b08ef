"""Which batches are in a model that shares its worker's process: the table ``model_entries``."""

from collections.abc import Collection
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx

_KEPT_S = 86_400.0
"""Seconds after which an entry that belongs to no running batch is nobody's."""


def enter(tx: Tx, batch_id: UUID) -> None:
    """Note that a batch is about to enter a model. ``jobs.move`` ends it.

    A statement for itself costs no wait for the disk: the table is unlogged.
    """
    tx.execute(
        sa.text(
            "INSERT INTO model_entries (batch_id) VALUES (:batch) ON CONFLICT (batch_id) DO NOTHING"
        ),
        {"batch": batch_id},
    )


# In the words of the index of what is in flight.
_RUNS = """EXISTS (SELECT 1 FROM post_processor_jobs j
  WHERE j.status = 'processing' AND j.batch_id = e.batch_id)"""
_LEAVE = sa.text(f"""
DELETE FROM model_entries e
WHERE e.batch_id = ANY(CAST(:batches AS uuid[])) AND NOT {_RUNS}
""")  # noqa: S608  the constant above
_PRUNE = sa.text(f"""
DELETE FROM model_entries e
WHERE e.entered_at < now() - make_interval(secs => :kept_s) AND NOT {_RUNS}
""")  # noqa: S608  the constant above


def leave(tx: Tx, batch_ids: Collection[UUID]) -> None:
    """Forget those of the batches of which no job runs any more."""
    if batch_ids:
        tx.execute(_LEAVE, {"batches": bulk.uuids(batch_ids)})


def prune(tx: Tx) -> int:
    """Forget entries that nobody ended: of batches whose every job was cancelled meanwhile.

    Returns how many.
    """
    return tx.execute(_PRUNE, {"kept_s": _KEPT_S}).rowcount
