"""Dead letters: messages that could not be followed, kept until somebody mends and replays them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.errors import NotFound
from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.tables import dead_letters, users


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLetter:
    message_id: str
    actor: str
    user_id: UUID | None
    key: str
    field: str
    error: str
    body: str
    """JSON."""
    body_sha256: str
    """Of the message as it came, by which its next delivery is recognised."""
    is_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    id: UUID
    message_id: str
    actor: str
    user_id: UUID | None
    username: str | None
    key: str
    field: str
    error: str
    body: str
    is_cut: bool
    created_at: datetime
    replayed_at: datetime | None


def insert_letter(tx: Tx, letter: NewLetter) -> UUID | None:
    """Keep a message; None when it is kept already."""
    values = {name: getattr(letter, name) for name in NewLetter.__dataclass_fields__}
    return tx.execute(
        insert(dead_letters)
        .values(id=new_id(), **values)
        .on_conflict_do_nothing()
        .returning(dead_letters.c.id)
    ).scalar_one_or_none()


_LETTERS = sa.select(
    dead_letters.c.id,
    dead_letters.c.message_id,
    dead_letters.c.actor,
    dead_letters.c.user_id,
    users.c.username,
    dead_letters.c.key,
    dead_letters.c.field,
    dead_letters.c.error,
    dead_letters.c.body,
    dead_letters.c.is_cut,
    dead_letters.c.created_at,
    dead_letters.c.replayed_at,
).outerjoin(users, users.c.id == dead_letters.c.user_id)


def list_letters(
    tx: Tx, *, after: UUID | None = None, limit: int = 100, replayed: bool = False
) -> list[Letter]:
    """Letters by id, behind ``after``; those that were replayed only when asked for."""
    query = _LETTERS.order_by(dead_letters.c.id).limit(limit)
    if not replayed:
        query = query.where(dead_letters.c.replayed_at.is_(None))
    if after is not None:
        query = query.where(dead_letters.c.id > after)
    return [Letter(**by_name(row)) for row in tx.execute(query)]


def get_letter(tx: Tx, letter_id: UUID) -> Letter:
    """One letter, whoever's it is.

    Raises:
        NotFound: there is none.
    """
    row = tx.execute(_LETTERS.where(dead_letters.c.id == letter_id)).one_or_none()
    if row is None:
        raise NotFound(
            f"no dead letter {letter_id}; `ppworker dead-letters list` shows those there are",
            field="ID",
        )
    return Letter(**by_name(row))


def mark_replayed(tx: Tx, letter_id: UUID) -> None:
    """Note that what a letter says was done in the end."""
    tx.execute(
        sa.update(dead_letters)
        .where(dead_letters.c.id == letter_id)
        .values(replayed_at=sa.func.now())
    )


def delete_letters(tx: Tx, letter_ids: Sequence[UUID]) -> int:
    """Forget letters; returns how many there were."""
    return tx.execute(sa.delete(dead_letters).where(dead_letters.c.id.in_(letter_ids))).rowcount
