"""Items and their membership in splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.blobs import text_sha256
from ppworker.store.db import Tx, by_name
from ppworker.store.tables import dataset_items, item_splits


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    id: UUID
    dataset_id: UUID
    user_id: UUID
    name: str
    text: str | None = None
    extension: str = ""
    media_type: str = ""
    content_sha256: str | None = None
    size_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    page_count: int | None = None
    duration_s: float | None = None
    metadata: str = ""
    description: str = ""

    @property
    def text_sha256(self) -> str | None:
        return None if self.text is None else text_sha256(self.text)


class LockedItem(NamedTuple):
    """What a finish decides on, read after the item's lock was won; in the order of its columns."""

    id: UUID
    content_sha256: str | None
    text_sha256: str | None
    width: int | None
    height: int | None
    page_count: int | None
    duration_s: float | None
    deleted_at: datetime | None
    text_edited: bool
    """A person wrote its text; models leave it alone."""


_COLUMNS = (
    "id",
    "dataset_id",
    "user_id",
    "name",
    "text",
    "text_sha256",
    "extension",
    "media_type",
    "content_sha256",
    "size_bytes",
    "width",
    "height",
    "page_count",
    "duration_s",
    "metadata",
    "description",
)


def insert_items(tx: Tx, items: Sequence[NewItem]) -> None:
    """Insert items by one statement."""
    bulk.insert(
        tx, dataset_items, _COLUMNS, [[getattr(i, name) for name in _COLUMNS] for i in items]
    )


def insert_memberships(tx: Tx, rows: Sequence[tuple[UUID, UUID, UUID]]) -> None:
    """Insert (split, item, version) memberships."""
    bulk.insert(tx, item_splits, ("split_id", "item_id", "version_id"), rows)


_LEAVE = sa.text(
    "DELETE FROM item_splits WHERE split_id = :split AND item_id = ANY(CAST(:items AS uuid[]))"
)
_RAISE = sa.text(
    "UPDATE dataset_items SET version = version + 1, updated_at = clock_timestamp() "
    "WHERE id = ANY(CAST(:items AS uuid[]))"
)


def remove_memberships(tx: Tx, split_id: UUID, item_ids: Sequence[UUID]) -> None:
    """Take locked items out of a split; they must be in another one of its version."""
    values = {"split": split_id, "items": bulk.uuids(item_ids)}
    tx.execute(_LEAVE, values)
    tx.execute(_RAISE, values)


_LOCK_ITEMS = """
SELECT id, content_sha256, text_sha256, width, height, page_count, duration_s, deleted_at,
  text_edited FROM dataset_items WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE """
_LOCK = sa.text(_LOCK_ITEMS)
_LOCK_UNLOCKED = sa.text(_LOCK_ITEMS + "SKIP LOCKED")


def lock_items(tx: Tx, ids: Sequence[UUID], *, skip_locked: bool = False) -> dict[UUID, LockedItem]:
    """Lock items in the order of their ids: always the first lock, always a statement of its own.

    What is read in later statements is then newer than the lock.
    """
    rows = tx.execute(
        _LOCK_UNLOCKED if skip_locked else _LOCK,
        {"ids": bulk.uuids(bulk.in_order(ids))},
    )
    return {row[0]: LockedItem._make(row) for row in rows}


_FILE_COLUMNS = (
    "extension",
    "media_type",
    "content_sha256",
    "size_bytes",
    "width",
    "height",
    "page_count",
    "duration_s",
)


def put_file(tx: Tx, item_id: UUID, file: NewItem, *, drop_text: bool) -> bool:
    """Give a locked item a file, in place of the one it had; returns whether it has text then.

    Its text becomes the file's where the file is text; otherwise ``drop_text`` says whether the
    old one goes. What a person wrote about the old file may give way to what models read in the
    new one. An item without a name takes the file's.
    """
    values: dict[str, Any] = {name: getattr(file, name) for name in _FILE_COLUMNS}
    values["text_edited"] = False
    if file.text is not None or drop_text:
        values |= {"text": file.text, "text_sha256": file.text_sha256}
    columns = dataset_items.c
    return bool(
        tx.execute(
            sa.update(dataset_items)
            .where(columns.id == item_id)
            .values(
                **values,
                name=sa.case((columns.name == "", file.name), else_=columns.name),
                version=columns.version + 1,
                updated_at=sa.func.now(),
            )
            .returning(sa.func.coalesce(columns.text, "") != "")
        ).scalar_one()
    )


def find_media_type(tx: Tx, item_id: UUID) -> str | None:
    """The media type of an item's file or text, None where there is no such item."""
    return tx.execute(
        sa.select(dataset_items.c.media_type).where(dataset_items.c.id == item_id)
    ).scalar_one_or_none()


_READ_TEXTS = sa.text(
    "SELECT id, text FROM dataset_items WHERE id = ANY(CAST(:ids AS uuid[])) AND text IS NOT NULL"
)


def read_texts(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, str]:
    """Texts of items that have one."""
    rows = tx.execute(
        _READ_TEXTS,
        {"ids": bulk.uuids(ids)},
    )
    return {row[0]: row[1] for row in rows}


_READ_SPLITS = sa.text(
    "SELECT s.item_id, s.version_id, s.split_id FROM item_splits s "
    "JOIN unnest(CAST(:items AS uuid[]), CAST(:versions AS uuid[])) AS w(item, version) "
    "ON s.item_id = w.item AND s.version_id = w.version ORDER BY s.split_id"
)


def read_splits(tx: Tx, pairs: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], list[UUID]]:
    """Splits of each (item, version)."""
    found: dict[tuple[UUID, UUID], list[UUID]] = {}
    rows = tx.execute(
        _READ_SPLITS,
        {
            "items": bulk.uuids(pair[0] for pair in pairs),
            "versions": bulk.uuids(pair[1] for pair in pairs),
        },
    )
    for item_id, version_id, split_id in rows:
        found.setdefault((item_id, version_id), []).append(split_id)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprocessed:
    """An item for which a post-processor never had a job."""

    id: UUID
    extension: str
    media_type: str
    has_file: bool
    has_text: bool


def find_without_job(
    tx: Tx,
    split_id: UUID,
    version_id: UUID,
    post_processor_id: UUID,
    *,
    after: UUID | None,
    limit: int,
) -> list[Unprocessed]:
    """Items of a split, by id behind ``after``, for which the post-processor has no job and has
    not answered: jobs are pruned, answers stay."""
    rows = tx.execute(
        sa.text(
            "SELECT i.id, i.extension, i.media_type, i.content_sha256 IS NOT NULL AS has_file, "
            "coalesce(i.text, '') <> '' AS has_text "
            "FROM item_splits s JOIN dataset_items i ON i.id = s.item_id "
            "WHERE s.split_id = :split AND i.deleted_at IS NULL "
            "AND s.item_id > CAST(:after AS uuid) "
            "AND NOT EXISTS (SELECT 1 FROM post_processor_jobs j WHERE j.item_id = s.item_id "
            "AND j.version_id = :version AND j.post_processor_id = :processor) "
            "AND NOT EXISTS (SELECT 1 FROM job_results r WHERE r.item_id = s.item_id "
            "AND r.version_id = :version AND r.post_processor_id = :processor) "
            "ORDER BY s.item_id LIMIT :limit"
        ),
        {
            "split": split_id,
            "after": after or UUID(int=0),
            "version": version_id,
            "processor": post_processor_id,
            "limit": limit,
        },
    )
    return [Unprocessed(**by_name(row)) for row in rows]


def without_job(
    tx: Tx, ids: Sequence[UUID], version_id: UUID, post_processor_id: UUID
) -> set[UUID]:
    """Those of the items for which the post-processor has no job and has not answered, and that are
    still in the version; exact when they are locked."""
    rows = tx.execute(
        sa.text(
            "SELECT w.id FROM unnest(CAST(:ids AS uuid[])) AS w(id) WHERE NOT EXISTS ("
            "SELECT 1 FROM post_processor_jobs j WHERE j.item_id = w.id "
            "AND j.version_id = :version AND j.post_processor_id = :processor) AND NOT EXISTS ("
            "SELECT 1 FROM job_results r WHERE r.item_id = w.id AND r.version_id = :version "
            "AND r.post_processor_id = :processor) AND EXISTS ("
            "SELECT 1 FROM item_splits s WHERE s.item_id = w.id AND s.version_id = :version)"
        ),
        {"ids": bulk.uuids(ids), "version": version_id, "processor": post_processor_id},
    )
    return set(rows.scalars())


def write_texts(tx: Tx, texts: Mapping[UUID, str]) -> None:
    """Replace texts of locked items; an equal text changes nothing, another raises ``version``."""
    ids = sorted(texts)
    tx.execute(
        sa.text(
            "UPDATE dataset_items i SET text = w.text, text_sha256 = w.sha256, "
            "version = i.version + 1, updated_at = now() "
            "FROM unnest(CAST(:ids AS uuid[]), CAST(:texts AS text[]), CAST(:shas AS text[])) "
            "AS w(id, text, sha256) "
            "WHERE i.id = w.id AND i.text_sha256 IS DISTINCT FROM w.sha256"
        ),
        {
            "ids": bulk.uuids(ids),
            "texts": bulk.texts(texts[id_] for id_ in ids),
            "shas": bulk.texts(text_sha256(texts[id_]) for id_ in ids),
        },
    )


_STATUS_COUNTS = """
SELECT i.id, i.name, i.extension, i.media_type, i.size_bytes, i.width, i.height, i.page_count,
  i.duration_s, i.version, left(i.text, :shown) AS text, length(i.text) AS text_length,
  i.content_sha256, i.created_at,
  (SELECT jsonb_object_agg(c.status, c.n) FROM (
     SELECT j.status, count(*) AS n FROM post_processor_jobs j
     WHERE j.item_id = i.id AND j.version_id = s.version_id GROUP BY j.status) c) AS jobs,
  (SELECT count(*) FROM annotations a WHERE a.item_id = i.id AND a.version_id = s.version_id
     AND a.deleted_at IS NULL) AS annotation_count
FROM item_splits s JOIN dataset_items i ON i.id = s.item_id
JOIN dataset_splits p ON p.id = s.split_id AND p.deleted_at IS NULL
JOIN dataset_versions v ON v.id = s.version_id AND v.deleted_at IS NULL
WHERE {where} AND i.deleted_at IS NULL ORDER BY i.id LIMIT :limit
"""


def list_items(
    tx: Tx, split_id: UUID, *, after: UUID | None, limit: int, shown: int = 80
) -> Sequence[sa.Row[Any]]:
    """Items of a split by id, behind ``after``, with job counts; ``shown`` characters of text."""
    where = "s.split_id = :split" + (" AND s.item_id > :after" if after else "")
    return tx.execute(
        sa.text(_STATUS_COUNTS.format(where=where)),
        {"split": split_id, "limit": limit, "shown": shown} | ({"after": after} if after else {}),
    ).all()


def find_item(tx: Tx, user_id: UUID, item_id: UUID) -> sa.Row[Any] | None:
    """One item of the user with its whole text and job counts (of its first version)."""
    return tx.execute(
        sa.text(_STATUS_COUNTS.format(where="i.id = :item AND i.user_id = :user")),
        {"item": item_id, "user": user_id, "limit": 1, "shown": 10_000_000},
    ).one_or_none()
