"""Reads files of COCO annotations: each once from its beginning to its end, whatever their order.

Annotations wait on the disk until all pictures are known; memory holds a few words per picture.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ppworker.domain import geometry as geo
from ppworker.formats import colours, json_stream, places, reading
from ppworker.formats.archive import Archive
from ppworker.formats.base import Mark, Record, Report
from ppworker.formats.chains import Chains
from ppworker.formats.reading import MOST_LABELS, MOST_MARKS, Files, label_name, refuse, shown, word

_TASKS = re.compile(r"(instances|person_keypoints|captions|stuff|panoptic|labels|image_info)_(.+)")
_READ_TASKS = {"instances", "person_keypoints"}
_UNSPLIT = {"_annotations.coco", "annotations", "annotation", "instances", "coco", "result"}
_MOST_IMAGES = 300_000
_MOST_ID = 200
_BEGINNING = 4096
_HOW = "see the COCO data format"

ImageKey = tuple[int, int | str]
"""Number of the file, and the picture's id in it."""


def json_files(archive: Archive) -> list[str]:
    """Members that may hold annotations."""
    return [name for name in archive if name.lower().endswith(".json") and name != colours.MEMBER]


def looks_like_coco(archive: Archive, member: str) -> bool:
    """Whether a JSON file begins with keys of COCO."""
    with archive.open(member) as file:
        beginning = file.read(_BEGINNING)
    keys = (b'"images"', b'"annotations"', b'"categories"', b'"licenses"')
    is_object = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    return is_object and any(key in beginning for key in keys)


def task_and_split(member: str) -> tuple[str, str]:
    """What a file of annotations is about, by its name, and where that says nothing its folder."""
    folders, _, last = member.rpartition("/")
    stem = last.rpartition(".")[0]
    if match := _TASKS.fullmatch(stem):
        return match.group(1), word(match.group(2))
    if stem.lower() not in _UNSPLIT:
        return "instances", word(stem)
    folder = folders.rpartition("/")[2]
    return "instances", "" if folder.lower() in {"annotations", "labels"} else word(folder)


class CocoFiles:
    """All files of annotations of one archive."""

    def __init__(self, archive: Archive, report: Report) -> None:
        self._archive = archive
        self._report = report
        self._files = Files(archive)
        self._notes: Chains[ImageKey] = Chains()
        self._members: list[str] = []
        """Files of annotations, by their number."""
        self._splits: list[str] = []
        self._labels: list[dict[int | str, str]] = []
        self._images: dict[ImageKey, str] = {}
        """Member of each picture, empty where the archive has none."""
        self._keys: dict[str, list[ImageKey]] = {}
        """What the files call each member that is a picture."""

    def label_names(self) -> list[str]:
        """Of all files, in the order they are met."""
        return [name for labels in self._labels for name in labels.values()]

    def split_names(self) -> list[str]:
        """Of all files, each once."""
        return [name for name in dict.fromkeys(self._splits) if name]

    def survey(self) -> None:
        """Read all files.

        Raises:
            Invalid: there is none, or one is broken.
        """
        for member in json_files(self._archive):
            task, split = task_and_split(member)
            if task not in _READ_TASKS:
                self._report.skip("other_task", member)
            elif self._read(member, split):
                self._members.append(member)
                self._splits.append(split)
        if not self._members:
            refuse(
                "the archive",
                "has no file of annotations; add annotations/instances_train.json with 'images', "
                "'annotations' and 'categories'",
            )
        if len(self.split_names()) > reading.MOST_SPLITS:
            refuse("the archive", f"has more than {reading.MOST_SPLITS} splits; leave some out")

    def _read(self, member: str, split: str) -> bool:
        """Whether the file is one of annotations."""
        number = len(self._members)
        labels: dict[int | str, str] = {}
        keys: set[str] = set()
        with self._archive.open(member) as file:
            for key, index, value in json_stream.elements(file, member):
                keys.add(key)
                if key not in {"categories", "annotations", "images"}:
                    continue
                where = f"{member}: {key}[{index}]" if index >= 0 else f"{member}: {key}"
                if index < 0:
                    refuse(where, f"is no list; {_HOW}")
                if not isinstance(value, dict):
                    refuse(where, f"is no object; {_HOW}")
                if key == "categories":
                    self._add_category(value, labels, where)
                elif key == "images":
                    self._add_image(value, number, (member, split), where)
                else:
                    self._add_annotation(value, number, index, where)
        # An empty list leaves no element, so the file is judged by what it is called too.
        if not keys & {"categories", "annotations", "images"} and not _TASKS.search(
            member.rpartition("/")[2]
        ):
            self._report.skip("unused_file", member)
            return False
        self._labels.append(labels)
        return True

    def _add_category(
        self, value: dict[str, Any], labels: dict[int | str, str], where: str
    ) -> None:
        id_ = _id(value.get("id"), f"{where}.id")
        if id_ in labels:
            refuse(f"{where}.id", f"{shown(id_)} is the id of two categories; give each its own")
        if len(labels) >= MOST_LABELS:
            refuse(where, f"there are more than {MOST_LABELS} categories; leave some out")
        labels[id_] = label_name(value.get("name"), f"{where}.name")

    def _add_image(
        self, value: dict[str, Any], number: int, said_by: tuple[str, str], where: str
    ) -> None:
        key = (number, _id(value.get("id"), f"{where}.id"))
        name = value.get("file_name")
        if not isinstance(name, str) or not name:
            refuse(f"{where}.file_name", f"{shown(name)} is no name of a file; {_HOW}")
        if key in self._images:
            refuse(f"{where}.id", f"{shown(key[1])} is the id of two images; give each its own")
        if len(self._images) >= _MOST_IMAGES:
            refuse(where, f"the archive has more than {_MOST_IMAGES} images; split it")
        found = self._file(name, *said_by)
        if not found:
            self._report.skip("missing_file", where)
        else:
            self._keys.setdefault(found, []).append(key)
        self._images[key] = found

    def _file(self, name: str, member: str, split: str) -> str:
        """The picture that is meant: that of the split's own folder before another."""
        for path in (f"images/{split}/{name}", f"{split}/{name}"):
            if split and (found := self._files.find_exact(path, member)):
                return found
        return self._files.find_unique(f"images/{name}", member) or self._files.find_address(
            name, member
        )

    def _add_annotation(self, value: dict[str, Any], number: int, index: int, where: str) -> None:
        image = _id(value.get("image_id"), f"{where}.image_id")
        category = value.get("category_id")
        if value.get("iscrowd"):
            self._report.skip("annotation_crowd", where)
            return
        if category is None:
            self._report.skip("annotation_bad_label", where)
            return
        score, is_score = reading.score_of(value.get("score"))
        if not is_score:
            self._report.skip("bad_score", where)
        shapes = self._shapes(value, where)
        if shapes:
            note = [index, _id(category, f"{where}.category_id"), score, shapes]
            self._notes.add((number, image), note)
            if len(self._notes) > _MOST_IMAGES:
                refuse(where, f"the archive has more than {_MOST_IMAGES} images; split it")

    def _shapes(self, value: dict[str, Any], where: str) -> list[list[Any]]:
        """Geometries as [box] or [points...]; empty where there is none, which is counted."""
        segmentation, box = value.get("segmentation"), value.get("bbox")
        seen = self._keypoints(value.get("keypoints"), where)
        found: list[list[Any]] = [["keypoints", seen]] if seen else []
        polygons = []
        if isinstance(segmentation, list) and segmentation:
            parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
            polygons = [points for part in parts if (points := places.pairs(part))]
            if len(polygons) < len(parts):
                self._report.skip("annotation_bad_geometry", where, len(parts) - len(polygons))
            if len(polygons) > 1:
                self._report.skip("parted", where)
        elif segmentation:
            self._report.skip("mask", where)
        if polygons:
            return found + [["polygon", points] for points in polygons]
        corner = places.from_corner(box) if isinstance(box, list) else None
        # A box that only goes round the keypoints says nothing of its own.
        if seen and (corner is None or box == places.corner_of_seen(seen)):
            return found
        if corner is None:
            is_flat = isinstance(box, list) and places.is_flat(box)
            self._report.skip(
                "annotation_zero_area" if is_flat else "annotation_bad_geometry", where
            )
            return []
        return [*found, ["bbox", corner]]

    def _keypoints(self, given: Any, where: str) -> places.Points:
        """Points ``[x, y, visibility]``; none where there are none, or none is labelled."""
        if not isinstance(given, list) or not any(given):
            return []
        numbers = [number for value in given if (number := geo.number(value)) is not None]
        if len(numbers) != len(given) or len(numbers) % 3:
            self._report.skip("annotation_bad_geometry", where)
            return []
        return [numbers[at : at + 3] for at in range(0, len(numbers), 3)]

    def records(self) -> Iterator[Record]:
        """Every picture that is there, once, however many files name it."""
        for picture, keys in self._keys.items():
            marks = self._marks(picture, keys)
            splits = dict.fromkeys(self._splits[number] for number, _ in keys)
            yield Record(
                name=picture.rpartition("/")[2],
                extension=picture.rpartition(".")[2].lower(),
                splits=tuple(split for split in splits if split),
                member=picture,
                marks=tuple(marks),
                where=picture,
            )
        for key, count in self._notes.counts():
            self._report.skip(
                "annotation_of_missing_file"
                if key in self._images
                else "annotation_of_unknown_image",
                f"{self._members[key[0]]}: annotations of image {shown(key[1])}",
                count,
            )
        self._notes.close()

    def _marks(self, picture: str, keys: list[ImageKey]) -> list[Mark]:
        """What all files say of a picture; what one says again is the same annotation."""
        marks: list[Mark] = []
        said: Counter[str] = Counter()
        for number in dict.fromkeys(number for number, _ in keys):
            again: Counter[str] = Counter()
            for mark in self._marks_in(number, keys):
                again[form := repr(mark)] += 1
                if again[form] > said[form]:
                    said[form] += 1
                    marks.append(mark)
        if len(marks) > MOST_MARKS:
            refuse(picture, f"has more than {MOST_MARKS} annotations; leave out the others")
        return marks

    def _marks_in(self, number: int, keys: list[ImageKey]) -> Iterator[Mark]:
        for key in keys:
            if key[0] != number:
                continue
            for index, category, score, shapes in self._notes.take(key):
                label = self._labels[number].get(category)
                if label is None:
                    where = f"{self._members[number]}: annotations[{index}].category_id"
                    refuse(where, f"{shown(category)} is the id of no category; add it there")
                for kind, shape in shapes:
                    geometry = {"box" if kind == "bbox" else "points": shape}
                    yield Mark(label=label, kind=kind, geometry=geometry, score=score)


def _id(value: Any, where: str) -> int | str:
    """An id: a whole number as the format asks for, or a string as some write it."""
    if isinstance(value, str) and 0 < len(value) <= _MOST_ID:
        return value
    number = geo.whole_number(value)
    if number is None:
        refuse(where, f"{shown(value)} is no id; write a whole number")
    return number
