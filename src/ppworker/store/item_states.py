"""States of items: what clients keep about an item in a version, in words of their own."""

from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.tables import dataset_items, item_states


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemState:
    id: UUID
    version_id: UUID
    """Of the dataset."""
    item_id: UUID
    user_id: UUID
    """Who wrote it last."""
    state: str
    version: int
    """Grows by one at each write, from 1."""
    created_at: datetime
    updated_at: datetime


_STATES = sa.select(*(item_states.c[field.name] for field in fields(ItemState)))


def find_state(tx: Tx, version_id: UUID, item_id: UUID) -> ItemState | None:
    """The state of an item in a version; None where it was never written."""
    row = tx.execute(
        _STATES.where(item_states.c.version_id == version_id, item_states.c.item_id == item_id)
    ).one_or_none()
    return None if row is None else ItemState(**by_name(row))


def list_states(
    tx: Tx, version_id: UUID, *, limit: int, offset: int = 0, after: UUID | None = None
) -> list[ItemState]:
    """States of a version that were written, by their items' ids behind ``after``."""
    rows = tx.execute(
        _STATES.join(dataset_items, dataset_items.c.id == item_states.c.item_id)
        .where(
            item_states.c.version_id == version_id,
            item_states.c.item_id > (after or UUID(int=0)),
            dataset_items.c.deleted_at.is_(None),
        )
        .order_by(item_states.c.item_id)
        .offset(offset)
        .limit(limit)
    )
    return [ItemState(**by_name(row)) for row in rows]


def write_state(tx: Tx, version_id: UUID, item_id: UUID, user_id: UUID, state: str) -> ItemState:
    """Write the state of a locked item; its version grows by one."""
    written = insert(item_states).values(
        id=new_id(),
        version_id=version_id,
        item_id=item_id,
        user_id=user_id,
        state=state,
        version=1,
    )
    row = tx.execute(
        written.on_conflict_do_update(
            index_elements=[item_states.c.version_id, item_states.c.item_id],
            set_={
                "state": written.excluded.state,
                "user_id": written.excluded.user_id,
                "version": item_states.c.version + 1,
                "updated_at": sa.func.clock_timestamp(),
            },
        ).returning(*(item_states.c[field.name] for field in fields(ItemState)))
    ).one()
    return ItemState(**by_name(row))
