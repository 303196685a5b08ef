"""How values look on the wire: what clients of the contract send, and what they can bear to read.

Answers follow the zero values of the language that the contract comes from: an unset string is
empty, never null; null is left to what may truly be absent. Requests may send null for anything,
which means that it is not given.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

_ID = {"type": "string", "format": "uuid"}
Id = Annotated[str, WithJsonSchema(_ID)]
"""An id in a body."""
IdOrEmpty = Annotated[str, WithJsonSchema({"anyOf": [_ID, {"type": "string", "maxLength": 0}]})]
"""The same where empty means that none is given."""


def _stamp(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text(value: Any) -> Any:
    if value is None:
        return ""
    return str(value) if isinstance(value, UUID) else value


def _optional_text(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value or None


def _number(value: Any) -> Any:
    return 0 if value is None else value


def _flag(value: Any) -> Any:
    return False if value is None else value


Time = Annotated[
    datetime,
    PlainSerializer(_stamp, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
"""RFC 3339 with fraction, in UTC."""
Text = Annotated[str, BeforeValidator(_text)]
"""A string or an id, empty when unset."""
OptionalText = Annotated[str | None, BeforeValidator(_optional_text)]
"""A string or an id, null when unset."""
Count = Annotated[int, BeforeValidator(_number)]
Share = Annotated[float, BeforeValidator(_number)]
Flag = Annotated[bool, BeforeValidator(_flag)]

MOST_PAGE = 1000
"""Most rows that a client may ask for at once."""


class Answer(BaseModel):
    """What goes out."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make one of what the store says: ids, and null where something is unset."""
        return cls.model_validate(values)


class Base(Answer):
    """What everything has that has an identity."""

    id: Text = ""
    created_at: Time | None = None
    updated_at: Time | None = None
    name: Text = ""
    description: Text = ""


class Asked(BaseModel):
    """What comes in; what nobody knows is left alone, and null means not given.

    A text is no number and a number no flag: what the schema does not allow is not guessed at.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        """Read 5.0 as the whole number that it is in JSON."""
        if not isinstance(value, dict):
            return value
        return {
            name: int(each) if isinstance(each, float) and each.is_integer() else each
            for name, each in value.items()
        }

    def given(self) -> dict[str, Any]:
        """The fields that are not null."""
        return {name: value for name, value in self if value is not None}
