"""What people change: the statements of their edits. Items are locked by the caller first."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.blobs import text_sha256
from ppworker.store.db import Tx, by_name
from ppworker.store.tables import annotations, dataset_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """An annotation as clients read it, in its version."""

    id: UUID
    item_id: UUID
    label_id: UUID
    split_id: UUID | None
    """Where it was made; None where nobody said."""
    user_id: UUID
    coordinates: str
    kind: str
    text: str | None
    page: int | None
    score: float | None
    source: str
    review: str
    post_processor_id: UUID | None
    model_version: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    """Set on the tombstone of what a person deleted."""


_ANNOTATIONS = sa.select(*(annotations.c[field.name] for field in fields(Annotation)))


def find_annotation(tx: Tx, version_id: UUID, id_: UUID) -> Annotation | None:
    """An annotation of a version, tombstones included."""
    row = tx.execute(
        _ANNOTATIONS.where(annotations.c.version_id == version_id, annotations.c.id == id_)
    ).one_or_none()
    return None if row is None else Annotation(**by_name(row))


def list_annotations(
    tx: Tx,
    version_id: UUID,
    item_id: UUID,
    *,
    limit: int,
    offset: int = 0,
    after: UUID | None = None,
) -> list[Annotation]:
    """Live annotations of an item in a version, oldest first, behind ``after``."""
    rows = tx.execute(
        _ANNOTATIONS.where(
            annotations.c.item_id == item_id,
            annotations.c.version_id == version_id,
            annotations.c.id > (after or UUID(int=0)),
            annotations.c.deleted_at.is_(None),
        )
        .order_by(annotations.c.id)
        .offset(offset)
        .limit(limit)
    )
    return [Annotation(**by_name(row)) for row in rows]


def list_standing_classes(tx: Tx, version_id: UUID, item_id: UUID) -> list[UUID]:
    """The class annotations that stand on an item; more than one where a dataset takes many."""
    rows = tx.execute(
        sa.select(annotations.c.id).where(
            annotations.c.item_id == item_id,
            annotations.c.version_id == version_id,
            annotations.c.kind == "class",
            annotations.c.deleted_at.is_(None),
        )
    )
    return list(rows.scalars())


_COUNT_LABELS = sa.text("""
SELECT a.item_id, a.label_id, count(*) FROM annotations a
WHERE a.item_id = ANY(CAST(:items AS uuid[])) AND a.version_id = :version
  AND a.deleted_at IS NULL GROUP BY 1, 2
""")


def count_labels(
    tx: Tx, version_id: UUID, item_ids: Collection[UUID]
) -> dict[UUID, Counter[UUID | None]]:
    """Live annotations of locked items per label, for the deltas of their stats."""
    found: dict[UUID, Counter[UUID | None]] = {}
    values = {"items": bulk.uuids(item_ids), "version": version_id}
    for item_id, label_id, count in tx.execute(_COUNT_LABELS, values):
        found.setdefault(item_id, Counter())[label_id] = count
    return found


_HOLD_LABELS = sa.text("""
SELECT l.id FROM labels l WHERE l.id = ANY(CAST(:ids AS uuid[])) AND l.version_id = :version
  AND l.deleted_at IS NULL ORDER BY l.name, l.id FOR SHARE
""")


def hold_labels(tx: Tx, version_id: UUID, ids: Collection[UUID]) -> set[UUID]:
    """Those of the labels that the version has, held against being marked deleted.

    So whoever deletes a label finds every annotation that was made with it.
    """
    values = {"ids": bulk.uuids(ids), "version": version_id}
    return set(tx.execute(_HOLD_LABELS, values).scalars())


class Change(NamedTuple):
    """What a person's edit makes of an annotation, in the order of its columns."""

    label_id: UUID
    split_id: UUID | None
    kind: str
    geometry: str | None
    """JSON text; meaningless unless it was placed anew."""
    coordinates: str
    text: str | None
    page: int | None
    review: str


def update_annotation(tx: Tx, id_: UUID, change: Change, *, is_moved: bool) -> None:
    """Write a person's edit; source, model, score and fingerprint stay as they are.

    Args:
        tx: holds the item's lock.
        id_: of a live annotation.
        change: its new values.
        is_moved: whether the geometry is written too.
    """
    geometry = ", geometry = CAST(:geometry AS jsonb)" if is_moved else ""
    tx.execute(
        sa.text(
            "UPDATE annotations SET label_id = :label_id, split_id = :split_id, kind = :kind, "  # noqa: S608  the constant above
            "coordinates = :coordinates, text = :text, page = :page, review = :review, "
            f"updated_at = clock_timestamp(){geometry} WHERE id = :id AND deleted_at IS NULL"
        ),
        {"id": id_, **change._asdict()},
    )


_BURY = sa.text("""
UPDATE annotations SET review = 'rejected', deleted_at = clock_timestamp(),
  updated_at = clock_timestamp()
WHERE id = ANY(CAST(:ids AS uuid[])) AND deleted_at IS NULL
  AND (source IN ('model', 'inference') OR (:suggested AND review = 'suggested'))
""")
_ERASE = sa.text("""
DELETE FROM annotations WHERE id = ANY(CAST(:ids AS uuid[])) AND deleted_at IS NULL
  AND source NOT IN ('model', 'inference')
""")


def remove(tx: Tx, ids: Collection[UUID]) -> None:
    """Take annotations away, as a person does.

    What a model or an inference said leaves a tombstone, so that it does not come back.
    """
    values = {"ids": bulk.uuids(ids)}
    tx.execute(_BURY, {**values, "suggested": False})
    tx.execute(_ERASE, values)


def reject(tx: Tx, ids: Collection[UUID]) -> None:
    """Take suggestions away, whoever made them; each leaves a tombstone."""
    tx.execute(_BURY, {"ids": bulk.uuids(ids), "suggested": True})


def accept(tx: Tx, ids: Collection[UUID]) -> None:
    """Say that suggestions are right: no model changes them from now on."""
    tx.execute(
        sa.text(
            "UPDATE annotations SET review = 'accepted', updated_at = clock_timestamp() "
            "WHERE id = ANY(CAST(:ids AS uuid[])) AND review = 'suggested' AND deleted_at IS NULL"
        ),
        {"ids": bulk.uuids(ids)},
    )


def find_items_of(tx: Tx, version_id: UUID, ids: Collection[UUID]) -> dict[UUID, UUID]:
    """The items of those annotations that the version has, tombstones included."""
    return {
        row.id: row.item_id for row in tx.execute(_read(annotations.c.item_id, version_id, ids))
    }


def read_reviews(tx: Tx, version_id: UUID, ids: Collection[UUID]) -> dict[UUID, str]:
    """Review states of annotations; exact when their items are locked."""
    return {row.id: row.review for row in tx.execute(_read(annotations.c.review, version_id, ids))}


def _read(column: Any, version_id: UUID, ids: Collection[UUID]) -> sa.Select[Any]:
    return sa.select(annotations.c.id, column).where(
        annotations.c.version_id == version_id, annotations.c.id.in_(ids)
    )


def update_item(tx: Tx, item_id: UUID, values: Mapping[str, str]) -> None:
    """Write those fields of a locked item that are given; its version grows whatever they are.

    An empty text is no text, and another text than there was is the person's from now on. An item
    without a file is what its text says it is.
    """
    columns = dataset_items.c
    wanted: dict[str, Any] = dict(values)
    if "text" in values:
        text = values["text"] or None
        wanted["text"] = text
        wanted["text_sha256"] = None if text is None else text_sha256(text)
        is_other = columns.text_sha256.is_distinct_from(wanted["text_sha256"])
        wanted["text_edited"] = sa.case((is_other, bool(text)), else_=columns.text_edited)
        own = "text/plain" if text else ""
        wanted["media_type"] = sa.case(
            (columns.content_sha256.is_(None), own), else_=columns.media_type
        )
        if text and "extension" not in values:
            is_bare = sa.and_(columns.content_sha256.is_(None), columns.extension == "")
            wanted["extension"] = sa.case((is_bare, "txt"), else_=columns.extension)
    tx.execute(
        sa.update(dataset_items)
        .where(columns.id == item_id)
        .values(**wanted, version=columns.version + 1, updated_at=sa.func.clock_timestamp())
    )
