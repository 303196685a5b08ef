"""Writes pictures with boxes and polygons as COCO instances, and reads such archives.

Written: ``annotations/instances_<split>.json`` for each split and the pictures in ``images/``. A
picture of two splits is there once, and both files speak of it.

Read: these, ``person_keypoints_<split>.json``, and any other JSON file with ``images`` and
``annotations``, whose split is the folder or the file name it has. Annotations may come in any
order: they wait on the disk for their picture.
"""

import json
from collections.abc import Iterator
from typing import Any

from ppworker.formats import colours, ledger, places
from ppworker.formats.archive import Archive
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import About, Header, Mark, OpenFile, Record, Report, SplitNote, Writer
from ppworker.formats.coco_files import CocoFiles, json_files, looks_like_coco
from ppworker.formats.reading import MOST_LOOKS

LOSSES = {
    **ledger.NO_PICTURES, **ledger.ITEM_TEXTS, **ledger.DESCRIPTIONS, **ledger.METADATA,
    **ledger.STATES, **ledger.FILE_NAMES, **ledger.REVIEWS, **ledger.ORIGINS, **ledger.MARK_TEXTS,
    **ledger.CLASSES, **ledger.SPANS, **ledger.SEGMENTS, **ledger.PAGES,
    **ledger.PLACES, **ledger.LABEL_NOTES, **ledger.LABEL_NAMES, **ledger.SPLIT_NAMES,
    **ledger.SPLIT_NOTES, **ledger.SETTINGS, **ledger.MULTI_LABEL,
}  # fmt: skip
"""What a COCO archive cannot hold."""

_UNSPLIT = ""
"""Name of no split: of pictures that are in none."""
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Coco:
    """The format."""

    name = "coco"

    def recognises(self, archive: Archive, about: About) -> bool:  # noqa: ARG002
        """Whether a JSON file beside pictures begins as COCO does."""
        has_pictures = any(places.is_picture_name(name) for name in archive)
        members = json_files(archive)[:MOST_LOOKS]
        return has_pictures and any(looks_like_coco(archive, member) for member in members)

    def read(
        self,
        archive: Archive,
        about: About,  # noqa: ARG002
        report: Report,
    ) -> tuple[Header, Iterator[Record]]:
        """Every picture that a file of annotations names and the archive has."""
        files = CocoFiles(archive, report)
        files.survey()
        header = Header(
            labels=colours.notes(files.label_names(), colours.read(archive)),
            splits=[SplitNote(name=name) for name in files.split_names()],
        )
        return header, files.records()

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


class _SplitFile:
    """One file of annotations: pictures are written as they come, annotations behind all of them.

    Args:
        out: where it goes.
        state: its member's name, and how many pictures and annotations it has.
    """

    def __init__(self, out: ArchiveWriter, state: list[Any]) -> None:
        self._out = out
        self._state = state

    def begin(self, about: About) -> None:
        info = _to_json({"description": about.name, "version": about.version_id})
        categories = _to_json(
            [
                {"id": number, "name": label.name, "supercategory": ""}
                for number, label in enumerate(about.labels, start=1)
            ]
        )
        head = f'{{"info":{info},"licenses":[],\n"categories":{categories},\n"images":['
        self._out.append(self._state[0], head)
        self._out.append(self._state[0], '],\n"annotations":[', is_behind=True)

    def add(self, image: dict[str, Any], marks: list[dict[str, Any]]) -> None:
        member, images, written = self._state
        self._out.append(member, _line(image, is_first=images == 0))
        for number, mark in enumerate(marks, start=written):
            self._out.append(member, _line(mark, is_first=number == 0), is_behind=True)
        self._state[1:] = [images + 1, written + len(marks)]

    def finish(self) -> None:
        self._out.append(self._state[0], "]}\n", is_behind=True)


def _line(value: dict[str, Any], *, is_first: bool) -> str:
    return ("\n" if is_first else ",\n") + _to_json(value)


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
        self._about = about
        self._open_file = open_file
        self._state = state
        """Numbers of pictures and annotations: the same in every file that has them."""
        self._ledger = ledger.Ledger(report, LOSSES)
        self._categories = {label.name: at for at, label in enumerate(about.labels, start=1)}
        if not state:
            state |= {"files": {}, "images": 0, "marks": 0}
            self._ledger.version(about)
            colours.write(out, about)
            for split in about.splits:
                self._begin(split.name)

    def _begin(self, split: str) -> None:
        wanted = f"instances_{split}.json" if split else "instances.json"
        member = self._out.reserve("annotations", wanted)
        if member != f"annotations/{wanted}":
            self._ledger.lose("split_names", split)
        self._state["files"][split] = [member, 0, 0]
        _SplitFile(self._out, self._state["files"][split]).begin(self._about)

    def add(self, record: Record) -> None:
        where = record.name or record.id
        if not places.is_picture(record):
            self._ledger.lose("no_pictures", where)
            return
        self._ledger.item(record)
        member = self._out.reserve("images", places.file_name(record))
        file_name = member.removeprefix("images/")
        if record.name and file_name != record.file_name:
            self._ledger.lose("file_names", record.name)
        with self._open_file(record) as file:
            self._out.add(member, file)
        self._state["images"] += 1
        image: dict[str, Any] = {"id": self._state["images"], "file_name": file_name}
        if record.width and record.height:
            image |= {"width": record.width, "height": record.height}
        made = [mark for each in record.marks if (mark := self._mark(each, record, where))]
        first = self._state["marks"] + 1
        marks = [
            {"id": number, "image_id": image["id"]} | mark
            for number, mark in enumerate(made, start=first)
        ]
        self._state["marks"] += len(marks)
        for split_file in self._files_of(record):
            split_file.add(image, marks)

    def _files_of(self, record: Record) -> list[_SplitFile]:
        splits = [split for split in record.splits if split in self._state["files"]] or [_UNSPLIT]
        if splits == [_UNSPLIT] and _UNSPLIT not in self._state["files"]:
            self._begin(_UNSPLIT)
        return [_SplitFile(self._out, self._state["files"][split]) for split in splits]

    def _mark(self, mark: Mark, record: Record, where: str) -> dict[str, Any]:
        """An annotation, or nothing, which is counted."""
        fault = ledger.no_place_on_picture(mark)
        shape = None if fault else _shape(mark, record)
        if shape is None:
            self._ledger.lose(fault or "places", where)
            return {}
        self._ledger.mark(mark, where)
        made = {"category_id": self._categories[mark.label], **shape, "iscrowd": 0}
        return made if mark.score is None else made | {"score": mark.score}

    def finish(self) -> None:
        for state in self._state["files"].values():
            _SplitFile(self._out, state).finish()


def _shape(mark: Mark, record: Record) -> dict[str, Any] | None:
    """A place in the words of the format; None where it is not known in pixels."""
    if mark.kind == "bbox":
        box = places.box_in_pixels(mark, record)
        return None if box is None else _boxed(box) | {"segmentation": []}
    if mark.kind == "polygon":
        points = places.points_of(mark)
        if points is None:
            return None
        rings = [[side for point in points for side in point]]
        return _boxed(places.around(points)) | {"area": places.area(points), "segmentation": rings}
    known = places.keypoints_of(mark)
    if known is None:
        return None
    seen = [point for point in known if point[2] > 0]
    x, y, w, h = places.corner_of_seen(known)
    return {
        "bbox": [x, y, w, h],
        "area": w * h,
        "segmentation": [],
        "keypoints": [side for point in known for side in point],
        "num_keypoints": len(seen),
    }


def _boxed(box: places.Box) -> dict[str, Any]:
    x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
    return {"bbox": [x, y, w, h], "area": w * h}
