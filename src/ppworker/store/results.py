"""Raw answers of models, kept per (version, item, post-processor) beyond the life of their jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.post_processor import Reads
from ppworker.store import bulk
from ppworker.store.db import Tx
from ppworker.store.tables import job_results


class Result(NamedTuple):
    """A row to be written, in the order of its columns."""

    version_id: UUID
    item_id: UUID
    post_processor_id: UUID
    job_id: UUID
    raw: str
    """JSON text."""
    model_version: str
    input_revision: str
    """Hash of what the model read of the item."""
    text_sha256: str | None
    """Hash of the item's text once the answer was written, None where it had none: who finds
    another one knows that somebody changed the text since."""
    refused: int
    """Characters and values of the answer that PostgreSQL refuses: ``raw`` is not all of it."""


_COLUMNS = Result._fields


def write_results(tx: Tx, results: Sequence[Result]) -> None:
    """Keep raw answers, each replacing the one before it."""
    bulk.insert(
        tx,
        job_results,
        _COLUMNS,
        results,
        after="ON CONFLICT (item_id, version_id, post_processor_id) DO UPDATE SET "
        "job_id = excluded.job_id, raw = excluded.raw, model_version = excluded.model_version, "
        "input_revision = excluded.input_revision, text_sha256 = excluded.text_sha256, "
        "refused = excluded.refused, created_at = now()",
    )


def find_raw(tx: Tx, job_id: UUID) -> Any | None:
    """The raw answer that a job left, None when it left none or another replaced it."""
    return tx.execute(
        sa.text(
            "SELECT r.raw FROM post_processor_jobs j JOIN job_results r "
            "ON r.item_id = j.item_id AND r.version_id = j.version_id "
            "AND r.post_processor_id = j.post_processor_id AND r.job_id = j.id WHERE j.id = :id"
        ),
        {"id": job_id},
    ).scalar_one_or_none()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which kept answers of a post-processor are meant."""

    post_processor_id: UUID
    dataset_id: UUID
    split_id: UUID | None = None
    """None: every split of the dataset."""
    item_id: UUID | None = None
    """None: every item."""


class Walked(NamedTuple):
    """An item on the way through a scope, whether it has an answer or not."""

    item_id: UUID
    size_bytes: int
    """Of its text and answers, as text where they are more than a few."""


class Kept(NamedTuple):
    """A kept answer with what is known of its item, in the order of its columns."""

    item_id: UUID
    version_id: UUID
    job_id: UUID
    raw: Any
    model_version: str
    input_revision: str
    text_after: str | None
    refused: int
    content_sha256: str | None
    text_sha256: str | None
    width: int | None
    height: int | None
    page_count: int | None
    duration_s: float | None
    is_deleted: bool
    text: str | None
    """Only where it was asked for and the model read it."""


class State(NamedTuple):
    """How an answer stands now, in the order of its columns."""

    item_id: UUID
    version_id: UUID
    job_id: UUID | None
    """Of the answer that is kept now; None when there is none any more."""
    is_live: bool
    """Whether a job of the same item and post-processor is not over."""


# What repeats itself is stored in a hundredth of its size, so what is stored says little of what it
# is in memory; where it is small, that cannot be much.
#
# Split by split in the order of its key: one read of all splits would sort the rest of them again
# for each chunk.
_WALK = sa.text("""
WITH walked AS MATERIALIZED (
  SELECT DISTINCT m.item_id FROM dataset_splits s
  JOIN dataset_versions v ON v.id = s.version_id AND v.deleted_at IS NULL
  CROSS JOIN LATERAL (
    SELECT i.item_id FROM item_splits i WHERE i.split_id = s.id AND i.item_id > :after
    ORDER BY i.item_id LIMIT :n) m
  WHERE v.dataset_id = :dataset AND (CAST(:split AS uuid) IS NULL OR s.id = :split)
    AND s.deleted_at IS NULL
  ORDER BY m.item_id LIMIT :n)
SELECT w.item_id, (coalesce(CASE WHEN pg_column_size(i.text) < 500 THEN pg_column_size(i.text)
    ELSE octet_length(i.text) END, 0) + coalesce((
    SELECT sum(CASE WHEN pg_column_size(r.raw) < 500 THEN pg_column_size(r.raw)
      ELSE octet_length(CAST(r.raw AS text)) END) FROM job_results r
    WHERE r.item_id = w.item_id AND r.post_processor_id = :processor), 0))::bigint
FROM walked w CROSS JOIN LATERAL (
  SELECT text FROM dataset_items d WHERE d.id = w.item_id OFFSET 0) i
ORDER BY w.item_id
""")


def walk(tx: Tx, scope: Scope, *, after: UUID, limit: int) -> list[Walked]:
    """Items of a scope's splits by id behind ``after``."""
    rows = tx.execute(
        _WALK,
        {
            "dataset": scope.dataset_id,
            "split": scope.split_id,
            "processor": scope.post_processor_id,
            "after": after,
            "n": limit,
        },
    )
    return [Walked._make(row) for row in rows]


_COUNT = sa.text("""
SELECT count(DISTINCT i.item_id) FROM dataset_splits s
JOIN dataset_versions v ON v.id = s.version_id JOIN item_splits i ON i.split_id = s.id
WHERE v.dataset_id = :dataset AND (CAST(:split AS uuid) IS NULL OR s.id = :split)
  AND v.deleted_at IS NULL AND s.deleted_at IS NULL
""")


def count_walked(tx: Tx, scope: Scope) -> int:
    """How many items ``walk`` passes on its whole way."""
    values = {"dataset": scope.dataset_id, "split": scope.split_id}
    return int(tx.execute(_COUNT, values).scalar_one())


_KEPT = sa.text("""
SELECT r.item_id, r.version_id, r.job_id, r.raw, r.model_version, r.input_revision,
  r.text_sha256 AS text_after, r.refused, i.content_sha256, i.text_sha256,
  i.width, i.height, i.page_count, i.duration_s, i.deleted_at IS NOT NULL AS is_deleted,
  CASE WHEN :reads = 'text' OR (:reads = 'any' AND i.content_sha256 IS NULL) THEN i.text END
FROM job_results r JOIN dataset_items i ON i.id = r.item_id
WHERE r.item_id = ANY(CAST(:items AS uuid[])) AND r.post_processor_id = :processor
  AND EXISTS (SELECT 1 FROM item_splits s JOIN dataset_versions v ON v.id = s.version_id
    WHERE s.item_id = r.item_id AND s.version_id = r.version_id AND v.deleted_at IS NULL
      AND (CAST(:split AS uuid) IS NULL OR s.split_id = :split))
ORDER BY r.item_id, r.version_id
""")


def read_kept(
    tx: Tx, scope: Scope, item_ids: Sequence[UUID], *, texts_for: Reads | None
) -> list[Kept]:
    """The kept answers of some items in every version of the scope, by item.

    With the texts that a runner reads which reads such things.
    """
    rows = tx.execute(
        _KEPT,
        {
            "items": bulk.uuids(item_ids),
            "processor": scope.post_processor_id,
            "split": scope.split_id,
            "reads": texts_for or "",
        },
    )
    return [Kept._make(row) for row in rows]


_STATES = sa.text("""
SELECT w.item, w.version, r.job_id, EXISTS (SELECT 1 FROM post_processor_jobs j
  WHERE j.item_id = w.item AND j.version_id = w.version AND j.post_processor_id = :processor
    AND j.status IN ('pending', 'processing')) AS is_live
FROM unnest(CAST(:items AS uuid[]), CAST(:versions AS uuid[])) AS w(item, version)
LEFT JOIN job_results r ON r.item_id = w.item AND r.version_id = w.version
  AND r.post_processor_id = :processor
""")


def read_states(
    tx: Tx, post_processor_id: UUID, pairs: Sequence[tuple[UUID, UUID]]
) -> dict[tuple[UUID, UUID], State]:
    """How the answers of each (item, version) stand; exact when the items are locked."""
    rows = tx.execute(
        _STATES,
        {
            "processor": post_processor_id,
            "items": bulk.uuids(pair[0] for pair in pairs),
            "versions": bulk.uuids(pair[1] for pair in pairs),
        },
    )
    return {(row[0], row[1]): State._make(row) for row in rows}


def mark_texts(tx: Tx, post_processor_id: UUID, texts: Mapping[tuple[UUID, UUID], str]) -> None:
    """Record for each (item, version) the hash of the text that the answer left on the item."""
    tx.execute(
        sa.text(
            "UPDATE job_results r SET text_sha256 = w.sha256 FROM unnest(CAST(:items AS uuid[]), "
            "CAST(:versions AS uuid[]), CAST(:shas AS text[])) AS w(item, version, sha256) "
            "WHERE r.item_id = w.item AND r.version_id = w.version "
            "AND r.post_processor_id = :processor"
        ),
        {
            "processor": post_processor_id,
            "items": bulk.uuids(pair[0] for pair in texts),
            "versions": bulk.uuids(pair[1] for pair in texts),
            "shas": bulk.texts(texts.values()),
        },
    )
