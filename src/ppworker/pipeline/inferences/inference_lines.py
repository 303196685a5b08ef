"""Checks inferences line by line in one pass, whatever their number, and reads them back in chunks.

What passes the check can be applied: nothing that was accepted is refused later.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppworker.domain import given
from ppworker.domain.given import Given
from ppworker.domain.text import json_text
from ppworker.errors import Invalid, TooLarge

MOST_PREDICTIONS = 10_000
"""Predictions of one inference."""
_MOST_ID = 200
_MOST_WORD = 100_000
_BLOCK_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"

_Confidence = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Id = Annotated[str, Field(max_length=_MOST_ID)]
_Word = Annotated[str, Field(max_length=_MOST_WORD)]


class Prediction(BaseModel):
    model_config = ConfigDict(strict=True)

    prediction: _Word | None = None
    confidence: _Confidence | None = None
    coordinates: _Word | None = None


class Inference(BaseModel):
    """The keys of the public contract that mean something here, and ``blob``; others are kept."""

    model_config = ConfigDict(strict=True)

    id: _Id | None = None
    name: str | None = None
    result: str | None = None
    extension: Annotated[str, Field(max_length=32)] | None = None
    model_id: _Id | None = None
    model_version_id: _Id | None = None
    dataset_item_id: _Id | None = None
    blob: Annotated[str, Field(pattern="^([0-9a-fA-F]{64})?$")] | None = None
    prediction: _Word | None = None
    confidence: _Confidence | None = None
    inference_items: Annotated[list[Prediction], Field(max_length=MOST_PREDICTIONS)] | None = None


# What JSON can say and PostgreSQL cannot store, or only perhaps: such lines are looked at closely.
_DOUBTFUL = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|[eE][+-]?[0-9]{3}|[0-9]{300}")


class Line(NamedTuple):
    """An inference as it is stored and as it is applied."""

    raw: str
    """JSON text that PostgreSQL takes."""
    refused: int
    """Characters and values that it does not take, taken out of ``raw``."""
    given: Given


def read_line(line: bytes) -> Line:
    """Read a line that has been checked."""
    value = json.loads(line)
    raw, refused = json_text(value) if _DOUBTFUL.search(line) else (line.decode().strip(), 0)
    return Line(raw, refused, given.read(value))


class Chunk(NamedTuple):
    """Some lines of a staged file."""

    lines: list[Line]
    ends: list[int]
    """Byte offset behind each of them."""
    is_last: bool

    def cut(self, count: int) -> "Chunk":
        """The first lines of it."""
        if count >= len(self.lines):
            return self
        return Chunk(self.lines[:count], self.ends[:count], is_last=False)


def read_chunk(
    path: Path, cursor: int, *, most_lines: int, most_bytes: int, most_predictions: int
) -> Chunk:
    """Read the lines behind an offset, at least one if there is one."""
    lines: list[Line] = []
    ends: list[int] = []
    end, predictions = cursor, 0
    with path.open("rb") as file:
        size = file.seek(0, SEEK_END)
        file.seek(cursor)
        while (
            len(lines) < most_lines
            and end - cursor < most_bytes
            and predictions < most_predictions
            and (line := file.readline())
        ):
            end += len(line)
            ends.append(end)
            lines.append(read_line(line))
            predictions += len(lines[-1].given.predictions)
    return Chunk(lines, ends, end >= size)


@dataclass(frozen=True, slots=True)
class Place:
    """How a caller names the inference that is at fault."""

    prefix: str

    def of(self, location: Iterable[int | str]) -> str:
        """The name of a field of it."""
        words = self.prefix
        for part in location:
            words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else part
        return words


class Staged:
    """A readable stream of checked lines, one inference each: checks, hashes and counts them.

    Args:
        source: lines and how the caller names each.
        most_text_bytes: longest text of an item.
        most_bytes: longest line.
    """

    def __init__(
        self, source: Iterable[tuple[bytes, Place]], *, most_text_bytes: int, most_bytes: int
    ) -> None:
        self._source: Iterator[tuple[bytes, Place]] = iter(source)
        self._most_text_bytes = most_text_bytes
        self._most_bytes = most_bytes
        self._digest = hashlib.sha256()
        self.total = 0
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """Hash of what was read so far."""
        return self._digest.hexdigest()

    def read(self, _size: int = -1, /) -> bytes:
        """The next lines, a block of them; nothing at the end.

        Raises:
            Invalid: a line breaks a rule; names it.
        """
        block = bytearray()
        for line, place in self._source:
            self._check(line, place)
            block += line
            block += b"\n"
            self.total += 1
            if len(block) >= _BLOCK_BYTES:
                break
        self._digest.update(block)
        self.size_bytes += len(block)
        return bytes(block)

    def _check(self, line: bytes, place: Place) -> None:
        if len(line) > self._most_bytes:
            raise TooLarge(
                f"has more than {self._most_bytes} bytes; cut its text up, or raise "
                "PPWORKER_MAX_TEXT_BYTES",
                field=place.of(()),
            )
        try:
            found = Inference.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Invalid(_sentence(first), field=place.of(first["loc"])) from None
        self._check_item(found, place)

    def _check_item(self, found: Inference, place: Place) -> None:
        if found.dataset_item_id or found.blob:
            return
        if not (found.name or "").strip("\0") and not (found.result or "").strip("\0"):
            raise Invalid(
                "an inference becomes an item by its name, result or blob, or names one by "
                "dataset_item_id; give one of them",
                field=place.of(("name",)),
            )
        for key, text in (("name", found.name), ("result", found.result)):
            if text and len(text) * 4 > self._most_text_bytes:
                size = len(text.encode())
                if size > self._most_text_bytes:
                    raise TooLarge(
                        f"has {size} bytes, more than {self._most_text_bytes}; cut it up, or "
                        "raise PPWORKER_MAX_TEXT_BYTES",
                        field=place.of((key,)),
                    )


def _sentence(error: Mapping[str, Any]) -> str:
    """What pydantic found, in the words of the other errors."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "json_invalid":
        return f"is no JSON: {context.get('error', error['msg'])}"
    if kind in {"model_type", "model_attributes_type"}:
        return "must be an object"
    if error["loc"] and error["loc"][-1] == "confidence":
        return "must be a number from 0 to 1, or null"
    if kind == "string_pattern_mismatch":
        return "must be the SHA-256 of a stored file, 64 hexadecimal digits"
    message = str(error["msg"])
    return message[:1].lower() + message[1:]


def lines_of(path: Path, most_bytes: int) -> Iterator[tuple[bytes, Place]]:
    """Lines of a JSON Lines file, blank ones left out; no line is read beyond the limit."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(most_bytes + 2):
            number += 1
            if number == 1:
                line = line.removeprefix(_BOM)  # some editors begin files so
            # One that is too long is not whole; it is refused as it is.
            if shown := line.strip() if len(line) <= most_bytes else line:
                yield shown, Place(f"line {number}")


def lines_from(inferences: Iterable[Mapping[str, Any]]) -> Iterator[tuple[bytes, Place]]:
    """Lines of inferences that are values already.

    Raises:
        Invalid: one of them is not made of what JSON knows.
    """
    for number, each in enumerate(inferences):
        place = Place(f"inferences[{number}]")
        if not isinstance(each, Mapping):
            raise Invalid("must be an object", field=place.of(()))
        try:
            line = _ENCODER.encode(dict(each)).encode()
        except UnicodeEncodeError:
            raise Invalid("holds a lone surrogate, half a character", field=place.of(())) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise Invalid(f"is no JSON: {error}"[:200], field=place.of(())) from None
        yield line, place


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def as_file(staged: Staged) -> BinaryIO:
    """The stream as a store of files reads it; it needs nothing but ``read``."""
    return staged  # type: ignore[return-value]
