"""Writes pictures and their boxes as YOLO lines, and reads the common layouts of such archives.

Written: ``<split>.txt`` lists the pictures of each split; beside each picture lies a text of the
same name with one line ``label x y w h`` for each box (shares of the picture, x, y the middle);
``<version id>.names`` has the labels in their order, ``config.json`` their colours. ``obj.data``
makes it an archive of Darknet too.

Read: the same; Darknet's; and ``data.yaml`` with ``images/<split>`` and ``labels/<split>`` or
``<split>/images`` and ``<split>/labels``, its lines of polygons and of corners among them.
"""

import re
from collections.abc import Iterator
from typing import Any

from ppworker.domain.geometry import TOLERANCE_SHARE
from ppworker.formats import colours, ledger, places, yolo_layout
from ppworker.formats.archive import Archive
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import About, Header, Mark, OpenFile, Record, Report, SplitNote, Writer
from ppworker.formats.reading import MOST_MARKS, refuse, shown
from ppworker.formats.yolo_layout import Layout

LOSSES = {
    **ledger.NO_PICTURES, **ledger.ITEM_TEXTS, **ledger.DESCRIPTIONS, **ledger.METADATA,
    **ledger.STATES, **ledger.FILE_NAMES, **ledger.SCORES, **ledger.REVIEWS, **ledger.ORIGINS,
    **ledger.MARK_TEXTS, **ledger.CLASSES, **ledger.KEYPOINTS, **ledger.SPANS, **ledger.SEGMENTS,
    **ledger.PAGES, **ledger.PLACES, **ledger.LABEL_NOTES, **ledger.LABEL_NAMES,
    **ledger.SPLIT_NAMES, **ledger.SPLIT_NOTES, **ledger.SETTINGS, **ledger.MULTI_LABEL,
    "polygons": "shape of a polygon, of which the box around it is written",
}  # fmt: skip
"""What a YOLO archive cannot hold."""

_MOST_LINE = 1 << 20
_WHOLE = re.compile(r"\d{1,6}(\.0{1,6})?")
_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?")
_WORD = re.compile(r"\w+")
_DARKNET_WORDS = {"classes", "names", "backup"}
_BOX, _SCORED_BOX = 5, 6
_LEAST_POLYGON = 7
_FROM_MIDDLE = 0.5 + TOLERANCE_SHARE


class Yolo:
    """The format."""

    name = "yolo"

    def recognises(self, archive: Archive, about: About) -> bool:  # noqa: ARG002
        """Whether names of labels lie beside pictures."""
        return yolo_layout.looks_like_yolo(archive)

    def read(
        self,
        archive: Archive,
        about: About,  # noqa: ARG002
        report: Report,
    ) -> tuple[Header, Iterator[Record]]:
        """Every picture with its lines."""
        layout = yolo_layout.find(archive, report)
        header = Header(
            labels=colours.notes(layout.names, colours.read(archive)),
            splits=[SplitNote(name=split) for split in layout.splits],
        )
        return header, _records(archive, layout, report)

    def writer(
        self,
        out: ArchiveWriter,
        about: About,
        open_file: OpenFile,
        report: Report,
        state: dict[str, Any],
    ) -> Writer:
        """Begin an archive, or go on with it."""
        return _Writer(out, about, open_file, report, state)


def _records(archive: Archive, layout: Layout, report: Report) -> Iterator[Record]:
    for picture in layout.pictures:
        lines_in = layout.lines_of(picture)
        yield Record(
            name=picture.rpartition("/")[2],
            extension=picture.rpartition(".")[2].lower(),
            splits=tuple(layout.splits_of(picture)),
            member=picture,
            marks=tuple(_marks(archive, lines_in, layout, report)) if lines_in else (),
            where=picture,
        )


def _marks(archive: Archive, member: str, layout: Layout, report: Report) -> Iterator[Mark]:
    count = 0
    for number, line in enumerate(archive.lines(member, _MOST_LINE), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{member}: line {number}"
        count += 1
        if count > MOST_MARKS:
            refuse(where, f"there are more than {MOST_MARKS} boxes; leave out the others")
        numbers = _numbers(words, where)
        if len(words) == _SCORED_BOX and not 0 <= numbers[-1] <= 1:
            report.skip("bad_score", where)  # the box is taken without it
        mark = _mark(_label(words[0], layout, where), numbers, layout, where)
        if isinstance(mark, Mark):
            yield mark
        else:
            report.skip(mark, where)


def _label(word: str, layout: Layout, where: str) -> str:
    if not _WHOLE.fullmatch(word):
        refuse(where, f"{shown(word)} is no index of a label; write 'label x y w h', all numbers")
    index = int(float(word))
    if index >= len(layout.names):
        refuse(
            where,
            f"there is no label {index}: {layout.names_member} has {len(layout.names)}, "
            "counted from 0; add its name there",
        )
    return layout.names[index]


def _numbers(words: list[str], where: str) -> list[float]:
    for word in words[1:]:
        if not _NUMBER.fullmatch(word):
            refuse(where, f"{shown(word)} is no number; write 'label x y w h', all numbers")
    return [float(word) for word in words[1:]]


def _mark(label: str, numbers: list[float], layout: Layout, where: str) -> Mark | str:
    """An annotation, or why there is none."""
    words = len(numbers) + 1
    if layout.has_keypoints and words > _SCORED_BOX:
        return _box(label, numbers[:4], None)
    if words == _BOX:
        return _box(label, numbers, None)
    if words == _SCORED_BOX:
        return _box(label, numbers[:4], numbers[4] if 0 <= numbers[4] <= 1 else None)
    if words < _LEAST_POLYGON or len(numbers) % 2:
        refuse(
            where,
            f"has {words} numbers; write 5 for a box ('label x y w h'), or a label and pairs of "
            "x y for a polygon",
        )
    points = places.pairs(numbers)
    return Mark(label=label, kind="polygon", geometry={"points": points}, is_relative=True)


def _box(label: str, numbers: list[float], score: float | None) -> Mark | str:
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        return "annotation_zero_area"
    if any(abs(number - 0.5) > _FROM_MIDDLE for number in numbers):
        return "annotation_outside"
    coordinates = " ".join(repr(number) for number in (x, y, w, h))
    return Mark(label=label, kind="bbox", coordinates=coordinates, score=score)


class _Writer:
    def __init__(
        self,
        out: ArchiveWriter,
        about: About,
        open_file: OpenFile,
        report: Report,
        state: dict[str, Any],
    ) -> None:
        self._out = out
        self._open_file = open_file
        self._ledger = ledger.Ledger(report, LOSSES)
        self._indexes = {label.name: index for index, label in enumerate(about.labels)}
        if "lists" not in state:
            self._ledger.version(about)
            state["lists"] = {split.name: self._list(split.name) for split in about.splits}
            self._write_head(about, state["lists"])
        self._lists: dict[str, str] = state["lists"]
        """Member with the list of each split."""

    def _list(self, split: str) -> str:
        name = self._out.reserve(f"{split}.txt")
        if name != f"{split}.txt":
            self._ledger.lose("split_names", split)
        self._out.append(name, "")  # a split without items is a split
        return name

    def _write_head(self, about: About, lists: dict[str, str]) -> None:
        names = self._out.reserve(f"{about.version_id}.names")
        for label in about.labels:
            self._out.append(names, " ".join(label.name.split()) + "\n")
        self._out.append(names, "")
        colours.write(self._out, about)
        data = [f"classes = {len(about.labels)}"]
        data += [
            f"{split} = {member}"
            for split, member in lists.items()
            if _WORD.fullmatch(split) and split not in _DARKNET_WORDS
        ]
        data += [f"names = {names}", "backup = backup/"]
        self._out.add(self._out.reserve("obj.data"), "\n".join(data) + "\n")

    def add(self, record: Record) -> None:
        where = record.name or record.id
        if not places.is_picture(record):
            self._ledger.lose("no_pictures", where)
            return
        self._ledger.item(record)
        picture, lines_in = self._names(record)
        lines = [line for mark in record.marks if (line := self._line(mark, record, where))]
        with self._open_file(record) as file:
            self._out.add(picture, file)
        self._out.add(lines_in, "".join(lines))
        for split in record.splits:
            if split in self._lists:
                self._out.append(self._lists[split], picture + "\n")

    def _names(self, record: Record) -> tuple[str, str]:
        """Of the picture, and of its lines: alike but for the extension, and nobody else's."""
        wanted = places.file_name(record)
        stem, _, ending = wanted.rpartition(".")
        lines_in = self._out.reserve(f"{stem}.txt")
        picture = self._out.reserve(f"{lines_in[:-4]}.{ending}")
        if picture != f"{lines_in[:-4]}.{ending}":  # too long for its longer extension
            lines_in = self._out.reserve(f"{record.id}.txt")
            picture = self._out.reserve(f"{lines_in[:-4]}.{ending}")
        if record.name and picture != record.file_name:
            self._ledger.lose("file_names", record.name)
        return picture, lines_in

    def _line(self, mark: Mark, record: Record, where: str) -> str:
        """The line of a mark, or nothing, which is counted."""
        box = self._box(mark, record, where)
        if box is None:
            return ""
        numbers = [places.share(number) for number in places.middle(box)]
        if "0" in numbers[2:]:
            self._ledger.lose("places", where)
            return ""
        self._ledger.mark(mark, where)
        return f"{self._indexes[mark.label]} {' '.join(numbers)}\n"

    def _box(self, mark: Mark, record: Record, where: str) -> places.Box | None:
        """In shares; None where there is no box to write, which is counted."""
        fault = ledger.no_place_on_picture(mark)
        if fault or mark.kind == "keypoints":
            self._ledger.lose(fault or "keypoints", where)
            return None
        if mark.kind == "polygon":
            points = places.points_of(mark)
            shares = places.in_shares(places.around(points), record) if points else None
            shares = shares or places.box_of_coordinates(mark.coordinates)
            self._ledger.lose("polygons" if shares else "places", where)
            return shares
        box = places.box_in_shares(mark, record)
        if box is None:
            self._ledger.lose("places", where)
        return box

    def finish(self) -> None:
        """Lists and names are written with the archive's end."""
