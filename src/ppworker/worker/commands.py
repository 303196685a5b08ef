"""Follows one message: reads it, has the pipeline do what it says, or keeps it as a dead letter."""

import errno
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ppworker.domain.events import CommandFollowed, CommandRefused
from ppworker.domain.text import clean_text
from ppworker.errors import Conflict, Invalid, RequestError, StoreRefused, StoreUnavailable
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads import inbox, letters
from ppworker.pipeline.uploads.inbox import Ask, Content, Outcome, Sent
from ppworker.store import dead_letters
from ppworker.worker import messages
from ppworker.worker.command_consumer import NotNow
from ppworker.worker.command_link import Taken

log = logging.getLogger(__name__)

MOST_TRIES = 3
"""How often a command is tried that fails for no known reason, or kills who follows it."""
_FULL = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Errors of the system that are no message's doing."""


@dataclass(slots=True)
class _Message:
    """What is known of a message so far, for the dead letter that it may become."""

    raw: bytes
    id: str
    actor: str = ""
    fields: Any = None
    user_id: UUID | None = None


def follow(deps: Deps, taken: Taken) -> None:
    """Do what a message says, or keep it as a dead letter; either is committed on return.

    Raises:
        StoreUnavailable: PostgreSQL is away; nothing was done, or it is in doubt and its key tells.
        NotNow: it failed for no known reason, and shall be tried again.
    """
    raw = taken.body or b""
    message = _Message(raw, taken.id.decode(errors="backslashreplace"))
    try:
        _follow(deps, message, taken)
    except StoreUnavailable:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StoreUnavailable(f"files cannot be stored: {error.strerror}") from error
        _try_again(deps, message, taken, error)
    except RequestError as error:
        _bury(deps, message, error.field, str(error))
    except StoreRefused as error:
        _bury(deps, message, "message", f"PostgreSQL refuses what it holds: {error}")
    except Exception as error:  # noqa: BLE001  a fault of ours must not lose a message
        _try_again(deps, message, taken, error)


def replay(
    deps: Deps,
    letter: dead_letters.Letter,
    *,
    fields: Mapping[str, Any] | None = None,
    actor: str | None = None,
) -> Outcome:
    """Follow a dead letter again, as it is or mended, and mark it replayed.

    Args:
        deps: the collaborators.
        letter: the letter.
        fields: the command's fields in place of its own.
        actor: the command in place of its own.

    Raises:
        RequestError: it still cannot be followed; the letter stays as it was.
    """
    if letter.replayed_at is not None:
        raise Conflict(f"it was replayed at {letter.replayed_at:%Y-%m-%d %H:%M:%S%z}", field="ID")
    command = messages.read(
        actor or letter.actor, _fields_of(letter) if fields is None else dict(fields)
    )
    user_id = _sender(deps, command)
    outcome = _obey(deps, user_id, command)
    deps.db.transact(lambda tx: dead_letters.mark_replayed(tx, letter.id))
    return outcome


def _follow(deps: Deps, message: _Message, taken: Taken) -> None:
    started = time.monotonic()
    if taken.body is None:
        raise Invalid("its body is gone from redis; send it again", field="message")
    _read_envelope(message)
    if taken.tries > MOST_TRIES:
        raise Invalid(
            f"{taken.tries - 1} workers died of it; mend it, or mend them, and replay it",
            field="message",
        )
    command = messages.read(message.actor, message.fields)
    message.user_id = _sender(deps, command)
    outcome = _obey(deps, message.user_id, command)
    deps.emit(
        [
            CommandFollowed(
                command=message.actor, outcome=outcome, seconds=time.monotonic() - started
            )
        ]
    )


def _read_envelope(message: _Message) -> None:
    """Note what the message says of itself, as far as it can be read."""
    try:
        decoded = messages.decode(message.raw)
    except Invalid:
        # More than is kept: what is left out is then told by its length.
        message.fields = message.raw[: 2 * letters.MAX_BODY].decode(errors="backslashreplace")
        raise
    message.fields = decoded
    if isinstance(decoded, dict):
        message.id = _text(decoded.get("message_id")) or message.id
        message.actor = _text(decoded.get("actor_name"))
        if decoded.get("kwargs") and not decoded.get("args"):
            message.fields = decoded["kwargs"]  # all that there is to mend, whatever is wrong
    message.fields = messages.open_envelope(decoded).kwargs


def _sender(deps: Deps, command: messages.Command) -> UUID:
    key = None if command.api_key is None else command.api_key.get_secret_value()
    return inbox.find_sender(deps, user=command.user, api_key=key)


def _obey(deps: Deps, user_id: UUID, command: messages.Command) -> Outcome:
    ask = Ask(user_id=user_id, key=command.key, digest=_digest(command))
    return _OBEY[type(command)](deps, ask, command)


def _digest(command: messages.Command) -> str:
    """Hash of what a command asks for, whoever sends it in whatever version of the schema."""
    try:
        said = command.model_dump(mode="json", exclude={"schema_version", "key", "user", "api_key"})
    except ValueError:  # pydantic's way to say that it goes down too far
        raise Invalid("nests too deep", field="kwargs") from None
    text = json.dumps([type(command).__name__, said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _take_upload(deps: Deps, ask: Ask, command: messages.TakeUpload) -> Outcome:
    sent = [
        Sent(
            name=item.name,
            content=Content(text=item.text, blob=item.blob, path=item.path),
            metadata=item.metadata,
        )
        for item in command.items
    ]
    return inbox.take_upload(deps, ask, command.split, sent, priority=command.priority)


def _apply_inferences(deps: Deps, ask: Ask, command: messages.ApplyInferences) -> Outcome:
    given = command.inferences
    return inbox.apply_inferences(
        deps,
        ask,
        command.split,
        Content(blob=command.blob, path=command.path) if given is None else given,
        keep_annotations=command.keep_annotations,
    )


def _retry_job(deps: Deps, ask: Ask, command: messages.RetryJob) -> Outcome:
    return inbox.retry_job(deps, ask, command.job, successors=command.successors)


_OBEY: dict[type[messages.Command], Callable[[Deps, Ask, Any], Outcome]] = {
    messages.TakeUpload: _take_upload,
    messages.ApplyInferences: _apply_inferences,
    messages.RetryJob: _retry_job,
}


def _bury(deps: Deps, message: _Message, field: str, error: str) -> None:
    fields = message.fields if isinstance(message.fields, dict) else {}
    letter_id = letters.keep(
        deps,
        raw=message.raw,
        message=message.fields,
        message_id=message.id,
        actor=message.actor,
        user_id=message.user_id or _whose(deps, fields),
        key=_text(fields.get("key")),
        field=field,
        error=error,
    )
    deps.emit(
        [CommandRefused(command=message.actor, letter_id=letter_id, field=field, error=error)]
    )


def _whose(deps: Deps, fields: Mapping[str, Any]) -> UUID | None:
    """The user of a message that is wrong elsewhere, if it names one."""
    user, key = _text(fields.get("user")), _text(fields.get("api_key"))
    if bool(user) == bool(key) or clean_text(user)[1]:
        return None
    try:
        return inbox.find_sender(deps, user=user or None, api_key=key or None)
    except (RequestError, StoreRefused):
        return None


def _try_again(deps: Deps, message: _Message, taken: Taken, error: Exception) -> None:
    """Have a command that failed for no known reason tried again, but not for ever."""
    fault = f"{type(error).__name__}: {error}"
    if taken.tries < MOST_TRIES:
        log.warning("a command failed and will be tried again: %s", fault)
        raise NotNow(fault) from error
    log.error("a command failed %d times: %s", taken.tries, fault, exc_info=error)
    _bury(deps, message, "message", f"it failed {taken.tries} times, at last with {fault}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _fields_of(letter: dead_letters.Letter) -> dict[str, Any]:
    """A letter's own fields, to be followed as they are, for the user it was found to be of."""
    if letter.is_cut:
        raise Invalid("only a part of the message was kept; give all of it", field="--body")
    fields = json.loads(letter.body)
    if not isinstance(fields, dict):
        raise Invalid("the message holds no fields; give them", field="--body")
    if fields.get("api_key") == letters.REDACTED:
        if letter.username is None:
            raise Invalid("its key is nobody's; give the fields with a good one", field="--body")
        del fields["api_key"]
        fields["user"] = letter.username
    return fields
