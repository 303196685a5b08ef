"""The walk along jobs that wait for an earlier one, in search of those that wait for nothing."""

from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import db
from ppworker.store.db import Tx
from ppworker.store.jobs import BLOCKED

FIRST = UUID(int=0)
"""Before every item."""


class Walked(NamedTuple):
    """One step."""

    stuck: list[UUID]
    """Items with a job that waits although no job of lower order lives."""
    last: UUID | None
    """The last item looked at, behind which the next step begins; None at the end."""


def try_lock(tx: Tx) -> bool:
    """Take the right to repair until the transaction ends; false while somebody else has it."""
    return db.try_lock(tx, "ppworker.waiting")


# Item by item: a join of all would look at every job that waits, and in health each of them does
# rightly.
_WALK = sa.text(f"""
WITH seen AS MATERIALIZED (
  SELECT DISTINCT item_id FROM post_processor_jobs
  WHERE status = 'pending' AND NOT ready AND item_id > :after
  ORDER BY item_id LIMIT :n)
SELECT
  ARRAY(SELECT s.item_id FROM seen s CROSS JOIN LATERAL (
    SELECT 1 FROM post_processor_jobs p
    WHERE p.item_id = s.item_id AND p.status = 'pending' AND NOT p.ready AND NOT {BLOCKED}
    LIMIT 1) AS found ORDER BY s.item_id) AS stuck,
  (SELECT item_id FROM seen ORDER BY item_id OFFSET CAST(:n AS int) - 1) AS last
""")  # noqa: S608  a constant of the job table


def find_stuck(tx: Tx, *, after: UUID, limit: int) -> Walked:
    """Look at the waiting jobs of ``limit`` items behind ``after``, without locks."""
    row = tx.execute(_WALK, {"after": after, "n": limit}).one()
    return Walked._make(row)
