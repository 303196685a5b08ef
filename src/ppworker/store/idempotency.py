"""Idempotency keys: an upload sent twice is one upload."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.store.db import Tx
from ppworker.store.tables import idempotency_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    request_sha256: str
    ids: Sequence[UUID]
    """The items, the operation or the job that the first request made or moved."""


def claim_key(
    tx: Tx, user_id: UUID, key: str, request_sha256: str, ids: Sequence[UUID]
) -> KnownKey | None:
    """Take the key for this request; what it stands for already if somebody was first.

    Waits for a concurrent claim of the same key to commit or to roll back.
    """
    taken = tx.execute(
        insert(idempotency_keys)
        .values(user_id=user_id, key=key, request_sha256=request_sha256, ids=list(ids))
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )
    if taken.first() is not None:
        return None
    row = tx.execute(_known(user_id, key)).one()
    return KnownKey(request_sha256=row.request_sha256, ids=row.ids)


def find_key(tx: Tx, user_id: UUID, key: str) -> KnownKey | None:
    """What a key stands for, None while nobody has used it; takes nothing and waits for nobody."""
    row = tx.execute(_known(user_id, key)).one_or_none()
    return None if row is None else KnownKey(request_sha256=row.request_sha256, ids=row.ids)


def _known(user_id: UUID, key: str) -> sa.Select[tuple[str, Sequence[UUID]]]:
    return sa.select(idempotency_keys.c.request_sha256, idempotency_keys.c.ids).where(
        idempotency_keys.c.user_id == user_id, idempotency_keys.c.key == key
    )
