"""Which rows of a list a client asks for: by the contract's page size and page number, or by a
cursor, which costs the same however far the list was read.

A cursor says behind which row the next page begins, and of which list. It opens nothing: whose the
list is is found out from the path and the key, as for any other request.
"""

import binascii
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from fastapi import Query, Request, Response
from pydantic import BeforeValidator, Field

from ppworker.api.wire import MOST_PAGE
from ppworker.errors import Malformed
from ppworker.store.item_counts import Size

DEFAULT_PAGE = 10
_MOST_PAGES = 1_000_000


def absent(value: object) -> object:
    """An empty value of a query string counts as absent."""
    return None if value == "" else value


# The bounds stand inside, where an absent value does not meet them.
PageSize = Annotated[
    Annotated[int, Field(ge=1, le=MOST_PAGE)] | None,
    BeforeValidator(absent),
    Query(alias="pageSize", description="Rows of a page."),
]
PageCount = Annotated[
    Annotated[int, Field(ge=0, le=_MOST_PAGES)] | None,
    BeforeValidator(absent),
    Query(alias="pageCount", description="Number of the page, from 0."),
]
QueryFlag = Annotated[bool | None, BeforeValidator(absent)]
QueryText = Annotated[str | None, BeforeValidator(absent)]
PageCursor = Annotated[
    Annotated[str, Field(max_length=100)] | None,
    BeforeValidator(absent),
    Query(
        alias="cursor",
        description="What `X-Next-Cursor` said with the page before, in place of `pageCount`.",
    ),
]

_ID_BYTES = 16
_CHECK_BYTES = 8

_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_FLAG = {"type": "string", "enum": ["true", "false"]}
HEADERS: Mapping[str, Any] = {
    "X-Has-More": {"description": "Whether rows follow.", "schema": _FLAG},
    "X-Next-Cursor": {
        "description": "For the query parameter `cursor` of the next page; absent at the end.",
        "schema": _TEXT,
    },
    "Link": {"description": "The same as a link, with `rel=next`.", "schema": _TEXT},
}
"""The description of the headers of a page for the published schema."""

TOTALS: Mapping[str, Any] = {
    **HEADERS,
    "X-Total-Count": {
        "description": "Length of the whole list, where that is known. Not with a cursor.",
        "schema": _NUMBER,
    },
    "X-Total-At-Most": {
        "description": "In its place where splits may share items: all of theirs added up.",
        "schema": _NUMBER,
    },
}
"""The same of a list whose length may be known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where in a list a page begins."""

    list_name: str
    """Which list with which filters: a cursor is good for no other one."""
    after: UUID | None
    """Behind which row."""
    offset: int
    """How many rows are passed over."""


def position(
    list_name: str, *, page_size: int, page_count: int | None, cursor: str | None
) -> Position:
    """Where a page begins.

    Raises:
        Malformed: the cursor is none, or of another list, or both it and a page number are given.
    """
    if cursor is None:
        return Position(list_name=list_name, after=None, offset=(page_count or 0) * page_size)
    if page_count:
        raise Malformed("give a cursor or a pageCount, not both", field="cursor")
    try:
        said = urlsafe_b64decode(cursor.encode())
    except (ValueError, binascii.Error):
        said = b""
    after = said[:_ID_BYTES]
    # Compared as written: there is one way to write it.
    if len(said) != _ID_BYTES + _CHECK_BYTES or cursor != _cursor(list_name, after):
        raise Malformed(
            "this is no cursor of this list with these filters; "
            "take it from X-Next-Cursor, or leave it out to begin anew",
            field="cursor",
        )
    return Position(list_name=list_name, after=UUID(bytes=after), offset=0)


def tell(request: Request, response: Response, at: Position, behind: UUID | None) -> None:
    """Say in the headers of an answer whether and where the list goes on.

    Args:
        request: what was asked.
        response: what is answered.
        at: where the page began.
        behind: the next page begins behind this row; None at the end.
    """
    response.headers["X-Has-More"] = "false" if behind is None else "true"
    if behind is None:
        return
    cursor = _cursor(at.list_name, behind.bytes)
    asked = parse_qsl(request.url.query, keep_blank_values=True)
    kept = [(name, value) for name, value in asked if name not in {"cursor", "pageCount"}]
    response.headers["X-Next-Cursor"] = cursor
    # Relative, so that it holds behind any proxy.
    response.headers["Link"] = f'<?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'


def tell_total(response: Response, size: Size) -> None:
    """Say in the headers how long the whole list is, as far as that is known."""
    if size.exactly is not None:
        response.headers["X-Total-Count"] = str(size.exactly)
    elif size.at_most is not None:
        response.headers["X-Total-At-Most"] = str(size.at_most)


def _cursor(list_name: str, after: bytes) -> str:
    check = hashlib.blake2b(after + list_name.encode(), digest_size=_CHECK_BYTES).digest()
    return urlsafe_b64encode(after + check).decode()
