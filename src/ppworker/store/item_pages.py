"""Items as clients read them: one, or several, each answer in a fixed number of statements whatever
it holds. Which items a list holds is told by `item_lists`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from ppworker.store import bulk
from ppworker.store.db import Tx, by_name
from ppworker.store.tables import Uuid, dataset_items, dataset_splits, item_splits


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    id: UUID
    user_id: UUID
    name: str
    description: str
    text: str | None
    extension: str
    media_type: str
    content_sha256: str | None
    """Of its file, if it has one."""
    size_bytes: int | None
    width: int | None
    height: int | None
    page_count: int | None
    duration_s: float | None
    version: int
    """Grows by one at each change."""
    created_at: datetime
    updated_at: datetime


_ITEMS = sa.select(*(dataset_items.c[field.name] for field in fields(Item)))


def find_item(tx: Tx, version_id: UUID, item_id: UUID) -> Item | None:
    """An item of a version; whose the version is is the caller's to know."""
    row = tx.execute(
        _ITEMS.where(
            dataset_items.c.id == item_id,
            dataset_items.c.deleted_at.is_(None),
            sa.exists().where(
                item_splits.c.item_id == item_id,
                item_splits.c.version_id == version_id,
                dataset_splits.c.id == item_splits.c.split_id,
                dataset_splits.c.deleted_at.is_(None),
            ),
        )
    ).one_or_none()
    return None if row is None else Item(**by_name(row))


def list_items(tx: Tx, ids: Sequence[UUID]) -> list[Item]:
    """The items of those ids that are there, in their order."""
    rows = tx.execute(
        _ITEMS.where(
            dataset_items.c.id == sa.any_(sa.cast(sa.literal(bulk.uuids(ids)), ARRAY(Uuid))),
            dataset_items.c.deleted_at.is_(None),
        ).order_by(dataset_items.c.id)
    )
    return [Item(**by_name(row)) for row in rows]


_ANNOTATIONS = sa.text("""
SELECT a.id, a.item_id, a.label_id, a.split_id, a.user_id, a.coordinates, a.kind, a.text, a.page,
  a.score, a.source, a.review, a.post_processor_id, a.model_version, a.created_at, a.updated_at
FROM annotations a JOIN labels l ON l.id = a.label_id AND l.deleted_at IS NULL
WHERE a.version_id = :version AND a.deleted_at IS NULL
  AND a.item_id = ANY(CAST(:items AS uuid[])) ORDER BY a.item_id, a.id
""")


def list_annotations(
    tx: Tx, version_id: UUID, item_ids: Sequence[UUID]
) -> dict[UUID, list[sa.Row[Any]]]:
    """Live annotations of items in a version, oldest first."""
    return _by_item(tx, _ANNOTATIONS, version_id, item_ids)


_MEMBERSHIPS = sa.text("""
SELECT p.item_id, p.split_id FROM item_splits p JOIN dataset_splits s ON s.id = p.split_id
WHERE p.version_id = :version AND p.item_id = ANY(CAST(:items AS uuid[])) AND s.deleted_at IS NULL
ORDER BY p.item_id, s.created_at, s.id
""")


def list_memberships(tx: Tx, version_id: UUID, item_ids: Sequence[UUID]) -> dict[UUID, list[UUID]]:
    """Splits of a version that items belong to, oldest first."""
    found = _by_item(tx, _MEMBERSHIPS, version_id, item_ids)
    return {item_id: [row.split_id for row in rows] for item_id, rows in found.items()}


_JOBS = sa.text("""
SELECT j.item_id, j.status, count(*) AS jobs FROM post_processor_jobs j
WHERE j.version_id = :version AND j.item_id = ANY(CAST(:items AS uuid[])) GROUP BY 1, 2
""")


def count_jobs(tx: Tx, version_id: UUID, item_ids: Sequence[UUID]) -> dict[UUID, dict[str, int]]:
    """Jobs of items in a version, by status."""
    found = _by_item(tx, _JOBS, version_id, item_ids)
    return {item_id: {row.status: row.jobs for row in rows} for item_id, rows in found.items()}


def _by_item(
    tx: Tx, statement: sa.TextClause, version_id: UUID, item_ids: Sequence[UUID]
) -> dict[UUID, list[sa.Row[Any]]]:
    found: dict[UUID, list[sa.Row[Any]]] = {}
    for row in tx.execute(statement, {"version": version_id, "items": bulk.uuids(item_ids)}):
        found.setdefault(row.item_id, []).append(row)
    return found
