"""Writes texts and their spans as lists of JSON, as named entity recognition is trained with.

Written: ``<split>.json`` for each split, a list of ``{"id", "name", "text", "annotations":
[{"start", "end", "label"}]}``, its offsets in code points, and ``config.json`` with colours.

Read: the same; pairs ``[text, {"entities": [[start, end, label]]}]`` as spaCy's own examples are;
and objects whose spans stand under ``entities``, ``spans``, ``labels`` or ``label``. An item of two
splits stands in both files and is known by its id and its content.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ppworker.domain import geometry as geo
from ppworker.formats import colours, json_stream, ledger
from ppworker.formats.archive import Archive
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import About, Header, Mark, OpenFile, Record, Report, SplitNote, Writer
from ppworker.formats.offsets import Text
from ppworker.formats.reading import (
    MOST_MARKS,
    MOST_SPLITS,
    label_name,
    refuse,
    shown,
    word,
)

LOSSES = {
    **ledger.NO_TEXTS, **ledger.TEXT_FILES, **ledger.DESCRIPTIONS, **ledger.METADATA,
    **ledger.STATES, **ledger.SCORES, **ledger.REVIEWS, **ledger.ORIGINS, **ledger.CLASSES,
    **ledger.SHAPES, **ledger.SEGMENTS, **ledger.PLACES, **ledger.LABEL_NOTES,
    **ledger.LABEL_NAMES, **ledger.SPLIT_NAMES, **ledger.SPLIT_NOTES, **ledger.SETTINGS,
    **ledger.MULTI_LABEL,
    "overlaps": "span that overlaps another: it is written, but spaCy's entities cannot hold both",
}  # fmt: skip
"""What an archive of this format cannot hold."""

_UNSPLIT = "items"
"""Name of the file of items that are in no split."""
_SPANS = ("annotations", "entities", "spans", "labels", "label")
_LISTS = {"", "annotations", "data", "examples"}
_MOST_ITEMS = 1_000_000
_PAIR, _TRIPLE = 2, 3
_HOW = 'write {"text": "...", "annotations": [{"start": 0, "end": 3, "label": "..."}]}'
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class SpacyNer:
    """The format."""

    name = "spacy-ner"

    def recognises(self, archive: Archive, about: About) -> bool:
        """Whether it is a few lists of JSON and nothing else, for a dataset of texts."""
        is_of_texts = about.content_type in {"ner", "text"}
        return is_of_texts and len(archive) > 0 and all(n.endswith(".json") for n in archive)

    def read(
        self,
        archive: Archive,
        about: About,  # noqa: ARG002
        report: Report,
    ) -> tuple[Header, Iterator[Record]]:
        """Every text with its spans."""
        reader = _Reader(archive, report)
        labels = reader.survey()
        header = Header(
            labels=colours.notes(labels, colours.read(archive)),
            splits=[SplitNote(name=name) for name in reader.splits.values() if name],
        )
        return header, reader.records()

    def writer(
        self,
        out: ArchiveWriter,
        about: About,
        open_file: OpenFile,  # noqa: ARG002  # texts stand in the records
        report: Report,
        state: dict[str, Any],
    ) -> Writer:
        """Begin an archive, or go on with it."""
        return _Writer(out, about, report, state)


class _Reader:
    def __init__(self, archive: Archive, report: Report) -> None:
        self._archive = archive
        self._report = report
        self._files_with: dict[int, tuple[str, ...]] = {}
        """Files in which an item with an id stands, by what it says."""
        self.splits: dict[str, str] = {}
        """Split of each file; empty for none."""

    def survey(self) -> list[str]:
        """Look which files there are and what stands in several; returns the labels they list."""
        for member in self._archive:
            if member == colours.MEMBER:
                continue
            if not member.lower().endswith(".json"):
                self._report.skip("unused_file", member)
                continue
            stem = word(member.rpartition("/")[2].rpartition(".")[0])
            self.splits[member] = "" if stem == _UNSPLIT else stem
        if not self.splits:
            refuse("the archive", "has no JSON file; add train.json with a list of texts: " + _HOW)
        if len(self.splits) > MOST_SPLITS:
            refuse("the archive", f"has more than {MOST_SPLITS} files; put texts together")
        labels: dict[str, None] = {}
        for member in self.splits:
            for key, value, where in self._elements(member):
                if key in _LISTS:
                    self._note(value, member, where)
                elif isinstance(value, str):
                    labels[label_name(value, where)] = None
        return list(labels)

    def _elements(self, member: str) -> Iterator[tuple[str, Any, str]]:
        """What stands in the lists of a file, with the place."""
        with self._archive.open(member) as file:
            for key, index, value in json_stream.elements(file, member):
                where = f"{member}: {key}[{index}]"
                if index >= 0 and (key in _LISTS or key in {"classes", "labels"}):
                    yield key, value, where

    def _note(self, value: Any, member: str, where: str) -> None:
        # Without an id, equal texts are two items with equal texts.
        if len(self.splits) == 1 or not isinstance(value, dict) or not value.get("id"):
            return
        number = _number(value)
        known = self._files_with.get(number, ())
        if member not in known:
            self._files_with[number] = (*known, member)
        if len(self._files_with) > _MOST_ITEMS:
            refuse(where, f"the archive has more than {_MOST_ITEMS} texts; split it")

    def records(self) -> Iterator[Record]:
        """Every item, once, however many files have it."""
        for member in self.splits:
            for key, value, where in self._elements(member):
                if key not in _LISTS:
                    continue
                if value is None:
                    self._report.skip("empty", where)
                    continue
                files: tuple[str, ...] = (member,)
                if self._files_with and isinstance(value, dict) and value.get("id"):
                    files = self._files_with.get(_number(value), files)
                if member == files[0] and (record := self._record(value, files, where)):
                    yield record

    def _record(self, value: Any, files: tuple[str, ...], where: str) -> Record | None:
        text, spans, name = _parts(value, where)
        if not text.strip():
            self._report.skip("empty", where)
            return None
        if len(spans) > MOST_MARKS:
            refuse(where, f"has more than {MOST_MARKS} spans; leave out the others")
        given = Text(text)
        marks = [_mark(span, given, f"{where}: span {i}") for i, span in enumerate(spans)]
        if None in marks:
            self._report.skip("annotation_bad_label", where, marks.count(None))
        splits = dict.fromkeys(split for file in files if (split := self.splits[file]))
        return Record(
            name=name,
            extension="txt",
            splits=tuple(splits),
            text=given.clean,
            marks=tuple(mark for mark in marks if mark is not None),
            where=where,
        )


def _parts(value: Any, where: str) -> tuple[str, list[Any], str]:
    """Text, spans and name of an element."""
    name = ""
    if isinstance(value, list):
        if len(value) != _PAIR or not isinstance(value[1], dict):
            refuse(where, f'is no pair of a text and {{"entities": [...]}}; {_HOW}')
        text, spans = value[0], value[1].get("entities")
    elif isinstance(value, dict):
        text, name = value.get("text"), word(value.get("name"))
        spans = next((value[key] for key in _SPANS if value.get(key)), None)
    else:
        refuse(where, f"{shown(value)} is no text with spans; {_HOW}")
    if not isinstance(text, str):
        refuse(where, f"its text is {shown(text)}, no string; {_HOW}")
    if spans is not None and not isinstance(spans, list):
        refuse(where, f"its spans are {shown(spans)}, no list; {_HOW}")
    return text, spans or [], name


def _mark(span: Any, text: Text, where: str) -> Mark | None:
    """An annotation; None for a span without label."""
    if isinstance(span, dict):
        start, end, label = span.get("start"), span.get("end"), span.get("label")
    elif isinstance(span, list) and len(span) >= _TRIPLE:
        start, end, label = span[:3]
    else:
        refuse(where, f"{shown(span)} is no span; write start, end and label")
    if label is None:
        return None
    first, behind = geo.whole_number(start), geo.whole_number(end)
    if first is None or behind is None:
        refuse(where, f"{shown(start)} to {shown(end)} is no span; write whole numbers")
    first, behind = text.span(first, behind)
    place = {"start": first, "end": behind}
    return Mark(label=label_name(label, where), kind="span", geometry=place)


def _number(value: dict[str, Any]) -> int:
    """What an element says, as a number."""
    said = json.dumps(value, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "little")


class _Writer:
    def __init__(
        self, out: ArchiveWriter, about: About, report: Report, state: dict[str, Any]
    ) -> None:
        self._out = out
        self._ledger = ledger.Ledger(report, LOSSES)
        is_new = "files" not in state
        self._files: dict[str, list[Any]] = state.setdefault("files", {})
        """By split: the member, and how many items it has."""
        if is_new:
            self._ledger.version(about)
            colours.write(out, about)
            for split in about.splits:
                self._begin(split.name)

    def _begin(self, split: str) -> None:
        wanted = f"{split or _UNSPLIT}.json"
        member = self._out.reserve(wanted)
        if member != wanted or split == _UNSPLIT:
            self._ledger.lose("split_names", split)
        self._out.append(member, "[")
        self._out.append(member, "\n]\n", is_behind=True)
        self._files[split] = [member, 0]

    def add(self, record: Record) -> None:
        where = record.name or record.id
        if not record.text or not record.text.strip():
            self._ledger.lose("no_texts", where)
            return
        self._ledger.item(record)
        if record.content_sha256:
            self._ledger.lose("text_files", where)
        spans = [span for mark in record.marks if (span := self._span(mark, where))]
        self._ledger.count("overlaps", _overlaps(spans), where)
        line = _to_json(
            {"id": record.id, "name": record.name, "text": record.text, "annotations": spans}
        )
        splits = [split for split in record.splits if split in self._files] or [""]
        for split in splits:
            if split not in self._files:
                self._begin(split)
            state = self._files[split]
            self._out.append(state[0], (",\n" if state[1] else "\n") + line)
            state[1] += 1

    def _span(self, mark: Mark, where: str) -> dict[str, Any]:
        """A span, or nothing, which is counted."""
        if mark.kind != "span":
            self._ledger.lose(ledger.no_place_in_text(mark), where)
            return {}
        place = mark.geometry or {}
        start, end = geo.whole_number(place.get("start")), geo.whole_number(place.get("end"))
        if start is None or end is None:
            self._ledger.lose("places", where)
            return {}
        self._ledger.mark(mark, where)
        return {"start": start, "end": end, "label": mark.label}

    def finish(self) -> None:
        """The lists end with the archive."""


def _overlaps(spans: list[dict[str, Any]]) -> int:
    """Spans that begin within another."""
    behind, found = -1, 0
    for span in sorted(spans, key=lambda span: (span["start"], -span["end"])):
        found += span["start"] < behind
        behind = max(behind, span["end"])
    return found
