"""Inferences made elsewhere, the items they became, and what applying them reads."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.labels import normalise_label
from ppworker.store import bulk
from ppworker.store.db import Tx
from ppworker.store.tables import inferences


class NewInference(NamedTuple):
    """A row to be written, in the order of its columns."""

    id: UUID
    dataset_id: UUID
    user_id: UUID
    external_id: str
    item_id: UUID
    raw: str
    """JSON text."""


class Known(NamedTuple):
    """An inference that was added before."""

    id: UUID
    item_id: UUID


class LinkedItem(NamedTuple):
    """An item that an inference is about, read under its lock; in the order of its columns."""

    id: UUID
    media_type: str
    extension: str
    width: int | None
    height: int | None
    duration_s: float | None
    has_text: bool
    deleted_at: datetime | None


def lock_dataset(tx: Tx, dataset_id: UUID) -> None:
    """Let one chunk of inferences of a dataset be written at a time, until the transaction ends.

    Two operations that bring the same inference would otherwise each make an item of it. A
    statement of its own, so that what is read after it is newer than the lock.
    """
    tx.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
        {"key": f"ppworker.inferences.{dataset_id}"},
    )


_KNOWN = sa.text(
    "SELECT external_id, id, item_id FROM inferences "
    "WHERE dataset_id = :dataset AND external_id = ANY(CAST(:ids AS text[]))"
)


def find_known(tx: Tx, dataset_id: UUID, external_ids: Collection[str]) -> dict[str, Known]:
    """Which of these inferences the dataset has, and the items they became."""
    rows = tx.execute(_KNOWN, {"dataset": dataset_id, "ids": bulk.texts(external_ids)})
    return {row[0]: Known(row[1], row[2]) for row in rows}


_LOCK_ITEMS = sa.text("""
SELECT id, media_type, extension, width, height, duration_s, text IS NOT NULL, deleted_at
FROM dataset_items
WHERE id = ANY(CAST(:ids AS uuid[])) AND dataset_id = :dataset AND user_id = :user
ORDER BY id FOR UPDATE
""")


def lock_items(
    tx: Tx, user_id: UUID, dataset_id: UUID, ids: Collection[UUID]
) -> dict[UUID, LinkedItem]:
    """Lock those of the items that are the user's and of the dataset, in the order of their ids.

    As with every lock of items a statement of its own; somebody else's item is never locked.
    """
    rows = tx.execute(
        _LOCK_ITEMS,
        {"ids": bulk.uuids(bulk.in_order(ids)), "dataset": dataset_id, "user": user_id},
    )
    return {row[0]: LinkedItem._make(row) for row in rows}


_OWNED = sa.text("""
SELECT b.sha256, b.size_bytes FROM blobs b
WHERE b.sha256 = ANY(CAST(:shas AS text[])) AND (
  EXISTS (SELECT FROM blob_owners o WHERE o.sha256 = b.sha256 AND o.user_id = :user)
  OR EXISTS (SELECT FROM dataset_items i WHERE i.content_sha256 = b.sha256
    AND i.user_id = :user AND i.deleted_at IS NULL))
""")


def find_owned_blobs(tx: Tx, user_id: UUID, shas: Collection[str]) -> set[str]:
    """Those of the contents that the user stored or has in an item."""
    rows = tx.execute(_OWNED, {"shas": bulk.texts(sorted(shas)), "user": user_id})
    return {row[0] for row in rows}


_TEXT_SIZES = sa.text(
    "SELECT id, octet_length(text) FROM dataset_items "
    "WHERE id = ANY(CAST(:ids AS uuid[])) AND user_id = :user AND text IS NOT NULL"
)


def read_text_sizes(tx: Tx, user_id: UUID, ids: Collection[UUID]) -> dict[UUID, int]:
    """Bytes of the texts of the user's items that have one."""
    rows = tx.execute(_TEXT_SIZES, {"ids": bulk.uuids(bulk.in_order(ids)), "user": user_id})
    return {row[0]: row[1] for row in rows}


_LABELS = sa.text(
    "SELECT normalised_name, id FROM labels "
    "WHERE version_id = :version AND normalised_name = ANY(CAST(:names AS text[])) "
    "AND deleted_at IS NULL"
)
_COUNT_LABELS = sa.text(
    "SELECT count(*) FROM labels WHERE version_id = :version AND deleted_at IS NULL"
)


def find_labels(tx: Tx, version_id: UUID, names: Collection[str]) -> dict[str, UUID]:
    """Ids of labels by the form in which names are compared; the missing ones are left out."""
    forms = sorted({normalise_label(name) for name in names})
    rows = tx.execute(_LABELS, {"version": version_id, "names": bulk.texts(forms)})
    return {row[0]: row[1] for row in rows}


def count_labels(tx: Tx, version_id: UUID) -> int:
    """Labels of a version."""
    return int(tx.execute(_COUNT_LABELS, {"version": version_id}).scalar_one())


def insert_inferences(tx: Tx, rows: Sequence[NewInference]) -> None:
    """Record inferences with the items they became; their dataset must be locked."""
    bulk.insert(tx, inferences, NewInference._fields, rows)


def items_of(tx: Tx, dataset_id: UUID, external_ids: Collection[str]) -> Mapping[str, UUID]:
    """The items that inferences became, by the inferences' ids."""
    return {id_: known.item_id for id_, known in find_known(tx, dataset_id, external_ids).items()}
