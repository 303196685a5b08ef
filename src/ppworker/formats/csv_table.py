"""A table of comma separated values: one row an item, with a column for its split and its labels.

The item's text is the row without those two columns, as one line of the same form; the version's
configuration says what the columns are. ``config.json`` beside the table says which file it is and
how it is written.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppworker.domain.labels import MAX_NAME
from ppworker.errors import Invalid
from ppworker.formats import ledger
from ppworker.formats.archive import Archive
from ppworker.formats.archive_checks import FIELD, shown
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import About, Header, Mark, OpenFile, Record, Report, Writer

CONFIG = "config.json"
LOSSES = {
    **ledger.DESCRIPTIONS, **ledger.METADATA, **ledger.STATES, **ledger.SCORES, **ledger.REVIEWS,
    **ledger.ORIGINS, **ledger.KEYPOINTS, **ledger.SPANS, **ledger.SEGMENTS, **ledger.LABEL_NOTES,
    **ledger.SPLIT_NOTES,
    "names": "name of an item",
    "files": "file of an item, of which only the text is written",
    "boxes": "box on a picture or page",
    "polygons": "polygon on a picture or page",
    "places": "coordinates of a label that are a client's own",
    "further_labels": "label of an item that has another one already, where one is the rule",
    "label_separators": "label whose name holds what parts labels in a cell",
    "further_splits": "split of an item that is in another one already",
    "cells": "cell of a text that has more cells than there are columns",
    "label_colours": "colour and index of a label",
    "default_splits": "which split is shown first",
}  # fmt: skip
"""What a table cannot hold."""

_OTHER_KINDS = {
    "bbox": "boxes", "polygon": "polygons", "keypoints": "keypoints", "span": "spans",
    "segment": "segments",
}  # fmt: skip
_MOST_ROW = 8 * 1024 * 1024
"""Bytes of a row, however many lines it takes: all of it is in memory several times."""
_MOST_SEPARATORS = 500_000
"""In a row, those in quotes among them."""
_MOST_COLUMNS = 10_000
_MOST_LABELS = 1_000
_TEXT = "text"
csv.field_size_limit(_MOST_ROW)


class _Config(BaseModel):
    """What ``config.json`` says; null means not said."""

    model_config = ConfigDict(extra="ignore")

    multi_label: bool | None = None
    split_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    filename: str | None = None
    csv_separator: str | None = Field(default=None, max_length=1)


class _Columns(BaseModel):
    """What a version's configuration says of its columns."""

    model_config = ConfigDict(extra="ignore")

    column_names: str = ""
    csv_separator: str = Field(default=",", min_length=1, max_length=1)
    split_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    columns: list[str] | None = None
    """All of them in their order, the split and the labels among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a table is read."""

    member: str
    columns: Sequence[str]
    separator: str
    split_at: int | None
    label_at: int | None
    label_separator: str | None
    """None: the whole cell is one label."""

    @property
    def kept(self) -> list[int]:
        """Positions of the columns that make the text."""
        left_out = {self.split_at, self.label_at}
        return [at for at in range(len(self.columns)) if at not in left_out]


class CsvTable:
    """The format."""

    name = "csv"

    def recognises(self, archive: Archive, about: About) -> bool:  # noqa: ARG002
        """Whether there is one table, or a configuration that names one."""
        tables = [name for name in archive if _is_table(name)]
        return len(tables) == 1 and all(name == CONFIG for name in archive if name not in tables)

    def read(
        self, archive: Archive, about: About, report: Report
    ) -> tuple[Header, Iterator[Record]]:
        """Every row."""
        layout = _layout(archive, about)
        config = _version_config(layout)
        known = _columns(about)
        names = layout.separator.join(layout.columns[at] for at in layout.kept)
        if known is not None and known.column_names and known.column_names != names:
            raise Invalid(
                f"{shown(layout.member)}: has other columns than the version, whose config says "
                f"{known.column_names[:200]!r}; import it into a new version",
                field=FIELD,
            )
        return Header(config=None if about.config else config), _records(archive, layout, report)

    def writer(
        self,
        out: ArchiveWriter,
        about: About,
        open_file: OpenFile,  # noqa: ARG002  files have no place in a table
        report: Report,
        state: dict[str, Any],
    ) -> Writer:
        """Begin an archive, or go on with it."""
        return _Writer(out, about, report, state)


def _is_table(name: str) -> bool:
    return "/" not in name and name.lower().endswith((".csv", ".tsv"))


def _columns(about: About) -> _Columns | None:
    try:
        return _Columns.model_validate_json(about.config) if about.config else None
    except ValidationError:
        return None  # a client's own words


def _config(archive: Archive) -> _Config:
    if CONFIG not in archive:
        return _Config()
    try:
        return _Config.model_validate_json(archive.read(CONFIG, 1 << 20))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Invalid(
            f"{CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}", field=FIELD
        ) from None


def _layout(archive: Archive, about: About) -> _Layout:
    config = _config(archive)
    member = config.filename or ""
    if member not in archive:
        tables = [name for name in archive if _is_table(name)]
        if len(tables) != 1:
            what = f"{shown(member)}: is missing" if member else "there must be one table, .csv,"
            raise Invalid(f"{what} at the root of the archive", field=FIELD)
        member = tables[0]
    separator = config.csv_separator or ("\t" if member.lower().endswith(".tsv") else ",")
    columns = next(_rows(archive, member, separator), [])
    if not columns or not any(columns):
        raise Invalid(f"{shown(member)}: line 1: the names of the columns are missing", field=FIELD)
    if len(columns) > _MOST_COLUMNS or len(set(columns)) < len(columns):
        raise Invalid(
            f"{shown(member)}: line 1: has two columns of one name, or more than {_MOST_COLUMNS}",
            field=FIELD,
        )
    multi_label = about.multi_label if config.multi_label is None else config.multi_label
    label_column = config.label_column
    if label_column is None:
        label_column = next((name for name in ("labels", "label") if name in columns), "")
    split_column = config.split_column or "split"
    separator_of_labels = (config.label_separator or " ") if multi_label else None
    return _Layout(
        member=member,
        columns=columns,
        separator=separator,
        split_at=columns.index(split_column) if split_column in columns else None,
        label_at=columns.index(label_column) if label_column in columns else None,
        label_separator=separator_of_labels,
    )


def _version_config(layout: _Layout) -> str:
    """What the version shall say of itself: the contract's two words, and ours behind them."""
    said: dict[str, Any] = {
        "column_names": layout.separator.join(layout.columns[at] for at in layout.kept),
        "csv_separator": layout.separator,
        "columns": list(layout.columns),
    }
    if layout.split_at is not None:
        said["split_column"] = layout.columns[layout.split_at]
    if layout.label_at is not None:
        said["label_column"] = layout.columns[layout.label_at]
    if layout.label_separator is not None:
        said["label_separator"] = layout.label_separator
    return json.dumps(said, ensure_ascii=False)


def _rows(archive: Archive, member: str, separator: str) -> Iterator[list[str]]:
    lines = _Lines(member, separator)
    with archive.open(member) as file:
        reader = csv.reader(lines.read(file), delimiter=separator, strict=True)
        try:
            for row in reader:
                lines.begin_row()
                yield row
        except csv.Error as error:
            raise Invalid(f"{lines.where}: {error}", field=FIELD) from None


@dataclass(slots=True)
class _Lines:
    """Lines of a table, of which one row may take many."""

    member: str
    separator: str
    number: int = 0
    _bytes: int = 0
    _separators: int = 0

    @property
    def where(self) -> str:
        """The line that was read last."""
        return f"{shown(self.member)}: line {self.number}"

    def begin_row(self) -> None:
        """What comes now belongs to another row."""
        self._bytes = self._separators = 0

    def read(self, file: BinaryIO) -> Iterator[str]:
        """The lines, as long as their row is no larger than rows may be."""
        while raw := file.readline(_MOST_ROW + 1 - self._bytes):
            self.number += 1
            self._bytes += len(raw)
            if self._bytes > _MOST_ROW:
                raise Invalid(f"{self.where}: the row has more than {_MOST_ROW} bytes", field=FIELD)
            try:
                line = raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise Invalid(f"{self.where} is no UTF-8 text", field=FIELD) from None
            self._separators += line.count(self.separator)
            if self._separators > _MOST_SEPARATORS:
                why = f"the row has more than {_MOST_SEPARATORS} separators"
                raise Invalid(f"{self.where}: {why}", field=FIELD)
            yield line


def _records(archive: Archive, layout: _Layout, report: Report) -> Iterator[Record]:
    kept, width = layout.kept, len(layout.columns)
    rows = _rows(archive, layout.member, layout.separator)
    next(rows, None)
    for number, row in enumerate(rows, start=2):
        where = f"{shown(layout.member)}: row {number}"
        if not row:
            continue  # an empty line
        if len(row) != width:
            report.skip("other_number_of_cells", where)
            continue
        split = "" if layout.split_at is None else row[layout.split_at].strip()
        yield Record(
            splits=(split,) if split else (),
            text=_line([row[at] for at in kept], layout.separator),
            extension="csv",
            marks=_marks(layout, row, where),
            where=where,
        )


def _marks(layout: _Layout, row: Sequence[str], where: str) -> tuple[Mark, ...]:
    cell = "" if layout.label_at is None else row[layout.label_at]
    if layout.label_separator is None:
        names = [cell.strip()]
    else:
        names = [name.strip() for name in cell.split(layout.label_separator)]
    names = [name for name in dict.fromkeys(names) if name]
    if len(names) > _MOST_LABELS or any(len(name) > MAX_NAME for name in names):
        raise Invalid(
            f"{where}: an item has at most {_MOST_LABELS} labels, of at most {MAX_NAME} characters",
            field=FIELD,
        )
    return tuple(Mark(label=name, kind="class") for name in names)


def _line(cells: Sequence[str], separator: str) -> str:
    """Cells as one line, without its end."""
    out = io.StringIO()
    # The ends of lines it knows of are those that it quotes inside of cells.
    csv.writer(out, delimiter=separator, lineterminator="\r\n").writerow(cells)
    return out.getvalue().removesuffix("\r\n")


def _cells(text: str, separator: str) -> list[str]:
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    return rows[0] if len(rows) == 1 else [text]


class _Writer:
    def __init__(
        self, out: ArchiveWriter, about: About, report: Report, state: dict[str, Any]
    ) -> None:
        self._out = out
        self._about = about
        self._ledger = ledger.Ledger(report, LOSSES)
        known = _columns(about) or _Columns()
        self._separator = known.csv_separator
        names = known.column_names.split(known.csv_separator) if known.column_names else [_TEXT]
        self._split = known.split_column or _other_than("split", names)
        self._label = known.label_column or _other_than("labels", names)
        self._label_separator = known.label_separator or " "
        self._names = names
        self._all = _in_order(known.columns, names, self._split, self._label)
        self._member = f"{about.version_id}.csv"
        if not state:
            state["begun"] = True
            self._ledger.version(about)
            self._ledger.lose("label_colours", count=len(about.labels))
            self._ledger.lose("default_splits", count=int(bool(about.default_split)))
            out.reserve(self._member)
            out.reserve(CONFIG)
            out.append(self._member, _line(self._all, self._separator) + "\n")

    def add(self, record: Record) -> None:
        """Write a row."""
        where = record.name or record.id
        self._ledger.item(record)
        self._ledger.lose("names", where, int(bool(record.name)))
        self._ledger.lose("files", where, int(bool(record.content_sha256)))
        self._ledger.lose("further_splits", where, max(0, len(record.splits) - 1))
        cells = self._row(record.text or "", where)
        cells[self._split] = record.splits[0] if record.splits else ""
        cells[self._label] = self._labels(record, where)
        row = [cells.get(name, "") for name in self._all]
        self._out.append(self._member, _line(row, self._separator) + "\n")

    def finish(self) -> None:
        """Say how the table is written."""
        said = {
            "multi_label": self._about.multi_label,
            "split_column": self._split,
            "label_column": self._label,
            "label_separator": self._label_separator,
            "filename": self._member,
            "csv_separator": self._separator,
        }
        self._out.add(CONFIG, json.dumps(said, indent=4))

    def _row(self, text: str, where: str) -> dict[str, str]:
        if self._names == [_TEXT]:
            return {_TEXT: text}
        cells = _cells(text, self._separator)
        self._ledger.lose("cells", where, max(0, len(cells) - len(self._names)))
        return dict(zip(self._names, cells, strict=False))

    def _labels(self, record: Record, where: str) -> str:
        names: list[str] = []
        for mark in record.marks:
            if mark.kind in _OTHER_KINDS:
                self._ledger.lose(_OTHER_KINDS[mark.kind], where)
            elif names and not self._about.multi_label:
                self._ledger.lose("further_labels", where)
            else:
                self._ledger.mark(mark, where)
                self._ledger.lose("places", where, int(bool(mark.coordinates)))
                names.append(mark.label)
        if self._about.multi_label:
            parted = sum(self._label_separator in name for name in names)
            self._ledger.lose("label_separators", where, parted)
        return self._label_separator.join(names)


def _other_than(wanted: str, names: Sequence[str]) -> str:
    while wanted in names:
        wanted += "_"
    return wanted


def _in_order(columns: Sequence[str] | None, names: Sequence[str], *others: str) -> list[str]:
    """All columns, as they stood where they came from if that is known."""
    wanted = [*names, *others]
    if columns is not None and sorted(columns) == sorted(wanted):
        return list(columns)
    kept = [name for name in columns or () if name in wanted]
    return [*kept, *(name for name in wanted if name not in kept)]
