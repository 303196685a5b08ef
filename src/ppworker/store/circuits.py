"""Pauses of post-processors by their models' failures; a post-processor without a row has none."""

from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.circuit import Circuit
from ppworker.store.db import Tx, by_name

# An update of nothing, since only that locks the row that is there: an answer may take it away.
_LOCK = sa.text("""
INSERT INTO post_processor_circuits AS c (post_processor_id) VALUES (:id)
ON CONFLICT (post_processor_id) DO UPDATE SET failures = c.failures
RETURNING failures, trips, reason,
  extract(epoch FROM open_until - clock_timestamp())::float8 AS rests_s
""")
_WRITE = sa.text("""
UPDATE post_processor_circuits SET failures = :failures, trips = :trips, reason = :reason,
  opened_at = CASE WHEN CAST(:rests_s AS float8) IS NULL THEN NULL
    ELSE coalesce(opened_at, clock_timestamp()) END,
  open_until = clock_timestamp() + make_interval(secs => CAST(:rests_s AS float8))
WHERE post_processor_id = :id
""")
# An answer to a batch that was claimed before the pause does not end it.
_CLOSE = sa.text("""
DELETE FROM post_processor_circuits WHERE post_processor_id = :id
  AND (open_until IS NULL OR open_until <= clock_timestamp() OR :by_force)
RETURNING open_until IS NOT NULL AS was_open
""")


def lock_circuit(tx: Tx, post_processor_id: UUID) -> Circuit:
    """The circuit of a post-processor, made if there is none; held until the transaction ends."""
    return Circuit(**by_name(tx.execute(_LOCK, {"id": post_processor_id}).one()))


def write_circuit(tx: Tx, post_processor_id: UUID, circuit: Circuit) -> None:
    """Write a circuit that is locked."""
    values = {
        "id": post_processor_id,
        "failures": circuit.failures,
        "trips": circuit.trips,
        "reason": circuit.reason,
        "rests_s": circuit.rests_s,
    }
    tx.execute(_WRITE, values)


def close_circuit(tx: Tx, post_processor_id: UUID, *, by_force: bool = False) -> bool:
    """Forget a post-processor's failures, and its pause if that is over or ``by_force``.

    Returns whether it had a pause.
    """
    row = tx.execute(_CLOSE, {"id": post_processor_id, "by_force": by_force}).one_or_none()
    return row is not None and bool(row.was_open)
