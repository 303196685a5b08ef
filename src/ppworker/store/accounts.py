"""Users and their API keys; only the hash of a key is stored, so it is shown once."""

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.errors import Conflict, NotFound
from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.tables import api_keys, users

_PREFIX = "ppw_"
_RANDOM_BYTES = 32
_SHOWN = 8
_UNUSED_S = 60
"""Seconds that ``last_used_at`` may lag behind: a write for each request would be too dear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    id: UUID
    username: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it may be shown: its first characters, never the rest."""

    id: UUID
    user_id: UUID
    username: str
    name: str
    key_prefix: str
    scopes: tuple[str, ...]
    """What it is for; none means everything."""
    expires_at: datetime | None
    disabled: bool
    last_used_at: datetime | None
    created_at: datetime


class Holder(NamedTuple):
    """Whose a live key is, and what it is for."""

    user_id: UUID
    scopes: frozenset[str]
    """None means everything."""
    key_id: UUID


def create_user(tx: Tx, username: str) -> User:
    """Create a user.

    Raises:
        Conflict: the name is taken.
    """
    made = tx.execute(
        insert(users)
        .values(id=new_id(), username=username)
        .on_conflict_do_nothing()
        .returning(users.c.id, users.c.username, users.c.created_at, users.c.updated_at)
    ).one_or_none()
    if made is None:
        raise Conflict(f"a user named '{username}' exists already", field="username")
    return User(**by_name(made))


_USERS = sa.select(users.c.id, users.c.username, users.c.created_at, users.c.updated_at)


def find_user(tx: Tx, username: str) -> User | None:
    """The user of that name, None when there is none."""
    row = tx.execute(_USERS.where(users.c.username == username)).one_or_none()
    return None if row is None else User(**by_name(row))


def list_users(tx: Tx) -> list[User]:
    """Every user, oldest first."""
    rows = tx.execute(_USERS.order_by(users.c.public_id))
    return [User(**by_name(row)) for row in rows]


def create_key(
    tx: Tx,
    user_id: UUID,
    *,
    name: str = "",
    scopes: Collection[str] = (),
    expires_days: int | None = None,
) -> str:
    """Create a key; returns the key itself, which nobody can read again.

    Args:
        tx: the transaction.
        user_id: whose it is.
        name: for people.
        scopes: what it is for; none means everything.
        expires_days: days from now on that it lives, None for ever.
    """
    plaintext = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    lives = sa.func.make_interval(0, 0, 0, expires_days)  # years, months, weeks, days
    tx.execute(
        sa.insert(api_keys).values(
            id=new_id(),
            user_id=user_id,
            name=name,
            key_prefix=plaintext[:_SHOWN],
            key_sha256=_hash(plaintext),
            scopes=sorted(set(scopes)),
            expires_at=None if expires_days is None else sa.func.now() + lives,
        )
    )
    return plaintext


_FIND_KEY = sa.text("""
SELECT user_id, scopes, id FROM api_keys
WHERE key_sha256 = :hash AND NOT disabled AND (expires_at IS NULL OR expires_at > now())
""")


def find_key(tx: Tx, plaintext: str) -> Holder | None:
    """Whose a key is; None when it is unknown, disabled or expired."""
    row = tx.execute(_FIND_KEY, {"hash": _hash(plaintext)}).one_or_none()
    return None if row is None else Holder(row.user_id, frozenset(row.scopes), row.id)


def touch_key(tx: Tx, key_id: UUID) -> None:
    """Note that a key was used, unless that was noted a moment ago."""
    tx.execute(
        sa.text(
            "UPDATE api_keys SET last_used_at = now() WHERE id = :id AND (last_used_at IS NULL "
            "OR last_used_at < now() - make_interval(secs => :lag_s))"
        ),
        {"id": key_id, "lag_s": _UNUSED_S},
    )


_KEYS = sa.select(
    api_keys.c.id,
    api_keys.c.user_id,
    users.c.username,
    api_keys.c.name,
    api_keys.c.key_prefix,
    api_keys.c.scopes,
    api_keys.c.expires_at,
    api_keys.c.disabled,
    api_keys.c.last_used_at,
    api_keys.c.created_at,
).join(users, users.c.id == api_keys.c.user_id)


def get_key(tx: Tx, key_id: UUID) -> Key:
    """A key by its id, whoever's it is.

    Raises:
        NotFound: there is none.
    """
    row = tx.execute(_KEYS.where(api_keys.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFound(f"no key {key_id}; `ppworker keys list` shows those there are", field="key")
    return _key(row)


def describe_key(tx: Tx, plaintext: str) -> Key:
    """A key as it may be shown, by the key itself.

    Raises:
        NotFound: there is none.
    """
    row = tx.execute(_KEYS.where(api_keys.c.key_sha256 == _hash(plaintext))).one_or_none()
    if row is None:
        raise NotFound("there is no such key", field="key")
    return _key(row)


def list_keys(tx: Tx, user_id: UUID | None = None) -> list[Key]:
    """Keys of a user, or of all, oldest first."""
    query = _KEYS if user_id is None else _KEYS.where(api_keys.c.user_id == user_id)
    return [_key(row) for row in tx.execute(query.order_by(api_keys.c.id))]


def set_disabled(tx: Tx, key_id: UUID, *, disabled: bool) -> Key:
    """Shut a key out, or let it in again.

    Raises:
        NotFound: there is none.
    """
    tx.execute(
        sa.update(api_keys)
        .where(api_keys.c.id == key_id)
        .values(disabled=disabled, updated_at=sa.func.now())
    )
    return get_key(tx, key_id)


def delete_key(tx: Tx, key_id: UUID) -> Key:
    """Delete a key; returns what it was.

    Raises:
        NotFound: there is none.
    """
    found = get_key(tx, key_id)
    tx.execute(sa.delete(api_keys).where(api_keys.c.id == key_id))
    return found


def _key(row: Any) -> Key:
    values = by_name(row)
    return Key(**{**values, "scopes": tuple(values["scopes"])})


def _hash(plaintext: str) -> str:
    # A key of 256 random bits needs no slow hash: there is nothing to guess.
    return hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).hexdigest()
