"""Jobs as clients read them: with the names around them and the model's raw answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx

_MOST_RESULT_BYTES = 8 * 1024 * 1024
"""Raw answers of one page as they are stored, compressed; behind them a page has none."""
_MOST_TEXT_BYTES = 32 * 1024 * 1024
"""The same as text: what repeats itself is stored in a hundredth of its size."""


JobState = Literal["pending", "processing", "completed", "failed"]
_STATES: tuple[JobState, ...] = ("pending", "processing", "completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which jobs of a dataset; None asks for nothing."""

    version_id: UUID | None = None
    item_id: UUID | None = None
    post_processor_id: UUID | None = None
    status: JobState | None = None
    job_id: UUID | None = None


# Every post-processor gives its first jobs of every state by an index, so a page costs no more
# than the pages before it, and a page behind a cursor costs what the first one does. Words of
# states stand in the statement itself: a plan made for any state could not use an index that is
# for some of them.
_IDS = """
SELECT f.id FROM post_processors p CROSS JOIN LATERAL ({found}) f
WHERE p.dataset_id = :dataset {processor} ORDER BY f.id OFFSET :offset LIMIT :limit
"""
_IDS_OF_STATE = """
(SELECT j.id FROM post_processor_jobs j WHERE j.post_processor_id = p.id AND j.status = '{state}'
  {conditions} ORDER BY j.id LIMIT :reach)
"""
# An item has few jobs.
_IDS_OF_ITEM = """
SELECT j.id FROM post_processor_jobs j JOIN post_processors p ON p.id = j.post_processor_id
WHERE p.dataset_id = :dataset AND j.item_id = :item_id {processor} {conditions}
ORDER BY j.id OFFSET :offset LIMIT :limit
"""


def list_job_ids(
    tx: Tx,
    dataset_id: UUID,
    filters: Filters,
    *,
    after: UUID | None = None,
    offset: int = 0,
    limit: int,
) -> list[UUID]:
    """Ids of jobs of a dataset in the order in which they were made, those of deleted
    post-processors included; whose the dataset is is the caller's to know."""
    asked = {
        "AND j.version_id = :version_id": filters.version_id,
        "AND j.id = :job_id": filters.job_id,
        "AND j.id > :after": after,
    }
    conditions = " ".join(words for words, value in asked.items() if value is not None)
    states = _STATES if filters.status is None else (filters.status,)
    if filters.item_id is not None:
        known = ", ".join(f"'{state}'" for state in states)
        statement, conditions = _IDS_OF_ITEM, f"{conditions} AND j.status IN ({known})"
    else:
        statement = _IDS
    found = " UNION ALL ".join(
        _IDS_OF_STATE.format(state=state, conditions=conditions) for state in states
    )
    processor = "" if filters.post_processor_id is None else "AND p.id = :post_processor_id"
    rows = tx.execute(
        sa.text(statement.format(found=found, processor=processor, conditions=conditions)),
        {
            "dataset": dataset_id,
            "version_id": filters.version_id,
            "item_id": filters.item_id,
            "post_processor_id": filters.post_processor_id,
            "job_id": filters.job_id,
            "after": after,
            "offset": offset,
            "limit": limit,
            "reach": offset + limit,
        },
    )
    return list(rows.scalars())


# How long an answer is as text is found out only for those that are not too long as stored.
_JOBS = sa.text("""
SELECT j.id, j.post_processor_id, j.item_id, j.dataset_id, j.version_id, j.user_id, j.status,
  j.attempts, j.max_attempts, j.error, j.reason, j.dropped, j.run_at, j.created_at,
  j.started_at, j.completed_at, greatest(j.created_at, j.started_at, j.completed_at) AS updated_at,
  j.post_processor_name, i.name AS item_name,
  CASE WHEN j.text_bytes IS NOT NULL
      AND sum(j.text_bytes) OVER (ORDER BY j.id) <= :most_text_bytes
    THEN CAST(j.raw AS text) END AS result
FROM (
  SELECT j.*, r.raw, CASE WHEN sum(pg_column_size(r.raw)) OVER (ORDER BY j.id) <= :most_bytes
    THEN octet_length(CAST(r.raw AS text)) END AS text_bytes
  FROM (
    SELECT j.*, p.dataset_id, p.name AS post_processor_name
    FROM post_processor_jobs j JOIN post_processors p ON p.id = j.post_processor_id
    WHERE j.id = ANY(CAST(:ids AS uuid[]))) j
  LEFT JOIN job_results r ON r.item_id = j.item_id AND r.version_id = j.version_id
    AND r.post_processor_id = j.post_processor_id AND r.job_id = j.id AND j.status = 'completed'
  ) j
JOIN dataset_items i ON i.id = j.item_id
ORDER BY j.id
""")


def list_jobs(tx: Tx, ids: Sequence[UUID]) -> Sequence[sa.Row[Any]]:
    """The jobs of those ids that are still there, in the order in which they were made.

    The raw answer of a job stands beside it unless a later job has replaced it; a page holds a
    bounded amount of them.
    """
    return tx.execute(
        _JOBS,
        {
            "ids": bulk.uuids(ids),
            "most_bytes": _MOST_RESULT_BYTES,
            "most_text_bytes": _MOST_TEXT_BYTES,
        },
    ).all()
