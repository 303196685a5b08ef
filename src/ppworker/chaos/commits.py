"""Sees a COMMIT pass on a connection to PostgreSQL, and what was said before it."""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Cut(StrEnum):
    """What becomes of a link at a COMMIT."""

    BEFORE = "before"
    """Cut before it reaches the server: nothing is written."""
    AFTER = "after"
    """Cut when the server has answered, before the answer reaches the client: all is written."""
    LATE = "late"
    """The client is cut off at once, and the server gets the COMMIT only later: it is written
    while the client may be asking already whether it was."""


Choose = Callable[[Sequence[str]], Cut | None]
"""Decides at a COMMIT by the texts of the statements of its transaction; None lets it pass. Called
in the proxy's thread; must be quick and not raise."""

SSL_REQUEST = b"ssl"
STARTUP = b"startup"
_SSL_CODES = frozenset({80877103, 80877104})  # TLS and GSS encryption
_CANCEL_CODE = 80877102
_END_OF_TRANSACTION = b"Z\x00\x00\x00\x05I"
_COMMITTED = b"COMMIT\x00"


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message of a client."""

    kind: bytes
    raw: bytes
    commits: tuple[str, ...] | None = None
    """For a COMMIT, the statements of its transaction in their order."""


class Frontend:
    """Reads what one client says, in pieces of any size, as whole messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._has_begun = False
        self._prepared: dict[bytes, str] = {}
        self._transaction: list[str] | None = None

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now."""
        self._rest += data
        while (size := self._size()) is not None and len(self._rest) >= size:
            raw, self._rest = self._rest[:size], self._rest[size:]
            yield self._message(raw)

    def _size(self) -> int | None:
        """Bytes of the next message, if its head has arrived."""
        head = 1 if self._has_begun else 0
        if len(self._rest) < head + 4:
            return None
        return head + int(struct.unpack_from("!I", self._rest, head)[0])

    def _message(self, raw: bytes) -> Message:
        if not self._has_begun:
            code = struct.unpack_from("!I", raw, 4)[0]
            if code in _SSL_CODES:
                return Message(SSL_REQUEST, raw)
            self._has_begun = True  # also by a request to cancel, behind which nothing comes
            return Message(STARTUP, raw)
        kind, body = raw[:1], raw[5:]
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text.decode(errors="replace")
        elif kind == b"Q":
            return Message(kind, raw, self._said(body[:-1].decode(errors="replace")))
        elif kind == b"B":
            name = body.split(b"\0", 2)[1]
            return Message(kind, raw, self._said(self._prepared.get(name, "")))
        return Message(kind, raw)

    def _said(self, text: str) -> tuple[str, ...] | None:
        """Note a statement; the transaction's if it is its COMMIT."""
        word = text.lstrip()[:12].split(" ", 1)[0].rstrip(";").upper()
        if word in {"BEGIN", "START"}:
            self._transaction = []
        elif word in {"COMMIT", "END"}:
            said, self._transaction = tuple(self._transaction or ()), None
            return said
        elif word == "ROLLBACK" and "TO" not in text.upper().split():
            self._transaction = None
        elif self._transaction is not None:
            self._transaction.append(text)
        return None


def is_answered(answer: bytes) -> bool:
    """Whether a server's bytes behind a COMMIT are its whole answer."""
    return answer.endswith(_END_OF_TRANSACTION)


def is_committed(answer: bytes) -> bool:
    """Whether that answer says that the transaction was committed."""
    return _COMMITTED in answer
