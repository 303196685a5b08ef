"""Annotations: what people and models said about items, written by difference."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.replace import Existing
from ppworker.store import bulk
from ppworker.store.db import Tx, by_name
from ppworker.store.tables import annotations


class NewAnnotation(NamedTuple):
    """A row to be written, in the order of its columns."""

    id: UUID
    version_id: UUID
    item_id: UUID
    label_id: UUID
    split_id: UUID | None
    user_id: UUID
    kind: str
    geometry: str | None
    """JSON text."""
    coordinates: str
    text: str | None
    page: int | None
    score: float | None
    source: str
    post_processor_id: UUID | None
    job_id: UUID | None
    model_version: str
    review: str
    fingerprint: str | None
    inference_id: UUID | None = None
    origin: str | None = None
    """JSON text: of an imported one, what it was where it was exported."""


_COLUMNS = NewAnnotation._fields

_EXISTING = sa.text("""
SELECT a.item_id, a.version_id, a.id, a.label_id, a.kind, a.post_processor_id,
  coalesce(p."order", 0) AS "order", a.source, a.review <> 'suggested' AS reviewed,
  a.deleted_at IS NOT NULL AS deleted, a.fingerprint, a.score, a.geometry, a.coordinates
FROM annotations a
JOIN unnest(CAST(:items AS uuid[]), CAST(:versions AS uuid[])) AS w(item, version)
  ON a.item_id = w.item AND a.version_id = w.version
LEFT JOIN post_processors p ON p.id = a.post_processor_id
""")


def read_existing(
    tx: Tx, pairs: Sequence[tuple[UUID, UUID]]
) -> dict[tuple[UUID, UUID], list[Existing]]:
    """Every row of each (item, version), tombstones included, read under the items' locks."""
    found: dict[tuple[UUID, UUID], list[Existing]] = {}
    rows = tx.execute(
        _EXISTING,
        {"items": bulk.uuids(p[0] for p in pairs), "versions": bulk.uuids(p[1] for p in pairs)},
    )
    for row in rows:
        values = by_name(row)
        key = (values.pop("item_id"), values.pop("version_id"))
        found.setdefault(key, []).append(Existing(**values))
    return found


def insert_annotations(tx: Tx, rows: Sequence[NewAnnotation]) -> None:
    """Insert annotations by one statement."""
    bulk.insert(tx, annotations, _COLUMNS, rows)


def update_predictions(tx: Tx, rows: Sequence[NewAnnotation]) -> None:
    """Give unreviewed rows, matched by id, what an equal prediction means today."""
    tx.execute(
        sa.text(
            "UPDATE annotations a SET label_id = w.label_id, score = w.score, "
            "geometry = CAST(w.geometry AS jsonb), coordinates = w.coordinates, text = w.text, "
            "model_version = w.model_version, job_id = w.job_id, updated_at = now() "
            "FROM unnest(CAST(:ids AS uuid[]), CAST(:labels AS uuid[]), CAST(:scores AS float8[]), "
            "CAST(:geometries AS text[]), CAST(:coordinates AS text[]), CAST(:texts AS text[]), "
            "CAST(:models AS text[]), CAST(:jobs AS uuid[])) AS "
            "w(id, label_id, score, geometry, coordinates, text, model_version, job_id) "
            "WHERE a.id = w.id AND a.review = 'suggested' AND a.source <> 'human'"
        ),
        {
            "ids": bulk.uuids(row.id for row in rows),
            "labels": bulk.uuids(row.label_id for row in rows),
            "scores": bulk.numbers(row.score for row in rows),
            "geometries": bulk.texts(row.geometry for row in rows),
            "coordinates": bulk.texts(row.coordinates for row in rows),
            "texts": bulk.texts(row.text for row in rows),
            "models": bulk.texts(row.model_version for row in rows),
            "jobs": bulk.uuids(row.job_id for row in rows),
        },
    )


def delete_suggestions(tx: Tx, ids: Sequence[UUID]) -> None:
    """Delete models' unreviewed rows; a person's row is never deleted here, whatever is asked."""
    tx.execute(
        sa.text(
            "DELETE FROM annotations WHERE id = ANY(CAST(:ids AS uuid[])) AND review = 'suggested' "
            "AND source <> 'human' AND deleted_at IS NULL"
        ),
        {"ids": bulk.uuids(ids)},
    )


def list_annotations(tx: Tx, item_id: UUID) -> Sequence[sa.Row[Any]]:
    """Live annotations of an item with label and author names."""
    return tx.execute(
        sa.text(
            "SELECT a.id, l.name AS label, a.kind, a.geometry, a.coordinates, a.text, a.page, "
            "a.score, a.source, a.review, p.name AS post_processor, a.model_version "
            "FROM annotations a JOIN labels l ON l.id = a.label_id AND l.deleted_at IS NULL "
            "LEFT JOIN post_processors p ON p.id = a.post_processor_id "
            "WHERE a.item_id = :item AND a.deleted_at IS NULL ORDER BY a.version_id, a.id"
        ),
        {"item": item_id},
    ).all()
