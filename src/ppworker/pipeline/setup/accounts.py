"""Makes users and keys, their names checked first; keeps the one key of a data folder in a file."""

import os
import re
import secrets
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from ppworker.errors import Invalid
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import passwords
from ppworker.store import accounts
from ppworker.store.accounts import Key, User
from ppworker.store.db import Database, Tx

READ, WRITE = "read", "write"
SCOPES = (READ, WRITE)
"""What a key can be for; a key without any is for everything."""
_MAX_NAME = 200
_MAX_DAYS = 36_500
_MAX_EMAIL = 254
# Control characters, and those that cannot be seen and change how the others read.
_BARRED = r"\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
USERNAME = rf"^[^:{_BARRED}]*[^:\s{_BARRED}][^:{_BARRED}]*$"
"""What a user name is made of; no colon, since older clients send username:key."""
EMAIL = rf"^[^\s@:,;<>()\"{_BARRED}]+@[^\s@:,;<>()\"{_BARRED}]+$"
PLAIN = rf"^[^{_BARRED}]*$"
"""Text without control characters."""
_FILE = "api.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who an account is of, as far as they say; checked when the account is made."""

    username: str
    email: str = ""
    name: str = ""
    firstname: str = ""


def checked(person: Person) -> Person:
    """What somebody says of themselves, in the form in which it is stored.

    Raises:
        Invalid: something breaks the rules.
    """
    return Person(
        username=checked_username(person.username),
        email=_checked_email(person.email),
        name=_checked_text(person.name, "name"),
        firstname=_checked_text(person.firstname, "firstname"),
    )


def checked_username(username: str) -> str:
    """A user's name in the form in which it is stored: however a keyboard composes its letters.

    Raises:
        Invalid: it breaks the rules.
    """
    if not 1 <= len(username) <= _MAX_NAME:
        raise Invalid(f"has 1 to {_MAX_NAME} characters, not {len(username)}", field="username")
    if not _is(USERNAME, username):
        raise Invalid("has letters, no ':' and no control characters", field="username")
    return unicodedata.normalize("NFC", username).strip()


def _checked_email(email: str) -> str:
    if email and not (len(email) <= _MAX_EMAIL and _is(EMAIL, email)):
        raise Invalid("is no e-mail address like name@example.org", field="email")
    return unicodedata.normalize("NFC", email)


def _checked_text(text: str, field: str) -> str:
    if len(text) > _MAX_NAME or not _is(PLAIN, text):
        raise Invalid(f"has at most {_MAX_NAME} characters and no control characters", field=field)
    return unicodedata.normalize("NFC", text)


def _is(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text) is not None and not text.endswith("\n")


def create_user(deps: Deps, person: Person, *, password: str | None = None) -> User:
    """Create a user; without a password only keys open the account.

    Raises:
        Invalid: something breaks the rules.
        Conflict: the name or the e-mail address is taken.
    """
    wanted = checked(person)
    hashed = None if password is None else passwords.hashed(passwords.checked(password))

    def work(tx: Tx) -> User:
        return accounts.create_user(
            tx,
            wanted.username,
            email=wanted.email,
            name=wanted.name,
            firstname=wanted.firstname,
            password_hash=hashed,
        )

    return deps.db.transact(work)


def set_password(deps: Deps, user_id: UUID, password: str) -> None:
    """Give an account another password, and end its logins; keys that a person made stay.

    Raises:
        Invalid: the password breaks the rules.
        NotFound: the account is gone.
    """
    hashed = passwords.hashed(passwords.checked(password))

    def work(tx: Tx) -> None:
        accounts.lock_user(tx, user_id)
        accounts.set_password_hash(tx, user_id, hashed)
        accounts.end_sessions(tx, user_id)

    deps.db.transact(work)


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
    name = _checked_text(name, "name")
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
