"""Takes jobs out of the table with the items they were for."""

from collections.abc import Mapping

import sqlalchemy as sa

from ppworker.store.db import Tx

_DELETE = sa.text("""
WITH held AS MATERIALIZED (
  SELECT j.id FROM post_processor_jobs j
  JOIN unnest(CAST(:items AS uuid[]), CAST(:versions AS uuid[])) AS w(item, version)
    ON j.item_id = w.item AND (w.version IS NULL OR j.version_id = w.version)
  ORDER BY j.id FOR UPDATE OF j),
history AS (DELETE FROM job_attempts WHERE job_id IN (SELECT id FROM held))
DELETE FROM post_processor_jobs WHERE id IN (SELECT id FROM held)
""")


def delete_jobs(tx: Tx, parts: Mapping[str, str]) -> int:
    """Delete every job of locked items, with its history; returns how many.

    One that runs loses its lease by it: its finish finds no row, and writes nothing.

    Args:
        tx: the transaction.
        parts: items and versions, as ``store.deletions`` writes them.
    """
    return tx.execute(_DELETE, parts).rowcount
