"""Our own format, which loses nothing: JSON Lines, and every file once by its hash.

``ppworker.json`` describes the version, ``items.jsonl`` has one item a line with all its
annotations, ``files/<sha256>`` are their files. What a post-processor made keeps its name as
provenance. Ids, times and who wrote what are not part of it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppworker.domain.inference import Kind
from ppworker.errors import Invalid
from ppworker.formats import json_stream
from ppworker.formats.archive import Archive
from ppworker.formats.archive_checks import FIELD, shown
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import (
    About,
    Header,
    LabelNote,
    Mark,
    OpenFile,
    Record,
    Report,
    SplitNote,
    Writer,
)

MANIFEST, ITEMS, FILES = "ppworker.json", "items.jsonl", "files"
VERSION = 1
_WORD = "ppworker"
_MOST_MARKS = 10_000
_MOST_LABELS = 10_000

_Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


_S = TypeVar("_S", bound=_Shape)


class _Label(_Shape):
    name: _Name
    color: Annotated[str, Field(max_length=100)] = ""
    index: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    shortcut: Annotated[str, Field(max_length=100)] = ""
    description: Annotated[str, Field(max_length=10_000)] = ""


class _Split(_Shape):
    name: _Name
    description: Annotated[str, Field(max_length=10_000)] = ""


class _Version(_Shape):
    name: str = ""
    description: str = ""
    config: str = ""
    default_split: str = ""
    content_type: str = ""
    multi_label: bool = True


class _Manifest(_Shape):
    format: str
    format_version: int
    version: _Version = _Version()
    labels: Annotated[list[_Label], Field(max_length=_MOST_LABELS)] = []
    splits: Annotated[list[_Split], Field(max_length=1_000)] = []


class _Mark(_Shape):
    label: _Name
    kind: Kind
    coordinates: str = ""
    geometry: dict[str, Any] | None = None
    text: str | None = None
    page: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    source: Annotated[str, Field(pattern="^(human|model|inference|import)$")] = "import"
    post_processor: str = ""
    model_version: str = ""
    review: Annotated[str, Field(pattern="^(suggested|accepted|edited)$")] = "accepted"


class _Item(_Shape):
    name: str = ""
    splits: Annotated[list[_Name], Field(max_length=1_000)] = []
    text: str | None = None
    file: str = ""
    extension: Annotated[str, Field(max_length=32)] = ""
    media_type: Annotated[str, Field(max_length=200)] = ""
    description: str = ""
    metadata: str = ""
    state: str = ""
    annotations: Annotated[list[_Mark], Field(max_length=_MOST_MARKS)] = []


class Own:
    """The format."""

    name = "ppworker"

    def recognises(self, archive: Archive, about: About) -> bool:  # noqa: ARG002
        """Whether our manifest is there."""
        return MANIFEST in archive

    def read(
        self,
        archive: Archive,
        about: About,  # noqa: ARG002
        report: Report,
    ) -> tuple[Header, Iterator[Record]]:
        """Everything, as it was exported."""
        for name in (MANIFEST, ITEMS):
            if name not in archive:
                raise Invalid(f"{name}: is missing from the archive", field=FIELD)
        found = _parsed(_Manifest, archive.read(MANIFEST), MANIFEST)
        if found.format != _WORD or found.format_version > VERSION:
            raise Invalid(
                f"{MANIFEST}: is of format {found.format!r}, version {found.format_version}; this "
                f"is {_WORD!r}, version {VERSION}",
                field=FIELD,
            )
        header = Header(
            labels=[LabelNote(**label.model_dump()) for label in found.labels],
            splits=[SplitNote(**split.model_dump()) for split in found.splits],
            default_split=found.version.default_split,
            multi_label=found.version.multi_label,
            config=found.version.config or None,
        )
        return header, _records(archive, report)

    def writer(
        self,
        out: ArchiveWriter,
        about: About,
        open_file: OpenFile,
        report: Report,  # noqa: ARG002  nothing is lost
        state: dict[str, Any],
    ) -> Writer:
        """Begin an archive, or go on with it."""
        return _Writer(out, about, open_file, state)


def _parsed(shape: type[_S], content: bytes | str, where: str) -> _S:
    try:
        return shape.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"])
        raise Invalid(
            f"{where}: {path + ': ' if path else ''}{message[:1].lower() + message[1:]}",
            field=FIELD,
        ) from None


def _records(archive: Archive, report: Report) -> Iterator[Record]:
    for number, line in enumerate(archive.lines(ITEMS), start=1):
        if not line.strip():
            continue
        where = f"{ITEMS}: line {number}"
        if json_stream.has_too_many_values(line.encode()):
            most = json_stream.MAX_VALUES
            raise Invalid(f"{where}: holds more than {most} values", field=FIELD)
        item = _parsed(_Item, line, where)
        if item.file and item.file not in archive:
            report.skip("missing_file", f"{where}: {shown(item.file)}")
            continue
        yield Record(
            name=item.name,
            splits=tuple(item.splits),
            text=item.text,
            member=item.file,
            extension=item.extension,
            media_type=item.media_type,
            description=item.description,
            metadata=item.metadata,
            state=item.state,
            marks=tuple(Mark(**mark.model_dump(), is_exact=True) for mark in item.annotations),
            is_exact=True,
            where=where,
        )


class _Writer:
    def __init__(
        self, out: ArchiveWriter, about: About, open_file: OpenFile, state: dict[str, Any]
    ) -> None:
        self._out = out
        self._about = about
        self._open_file = open_file
        if not state:
            state["begun"] = True
            out.reserve(MANIFEST)
            out.reserve(ITEMS)
            out.append(ITEMS, "")

    def add(self, record: Record) -> None:
        """Write down an item, and its file unless it is there already."""
        member = ""
        if record.content_sha256:
            member = f"{FILES}/{record.content_sha256}"
            if not self._out.has(member):
                with self._open_file(record) as file:
                    self._out.add(self._out.reserve(FILES, record.content_sha256), file)
        said = {
            "name": record.name,
            "splits": list(record.splits),
            "text": record.text,
            "file": member,
            "extension": record.extension,
            "media_type": record.media_type,
            "description": record.description,
            "metadata": record.metadata,
            "state": record.state,
            "annotations": [_said(mark) for mark in record.marks],
        }
        kept = {key: value for key, value in said.items() if value or key == "text"}
        self._out.append(ITEMS, json.dumps(kept) + "\n")

    def finish(self) -> None:
        """Write what is said of the version, as it is by now."""
        about = self._about
        said = {
            "format": _WORD,
            "format_version": VERSION,
            "version": {
                "name": about.name,
                "description": about.description,
                "config": about.config,
                "default_split": about.default_split,
                "content_type": about.content_type,
                "multi_label": about.multi_label,
            },
            "labels": [asdict(label) for label in about.labels],
            "splits": [asdict(split) for split in about.splits],
        }
        self._out.add(MANIFEST, json.dumps(said, indent=1))


def _said(mark: Mark) -> dict[str, Any]:
    said = asdict(mark)
    for name in ("is_relative", "is_exact"):
        del said[name]
    return {key: value for key, value in said.items() if value is not None and value != ""}
