"""Which rows of a list a client asks for, by the contract's page size and page number."""

from typing import Annotated

from fastapi import Query
from pydantic import BeforeValidator, Field

from ppworker.api.wire import MOST_PAGE

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
