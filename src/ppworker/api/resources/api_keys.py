"""The caller's API keys: made, listed, disabled, deleted. A key is shown once, when it is made."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from ppworker.api.auth import Caller, KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import identity, missing
from ppworker.api.wire import Answer, Asked, OptionalText, Text, Time
from ppworker.errors import Forbidden
from ppworker.pipeline.setup import accounts as making
from ppworker.store import accounts
from ppworker.store.accounts import KEY, Holder, Key

router = APIRouter(route_class=KeyedRoute, tags=["accounts"], responses=responses(401, 403, 503))


class KeyAnswer(Answer):
    """A key as it may be shown."""

    id: Text
    created_at: Time
    updated_at: Time
    user_id: Text
    organization_id: OptionalText = None
    name: str
    key_prefix: str
    scopes: list[str]
    """What it is for; none means everything."""
    last_used_at: Time | None = None
    expires_at: Time | None = None
    disabled: bool = False


class NewKeyAnswer(KeyAnswer):
    """A key that was just made."""

    key: str
    """The key itself, which is shown now and never again."""


class NewKey(Asked):
    """A key to be; null means not given."""

    name: Annotated[
        str | None,
        Field(
            max_length=200, examples=["nightly import"], json_schema_extra={"pattern": making.PLAIN}
        ),
    ] = None
    scopes: list[Literal["read", "write"]] | None = None
    """What it is for; none means everything that the key which asks is for."""
    organization_id: str | None = None
    """Not looked at: there are no organizations here."""
    expires_in_days: Annotated[int | None, Field(ge=1, le=36_500, examples=[90])] = None
    """Days from now on that it lives; null for ever."""


@router.get("/me/apikeys")
def list_keys(deps: Room, caller: Caller) -> list[KeyAnswer]:
    """Your keys, oldest first, without those of logins."""
    with deps.db.look() as tx:
        found = accounts.list_keys(tx, caller.user_id, kind=KEY)
    return [KeyAnswer.model_validate(key) for key in found]


@router.post("/me/apikeys", responses=responses(400, 413, 422))
def create_key(deps: Room, caller: Caller, body: NewKey) -> NewKeyAnswer:
    """Make a key. The answer is the only place where it can be read."""
    plaintext, made = making.create_key(
        deps,
        caller.user_id,
        name=body.name or "",
        scopes=_allowed(caller, body.scopes or []),
        expires_days=body.expires_in_days,
    )
    return NewKeyAnswer(**KeyAnswer.model_validate(made).model_dump(), key=plaintext)


@router.put("/me/apikeys/{key_id}", responses=responses(404))
def toggle_key(deps: Room, caller: Caller, key_id: str) -> KeyAnswer:
    """Disable a key, or enable it when it is disabled."""
    wanted = identity(key_id, "key")
    with deps.db.begin() as tx:
        found = accounts.toggle_key(tx, caller.user_id, wanted)
    return KeyAnswer.model_validate(_there(found, key_id))


@router.delete("/me/apikeys/{key_id}", status_code=204, responses=responses(404))
def delete_key(deps: Room, caller: Caller, key_id: str) -> None:
    """Delete a key; it lets nobody in from now on."""
    wanted = identity(key_id, "key")
    with deps.db.begin() as tx:
        is_gone = accounts.delete_own_key(tx, caller.user_id, wanted)
    if not is_gone:
        raise missing("key", key_id)


def _allowed(caller: Holder, scopes: list[Literal["read", "write"]]) -> list[str]:
    """The scopes of a new key: no key makes one that may do more than itself.

    Raises:
        Forbidden: it would.
    """
    wanted = set(scopes) or caller.scopes
    if caller.scopes and not caller.scopes >= wanted:
        own = ", ".join(sorted(caller.scopes))
        raise Forbidden(f"this key is for {own} and can make keys for that only", field="scopes")
    return sorted(wanted)


def _there(found: Key | None, key_id: str) -> Key:
    if found is None:
        raise missing("key", key_id)
    return found
