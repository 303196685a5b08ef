"""Users and their API keys; only the hash of a key is stored, so it is shown once."""

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
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
KEY, SESSION = "key", "session"
"""Who made it: a person, or a login."""
_UNUSED_S = 60
"""Seconds that ``last_used_at`` may lag behind: a write for each request would be too dear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    id: UUID
    username: str
    email: str
    name: str
    firstname: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What a login is compared with."""

    user: User
    password_hash: str | None = field(repr=False)
    """None: no password opens this account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it may be shown: its first characters, never the rest."""

    id: UUID
    user_id: UUID
    username: str
    kind: str
    name: str
    key_prefix: str
    scopes: tuple[str, ...]
    """What it is for; none means everything."""
    expires_at: datetime | None
    disabled: bool
    last_used_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Holder(NamedTuple):
    """Whose a live key is, and what it is for."""

    user_id: UUID
    scopes: frozenset[str]
    """None means everything."""
    key_id: UUID
    username: str
    kind: str


_SHOWN_OF_USERS = (
    users.c.id,
    users.c.username,
    users.c.email,
    users.c.name,
    users.c.firstname,
    users.c.created_at,
    users.c.updated_at,
)
_USERS = sa.select(*_SHOWN_OF_USERS).where(users.c.deleted_at.is_(None))


def create_user(
    tx: Tx,
    username: str,
    *,
    email: str = "",
    name: str = "",
    firstname: str = "",
    password_hash: str | None = None,
) -> User:
    """Create a user; without a hash nobody logs in as them, and only keys open the account.

    Raises:
        Conflict: the name or the e-mail address is taken.
    """
    values = {"email": email, "name": name, "firstname": firstname, "password_hash": password_hash}
    made = tx.execute(
        insert(users)
        .values(id=new_id(), username=username, **values)
        .on_conflict_do_nothing()
        .returning(*_SHOWN_OF_USERS)
    ).one_or_none()
    if made is None:
        check_free(tx, username, email)
        raise Conflict("that name or e-mail address is taken", field="username")
    return User(**by_name(made))


def check_free(tx: Tx, username: str, email: str) -> None:
    """Make sure that a name and an address are nobody's yet; a moment later they may be.

    Raises:
        Conflict: one of them is taken.
    """
    # Also of those whose account is gone: the name is unique in the table.
    if tx.execute(sa.select(users.c.id).where(users.c.username == username)).first() is not None:
        raise Conflict(f"a user named '{username}' exists already", field="username")
    if email and find_user_by_email(tx, email) is not None:
        raise Conflict("an account with this e-mail address exists already", field="email")


def find_user(tx: Tx, username: str) -> User | None:
    """The user of that name, None when there is none."""
    row = tx.execute(_USERS.where(users.c.username == username)).one_or_none()
    return None if row is None else User(**by_name(row))


def find_user_by_email(tx: Tx, email: str) -> User | None:
    """The user with that address, in whatever case it is written; None when there is none."""
    row = tx.execute(
        _USERS.where(users.c.email != "", sa.func.lower(users.c.email) == sa.func.lower(email))
    ).one_or_none()
    return None if row is None else User(**by_name(row))


def find_secret(tx: Tx, username: str) -> Secret | None:
    """The user of that name with the hash of their password."""
    row = tx.execute(
        _USERS.add_columns(users.c.password_hash).where(users.c.username == username)
    ).one_or_none()
    if row is None:
        return None
    values = by_name(row)
    stored = values.pop("password_hash")
    return Secret(user=User(**values), password_hash=stored)


def lock_user(tx: Tx, user_id: UUID) -> None:
    """Lock an account that is not gone.

    Raises:
        NotFound: there is none.
    """
    lock = sa.select(users.c.id).where(users.c.id == user_id, users.c.deleted_at.is_(None))
    if tx.execute(lock.with_for_update()).first() is None:
        raise NotFound(f"there is no user {user_id}", field="user")


def lock_password(tx: Tx, user_id: UUID) -> str | None:
    """Lock an account, and return the hash of its password; None where there is none."""
    lock = sa.select(users.c.password_hash).where(users.c.id == user_id).with_for_update()
    stored: str | None = tx.execute(lock).scalar_one_or_none()
    return stored


def set_password_hash(tx: Tx, user_id: UUID, password_hash: str) -> None:
    """Give an account another password."""
    tx.execute(
        sa.update(users)
        .where(users.c.id == user_id)
        .values(password_hash=password_hash, updated_at=sa.func.now())
    )


def mark_user_deleted(tx: Tx, user_id: UUID) -> None:
    """End an account: what it said of a person goes, and its name and address are free again."""
    tx.execute(
        sa.update(users)
        .where(users.c.id == user_id)
        .values(
            # No name that somebody could ask for: names hold no colon.
            username=f"deleted:{user_id}",
            email="",
            name="",
            firstname="",
            password_hash=None,
            deleted_at=sa.func.now(),
            updated_at=sa.func.now(),
        )
    )


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
    kind: str = KEY,
) -> str:
    """Create a key; returns the key itself, which nobody can read again.

    Args:
        tx: the transaction.
        user_id: whose it is.
        name: for people.
        scopes: what it is for; none means everything.
        expires_days: days from now on that it lives, None for ever.
        kind: who makes it, a person or a login.
    """
    plaintext = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    lives = sa.func.make_interval(0, 0, 0, expires_days)  # years, months, weeks, days
    tx.execute(
        sa.insert(api_keys).values(
            id=new_id(),
            user_id=user_id,
            kind=kind,
            name=name,
            key_prefix=plaintext[:_SHOWN],
            key_sha256=_hash(plaintext),
            scopes=sorted(set(scopes)),
            expires_at=None if expires_days is None else sa.func.now() + lives,
        )
    )
    return plaintext


_FIND_KEY = sa.text("""
SELECT k.user_id, k.scopes, k.id, u.username, k.kind
FROM api_keys k JOIN users u ON u.id = k.user_id AND u.deleted_at IS NULL
WHERE k.key_sha256 = :hash AND NOT k.disabled AND (k.expires_at IS NULL OR k.expires_at > now())
""")


def find_key(tx: Tx, plaintext: str) -> Holder | None:
    """Whose a key is; None when it is unknown, disabled or expired."""
    row = tx.execute(_FIND_KEY, {"hash": _hash(plaintext)}).one_or_none()
    if row is None:
        return None
    return Holder(row.user_id, frozenset(row.scopes), row.id, row.username, row.kind)


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
    api_keys.c.kind,
    api_keys.c.name,
    api_keys.c.key_prefix,
    api_keys.c.scopes,
    api_keys.c.expires_at,
    api_keys.c.disabled,
    api_keys.c.last_used_at,
    api_keys.c.created_at,
    api_keys.c.updated_at,
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


def list_keys(tx: Tx, user_id: UUID | None = None, *, kind: str | None = None) -> list[Key]:
    """Keys of a user, or of all, oldest first."""
    query = _KEYS if user_id is None else _KEYS.where(api_keys.c.user_id == user_id)
    query = query if kind is None else query.where(api_keys.c.kind == kind)
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


def toggle_key(tx: Tx, user_id: UUID, key_id: UUID) -> Key | None:
    """Shut a key of the user's out, or let it in again; None when they made no such key."""
    changed = tx.execute(
        sa.update(api_keys)
        .where(_made_by(user_id, key_id))
        .values(disabled=~api_keys.c.disabled, updated_at=sa.func.now())
    )
    return get_key(tx, key_id) if changed.rowcount else None


def delete_own_key(tx: Tx, user_id: UUID, key_id: UUID) -> bool:
    """Delete a key of the user's; false when they made no such key."""
    return tx.execute(sa.delete(api_keys).where(_made_by(user_id, key_id))).rowcount > 0


def _made_by(user_id: UUID, key_id: UUID) -> sa.ColumnElement[bool]:
    return sa.and_(api_keys.c.id == key_id, api_keys.c.user_id == user_id, api_keys.c.kind == KEY)


def end_session(tx: Tx, key_id: UUID) -> bool:
    """Delete the key of a login; false when it is none, and stays."""
    ended = tx.execute(
        sa.delete(api_keys).where(api_keys.c.id == key_id, api_keys.c.kind == SESSION)
    )
    return ended.rowcount > 0


def end_sessions(tx: Tx, user_id: UUID, *, only_expired: bool = False) -> None:
    """Delete the keys of a user's logins."""
    query = sa.delete(api_keys).where(api_keys.c.user_id == user_id, api_keys.c.kind == SESSION)
    if only_expired:
        query = query.where(api_keys.c.expires_at <= sa.func.now())
    tx.execute(query)


def delete_keys_of(tx: Tx, user_id: UUID) -> None:
    """Delete every key of a user, those of logins too."""
    tx.execute(sa.delete(api_keys).where(api_keys.c.user_id == user_id))


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
