"""What models said, here or elsewhere, by who asked; and the item that each became."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.tables import model_inferences


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInference:
    """What a model said about one input, and that input."""

    id: UUID
    user_id: UUID
    model_id: UUID
    model_version_id: UUID | None
    name: str
    description: str
    prediction: str
    confidence: float | None
    extension: str
    error_reported: bool
    error: str
    application_id: str
    inference_host: str
    inference_time: str
    end_to_end_time: str
    result: str
    items: Sequence[Mapping[str, Any]]
    hidden: bool
    privacy_enabled: bool
    config: str
    content_sha256: str | None
    media_type: str
    dataset_item_id: UUID | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which inferences of a model are asked for, newest first."""

    offset: int
    limit: int
    version_ids: Collection[UUID] | None = None
    """Of these versions; None is of any."""
    with_added: bool = False
    with_hidden: bool = False


def insert_inference(tx: Tx, user_id: UUID, values: Mapping[str, Any]) -> UUID:
    """A new inference; returns its id."""
    id_ = new_id()
    tx.execute(sa.insert(model_inferences).values(id=id_, user_id=user_id, **values))
    return id_


def find_inference(
    tx: Tx, user_id: UUID, id_: UUID, *, lock: bool = False
) -> ModelInference | None:
    """An inference of a user; held against other changes until the transaction ends if asked."""
    query = _ALL.where(model_inferences.c.id == id_, model_inferences.c.user_id == user_id)
    row = tx.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else ModelInference(**by_name(row))


def list_inferences(tx: Tx, user_id: UUID, model_id: UUID, page: Page) -> list[ModelInference]:
    """A page of a user's inferences of a model, newest first."""
    columns = model_inferences.c
    query = _ALL.where(columns.user_id == user_id, columns.model_id == model_id)
    if page.version_ids is not None:
        query = query.where(columns.model_version_id.in_(page.version_ids))
    if not page.with_added:
        query = query.where(columns.dataset_item_id.is_(None))
    if not page.with_hidden:
        query = query.where(~columns.hidden)
    query = query.order_by(columns.id.desc()).offset(page.offset).limit(page.limit)
    return [ModelInference(**by_name(row)) for row in tx.execute(query)]


def count_inferences(tx: Tx, user_id: UUID, model_id: UUID) -> int:
    """How often a user asked a model, or added what it said elsewhere."""
    columns = model_inferences.c
    query = sa.select(sa.func.count()).where(
        columns.user_id == user_id, columns.model_id == model_id
    )
    return int(tx.execute(query).scalar_one())


def update_inference(tx: Tx, id_: UUID, values: Mapping[str, Any]) -> None:
    """Change an inference that is held."""
    tx.execute(
        sa.update(model_inferences)
        .where(model_inferences.c.id == id_)
        .values(**values, updated_at=sa.func.now())
    )


_FIND = sa.text(
    "SELECT id, name, result, extension, content_sha256, model_version_id, items, prediction, "
    "confidence, dataset_item_id FROM model_inferences "
    "WHERE id = ANY(CAST(:ids AS uuid[])) AND user_id = :user"
)


def find_inferences(tx: Tx, user_id: UUID, ids: Collection[UUID]) -> dict[UUID, sa.Row[Any]]:
    """Those of the inferences that are the user's, as far as an item is made of them."""
    rows = tx.execute(_FIND, {"ids": bulk.uuids(bulk.in_order(ids)), "user": user_id})
    return {row.id: row for row in rows}


_MARK = sa.text("""
WITH held AS (
  SELECT m.id, b.item FROM model_inferences m
  JOIN jsonb_to_recordset(CAST(:became AS jsonb)) AS b(id uuid, item uuid) ON b.id = m.id
  WHERE m.user_id = :user ORDER BY m.id FOR UPDATE OF m
)
UPDATE model_inferences m SET dataset_item_id = held.item, updated_at = now()
FROM held WHERE held.id = m.id AND m.dataset_item_id IS DISTINCT FROM held.item
""")


def mark_added(tx: Tx, user_id: UUID, became: Mapping[UUID, UUID]) -> None:
    """Note the items that inferences of a user became; ids that are no such are passed over."""
    rows = [{"id": str(id_), "item": str(item_id)} for id_, item_id in became.items()]
    tx.execute(_MARK, {"became": json.dumps(rows), "user": user_id})


_ALL = sa.select(*[model_inferences.c[name] for name in ModelInference.__dataclass_fields__])
