"""Jobs as clients read them: with the names around them and the model's raw answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx

_MOST_RESULT_BYTES = 8 * 1024 * 1024
"""Raw answers of one page as they are stored, compressed; behind them a page has none."""
_MOST_TEXT_BYTES = 32 * 1024 * 1024
"""The same as text: what repeats itself is stored in a hundredth of its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which jobs of a dataset; None asks for nothing."""

    version_id: UUID | None = None
    item_id: UUID | None = None
    post_processor_id: UUID | None = None
    status: str | None = None
    job_id: UUID | None = None


_CONDITIONS = {
    "version_id": "j.version_id",
    "item_id": "j.item_id",
    "post_processor_id": "j.post_processor_id",
    "status": "j.status",
    "job_id": "j.id",
}

# How long an answer is as text is found out only for those that are not too long as stored.
_PAGE = """
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
    WHERE p.dataset_id = :dataset {filters} ORDER BY j.id OFFSET :offset LIMIT :limit) j
  LEFT JOIN job_results r ON r.item_id = j.item_id AND r.version_id = j.version_id
    AND r.post_processor_id = j.post_processor_id AND r.job_id = j.id AND j.status = 'completed'
  ) j
JOIN dataset_items i ON i.id = j.item_id
ORDER BY j.id
"""


def list_jobs(
    tx: Tx, dataset_id: UUID, filters: Filters, *, offset: int = 0, limit: int
) -> Sequence[sa.Row[Any]]:
    """Jobs of a dataset in the order in which they were made, those of deleted post-processors
    included; whose the dataset is is the caller's to know.

    The raw answer of a job stands beside it unless a later job has replaced it; a page holds a
    bounded amount of them.
    """
    given: Mapping[str, Any] = {
        name: value for name in _CONDITIONS if (value := getattr(filters, name)) is not None
    }
    wanted = " ".join(f"AND {_CONDITIONS[name]} = :{name}" for name in given)
    return tx.execute(
        sa.text(_PAGE.format(filters=wanted)),
        {
            "dataset": dataset_id,
            "offset": offset,
            "limit": limit,
            "most_bytes": _MOST_RESULT_BYTES,
            "most_text_bytes": _MOST_TEXT_BYTES,
            **given,
        },
    ).all()
