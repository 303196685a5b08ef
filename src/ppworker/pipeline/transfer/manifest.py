"""The staged form of what is to be imported: one item a line, with the places of files in the
archive, so that any chunk of it can be taken without looking at the others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import SEEK_END
from pathlib import Path
from typing import Any, NamedTuple

from ppworker.formats.archive import Place
from ppworker.formats.base import Mark, Record

_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
_MARK = {field.name: field.default for field in fields(Mark) if field.name != "label"}
_SKIPPED = {"marks", "splits", "member"}
_RECORD = {field.name: field.default for field in fields(Record) if field.name not in _SKIPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """An item that waits to be imported."""

    record: Record
    place: Place | None
    """Where its file, or its text, lies in the archive."""


class Lines(NamedTuple):
    """Some lines of a manifest."""

    staged: list[Staged]
    ends: list[int]
    """Byte offset behind each of them."""
    is_last: bool

    def cut(self, count: int) -> "Lines":
        """The first lines of it."""
        if count >= len(self.staged):
            return self
        return Lines(self.staged[:count], self.ends[:count], is_last=False)


def encode(record: Record, place: Place | None) -> bytes:
    """The line of an item; what is as usual is left out."""
    said: dict[str, Any] = {
        name: value for name, usual in _RECORD.items() if (value := getattr(record, name)) != usual
    }
    if record.splits:
        said["splits"] = record.splits
    if record.marks:
        said["marks"] = [_mark(mark) for mark in record.marks]
    if place is not None:
        said["place"] = place
    return _ENCODER.encode(said).encode("ascii") + b"\n"


def decode(line: bytes) -> Staged:
    """The item of a line."""
    said = json.loads(line)
    place = said.pop("place", None)
    marks = tuple(Mark(**mark) for mark in said.pop("marks", ()))
    splits = tuple(said.pop("splits", ()))
    return Staged(
        record=Record(**said, marks=marks, splits=splits),
        place=None if place is None else Place(*place),
    )


def _mark(mark: Mark) -> Mapping[str, Any]:
    said = {name: value for name, usual in _MARK.items() if (value := getattr(mark, name)) != usual}
    return {"label": mark.label, **said}


def read_lines(
    path: Path, cursor: int, *, most_lines: int, most_bytes: int, most_marks: int
) -> Lines:
    """The lines behind an offset, at least one if there is one.

    Raises:
        FileNotFoundError: the manifest was thrown away.
    """
    staged: list[Staged] = []
    ends: list[int] = []
    end, weight, marks = cursor, 0, 0
    with path.open("rb") as file:
        size = file.seek(0, SEEK_END)
        file.seek(cursor)
        while (
            len(staged) < most_lines
            and weight < most_bytes
            and marks < most_marks
            and (line := file.readline())
        ):
            end += len(line)
            ends.append(end)
            found = decode(line)
            staged.append(found)
            marks += len(found.record.marks)
            weight += len(line)
            if found.place is not None and found.record.is_text_member:
                weight += found.place.size
    return Lines(staged, ends, end >= size)
