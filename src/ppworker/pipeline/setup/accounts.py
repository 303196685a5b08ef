"""Makes users and keys, their names checked first; keeps the one key of a data folder in a file."""

import os
import secrets
import unicodedata
from collections.abc import Collection
from pathlib import Path
from uuid import UUID

from ppworker.errors import Invalid
from ppworker.pipeline.deps import Deps
from ppworker.store import accounts
from ppworker.store.accounts import Key, User
from ppworker.store.db import Database, Tx

READ, WRITE = "read", "write"
SCOPES = (READ, WRITE)
"""What a key can be for; a key without any is for everything."""
_MAX_NAME = 200
_MAX_DAYS = 36_500
_FILE = "api.key"


def create_user(deps: Deps, username: str) -> User:
    """Create a user.

    Raises:
        Invalid: the name breaks the rules.
        Conflict: it is taken.
    """
    name = unicodedata.normalize("NFC", username).strip()
    if not 1 <= len(name) <= _MAX_NAME:
        raise Invalid(f"has 1 to {_MAX_NAME} characters, not {len(name)}", field="username")
    if not name.isprintable() or ":" in name:  # older clients send username:key
        raise Invalid("has no ':' and no control characters", field="username")
    return deps.db.transact(lambda tx: accounts.create_user(tx, name))


def create_key(
    deps: Deps,
    user_id: UUID,
    *,
    name: str = "",
    scopes: Collection[str] = (),
    expires_days: int | None = None,
) -> tuple[str, Key]:
    """Create a key; returns it, for the only time, and how it is shown from now on.

    Raises:
        Invalid: name, scopes or days break the rules.
    """
    if len(name) > _MAX_NAME or not name.isprintable():
        raise Invalid(f"has at most {_MAX_NAME} characters and no control characters", field="name")
    for scope in scopes:
        if scope not in SCOPES:
            known = ", ".join(SCOPES)
            raise Invalid(f"'{scope}' is no scope; there are {known}", field="scopes")
    if expires_days is not None and not 1 <= expires_days <= _MAX_DAYS:
        raise Invalid(f"must be 1 to {_MAX_DAYS} days", field="expires_days")

    def work(tx: Tx) -> tuple[str, Key]:
        plaintext = accounts.create_key(
            tx, user_id, name=name, scopes=scopes, expires_days=expires_days
        )
        return plaintext, accounts.describe_key(tx, plaintext)

    return deps.db.transact(work)


def keep_key(db: Database, user_id: UUID, data_dir: Path) -> str:
    """The key that lies in the data folder for its owner to use; made where none that works is.

    The file can be read by its owner alone.

    Raises:
        OSError: the folder cannot be written.
    """
    path = data_dir / _FILE
    kept = _read(path)
    if kept:
        with db.look() as tx:
            holder = accounts.find_key(tx, kept)
        if holder is not None and holder.user_id == user_id and not holder.scopes:
            return kept
    made = db.transact(
        lambda tx: accounts.create_key(tx, user_id, name=f"kept in {_FILE} of the data folder")
    )
    _write(path, made)
    return made


def key_path(data_dir: Path) -> Path:
    """Where the data folder's own key lies."""
    return data_dir / _FILE


def _read(path: Path) -> str:
    """The key in the file; nothing where there is none, or others could read or write it."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.geteuid() or about.st_mode & 0o077:
                return ""
            return file.read(200).strip()
    except (OSError, ValueError):
        return ""


def _write(path: Path, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{_FILE}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{key}\n")
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
