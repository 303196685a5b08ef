"""``users`` and ``keys``: who may come in by HTTP or message, and with what key."""

import getpass
import sys
from typing import Annotated, Any
from uuid import UUID

import typer

from ppworker.cli import render
from ppworker.cli.session import Call, Session, as_uuid, command, group, session
from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.setup import accounts as making
from ppworker.pipeline.setup import passwords
from ppworker.store import accounts

UserOption = Annotated[
    str | None,
    typer.Option(
        "--user", metavar="NAME", help="Default: the one this command acts as.", show_default=False
    ),
]
KeyRef = Annotated[str, typer.Argument(metavar="KEY", help="Id of a key.", show_default=False)]

_MOST_LINE = 4096
_KEY_COLUMNS = (
    "id", "username", "kind", "name", "key_prefix", "scopes", "expires_at", "last_used_at",
    "disabled",
)  # fmt: skip

_users = typer.Typer()
_keys = typer.Typer()


def register(root: typer.Typer, name: str, summary: str) -> None:
    """Add one of the groups to the program."""
    group(root, {"users": _users, "keys": _keys}[name], name, summary)


@command(_users, "create")
def create_user(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    *,
    email: Annotated[
        str,
        typer.Option(
            "--email", metavar="ADDRESS", help="Others share with this one.", show_default=False
        ),
    ] = "",
    surname: Annotated[
        str, typer.Option("--surname", metavar="TEXT", help="For people.", show_default=False)
    ] = "",
    firstname: Annotated[
        str, typer.Option("--firstname", metavar="TEXT", help="For people.", show_default=False)
    ] = "",
    password: Annotated[
        bool,
        typer.Option(
            "--password",
            help="Ask for a password, or read one line of standard input. Without it only keys "
            "open the account.",
        ),
    ] = False,
) -> None:
    """Create a user; `keys create --user NAME` gives a key to come in with."""
    person = making.Person(username=name, email=email, name=surname, firstname=firstname)
    making.checked(person)  # before somebody types a password for nothing
    secret = _read_password() if password else None
    with session(call) as s:
        made = making.create_user(s.deps, person, password=secret)
    if call.as_json:
        render.as_json(made)
    else:
        render.say(f"user {made.username} ({made.id})")


@command(_users, "password")
def change_password(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
) -> None:
    """Give a user another password and end their logins; their keys stay.

    It asks for the password, or reads one line of standard input.
    """
    secret = _read_password()
    with session(call) as s:
        making.set_password(s.deps, _user_id(s, name), secret)
    if call.as_json:
        render.as_json({"username": name, "changed": True})
    else:
        render.say(f"user {render.line(name)} has another password; their logins have ended")


@command(_users, "list")
def list_users(call: Call) -> None:
    """List users."""
    with session(call) as s:
        found = s.read(accounts.list_users)
    rows = [render.plain(each) for each in found]
    if call.as_json:
        render.as_json(rows)
    else:
        render.table(rows, ("id", "username", "email", "created_at"))


@command(_keys, "create")
def create_key(
    call: Call,
    *,
    user: UserOption = None,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="For people.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="read or write; default both. Repeatable."),
    ] = None,
    expires_days: Annotated[
        int | None,
        typer.Option("--expires-days", metavar="N", help="Default: never.", show_default=False),
    ] = None,
) -> None:
    """Create a key and print it: it cannot be shown again."""
    with session(call) as s:
        plaintext, made = making.create_key(
            s.deps,
            _user_id(s, user),
            name=name,
            scopes=scope or (),
            expires_days=expires_days,
        )
    if call.as_json:
        render.as_json(render.plain(made) | {"key": plaintext})
    else:
        render.say(plaintext, f"key {made.id} of {made.username}; it is not shown again")


@command(_keys, "list")
def list_keys(
    call: Call,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help="Only of this one.", show_default=False),
    ] = None,
) -> None:
    """List keys, without what makes them keys."""
    with session(call) as s:
        only = None if user is None else _user_id(s, user)
        found = s.read(lambda tx: accounts.list_keys(tx, only))
    rows = [render.plain(each) for each in found]
    if call.as_json:
        render.as_json(rows)
    else:
        render.table(rows, _KEY_COLUMNS, empty="no keys; `ppworker keys create` makes one")


@command(_keys, "disable")
def disable(call: Call, key: KeyRef) -> None:
    """Let a key in no more."""
    _set_disabled(call, key, disabled=True)


@command(_keys, "enable")
def enable(call: Call, key: KeyRef) -> None:
    """Let a disabled key in again."""
    _set_disabled(call, key, disabled=False)


def _set_disabled(call: Call, key: str, *, disabled: bool) -> None:
    key_id = as_uuid(key, "key")
    with session(call) as s:
        found = s.read(lambda tx: accounts.set_disabled(tx, key_id, disabled=disabled))
    _show(call, found, "disabled" if disabled else "enabled")


@command(_keys, "delete")
def delete(call: Call, key: KeyRef) -> None:
    """Delete a key."""
    key_id = as_uuid(key, "key")
    with session(call) as s:
        found = s.read(lambda tx: accounts.delete_key(tx, key_id))
    _show(call, found, "deleted")


def _show(call: Call, key: accounts.Key, what: str) -> None:
    if call.as_json:
        render.as_json(key)
    else:
        render.say(f"key {key.key_prefix}… of {key.username} {what}")


def _read_password() -> str:
    """A password that stands in no list of processes and no history of a shell.

    Raises:
        Invalid: there is none, or it was typed differently the second time.
    """
    if sys.stdin.isatty():
        secret = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != secret:
            raise Invalid("they differ; type the same one twice", field="password")
    else:
        secret = sys.stdin.readline(_MOST_LINE).removesuffix("\n").removesuffix("\r")
    return passwords.checked(secret)


def _user_id(s: Session, name: str | None) -> UUID:
    if name is None:
        return s.user_id
    found: Any = s.read(lambda tx: accounts.find_user(tx, name))
    if found is None:
        raise NotFound(
            f"no user '{render.line(name)}'; `ppworker users list` shows those there are",
            field="--user",
        )
    return UUID(str(found.id))
