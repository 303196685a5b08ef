"""Conditional writes: the version that a client read, sent back as If-Match."""

import re
from typing import Annotated, Any

from fastapi import Depends, Header, Response
from pydantic import WithJsonSchema

from ppworker.errors import Malformed

_TAG = re.compile(r'(?:W/)?"([0-9]{1,18})"|([0-9]{1,18})')
_ANY = "*"
_PATTERN = r'^((W/)?"[0-9]{1,18}"|[0-9]{1,18}|\*)$'
"""The same for the published schema."""


def expected_version(
    if_match: Annotated[
        Annotated[str, WithJsonSchema({"type": "string", "pattern": _PATTERN})] | None,
        Header(
            alias="If-Match",
            description="The version that you read, as a quoted integer; the write is refused "
            "with 412 if there is a newer one. Without it, the last write wins.",
            examples=['"3"'],
        ),
    ] = None,
) -> int | None:
    """The version that If-Match names; None where any will do.

    A tag that a proxy made weak and one without quotes name the same version.

    Raises:
        Malformed: it names none.
    """
    if if_match is None or if_match.strip() == _ANY:
        return None
    found = _TAG.fullmatch(if_match.strip())
    if found is None:
        raise Malformed(
            'must be one version, a quoted integer such as "3", or be left out', field="If-Match"
        )
    return int(found[1] or found[2])


ExpectedVersion = Annotated[int | None, Depends(expected_version)]


def tag(response: Response, version: int) -> None:
    """Put a version on an answer, in the form in which it may come back."""
    response.headers["ETag"] = f'"{version}"'


TAGGED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "ETag": {
                "schema": {"type": "string"},
                "description": "The version of what is answered, for If-Match.",
            }
        }
    }
}
"""For the published schema: answers that carry a version."""
