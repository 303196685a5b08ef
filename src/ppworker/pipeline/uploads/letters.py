"""Keeps messages that cannot be followed: readable, bounded, without their secrets.

Nothing a stranger wrote can keep a letter from being written: it is ASCII when it reaches the
database, whatever it was.
"""

import hashlib
import json
import math
import re
from typing import Any
from uuid import UUID

from ppworker.domain.text import clean_text
from ppworker.pipeline.deps import Deps
from ppworker.store import dead_letters

REDACTED = "[redacted]"
MAX_BODY = 1024 * 1024
"""Most characters of a body that is kept."""
_LONG_TEXT = 500
_LONG_LIST = 50
_MAX_WORD = 200
_MAX_ERROR = 2000
_NAMES = r"(?i:api[-_ ]?key|authori[sz]ation|passw|secret|token)"
_SECRET_NAME = re.compile(_NAMES)
_SECRET = re.compile(r"ppw_[\w-]{20,}")
_NAMED_SECRET = re.compile(rf'("[^"]{{0,40}}(?:{_NAMES})[^"]{{0,40}}"\s*:\s*")(?:[^"\\]|\\.)+')
"""As it stands in what ought to be JSON."""


def keep(
    deps: Deps,
    *,
    raw: bytes,
    message: Any,
    message_id: str,
    actor: str,
    user_id: UUID | None,
    key: str,
    field: str,
    error: str,
) -> UUID | None:
    """Write a dead letter; None when this message has one already.

    Args:
        deps: the collaborators.
        raw: the message as it came.
        message: what of it is kept: its arguments, or all of it where it has none.
        message_id: as its producer named it, or the queue.
        actor: the command, as written.
        user_id: whose it is, where that can be told.
        key: its idempotency key, as written.
        field: what is at fault.
        error: why.

    Raises:
        StoreUnavailable: PostgreSQL is away.
    """
    body, is_cut = shown(message, raw)
    letter = dead_letters.NewLetter(
        message_id=_word(message_id),
        actor=_word(actor),
        user_id=user_id,
        key=_word(key),
        field=_word(field),
        error=_word(error, _MAX_ERROR),
        body=body,
        body_sha256=hashlib.sha256(raw).hexdigest(),
        is_cut=is_cut,
    )
    return deps.db.transact(lambda tx: dead_letters.insert_letter(tx, letter))


def shown(message: Any, raw: bytes = b"") -> tuple[str, bool]:
    """The message as JSON of bounded length, and whether it is less than what was sent.

    A redacted ``api_key`` at the top does not count as less: a replay acts for the letter's user.
    """
    if isinstance(message, str):  # not even JSON
        message = _without_secrets(message)
    try:
        whole = _Copy()
        text = json.dumps(whole.of(message))
        if len(text) <= MAX_BODY:
            return text, whole.is_less
        text = json.dumps(_Copy(most_text=_LONG_TEXT, most_list=_LONG_LIST).of(message))
        if len(text) <= MAX_BODY:
            return text, True
    except (RecursionError, ValueError):  # nested too deep, or an integer too long to write
        text = _without_secrets(raw[:MAX_BODY].decode(errors="backslashreplace"))
    return json.dumps(_beginning(text, MAX_BODY // 8)), True  # a text in JSON may grow sixfold


def _without_secrets(text: str) -> str:
    return _SECRET.sub(REDACTED, _NAMED_SECRET.sub(rf"\1{REDACTED}", text))


class _Copy:
    """A copy of JSON without secrets, and shortened where it is told to."""

    def __init__(self, *, most_text: int | None = None, most_list: int | None = None) -> None:
        self.is_less = False
        self._most_text = most_text
        self._most_list = most_list

    def of(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            most = len(value) if self._most_list is None else self._most_list
            copy = {
                self._text(str(name)): self._entry(str(name), value[name], depth)
                for name in list(value)[:most]
            }
            if len(value) > most:
                copy["…"] = f"[cut: {most} of {len(value)} fields]"
            return copy
        if isinstance(value, list):
            most = len(value) if self._most_list is None else self._most_list
            return [self.of(each, depth + 1) for each in value[:most]] + (
                [f"[cut: {most} of {len(value)} elements]"] if len(value) > most else []
            )
        if isinstance(value, float) and not math.isfinite(value):
            self.is_less = True
            return str(value)
        return value

    def _entry(self, name: str, value: Any, depth: int) -> Any:
        if value and _SECRET_NAME.search(name):
            self.is_less = self.is_less or depth > 0 or name != "api_key"
            return REDACTED
        return self.of(value, depth + 1)

    def _text(self, text: str) -> str:
        text, secrets = _SECRET.subn(REDACTED, text)
        self.is_less = self.is_less or secrets > 0
        return text if self._most_text is None else _beginning(text, self._most_text)


def _beginning(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[:most]}… [cut: {most} of {len(text)} characters]"


def _word(text: str, most: int = _MAX_WORD) -> str:
    return _beginning(_SECRET.sub(REDACTED, clean_text(text)[0]), most)
