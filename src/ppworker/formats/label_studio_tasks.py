"""Reads tasks of Label Studio: what each is about, and what annotations and predictions say of it.

Spans count code points, as its own pages have written them since 2021. Where the quoted text tells
that they are counted in UTF-16 units, as before, they are converted.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ppworker.domain import geometry as geo
from ppworker.formats import colours, json_stream, places, reading
from ppworker.formats.archive import Archive
from ppworker.formats.base import Mark, Record, Report
from ppworker.formats.offsets import Text
from ppworker.formats.reading import MOST_MARKS, Files, label_name, refuse, shown, word

_BEGINNING = 64 << 10
_FILES = ("image", "audio", "video", "pdf", "file", "document", "ocr")
_SHAPES = {"x", "y", "points", "start", "end"}
_LABELS = ("labels", "rectanglelabels", "polygonlabels", "keypointlabels", "timelinelabels")
_MOST_PATH = 2_000
_PERCENT = 100
_VISIBLE = 2
_MOST_OFFSET = 1e9
_HOW = "export the project as JSON (not JSON-MIN) and send it with its files"


def json_files(archive: Archive) -> list[str]:
    """Members that may hold tasks."""
    return [n for n in archive if n.lower().endswith(".json") and n != colours.MEMBER]


def looks_like_tasks(archive: Archive, member: str) -> bool:
    """Whether a member begins as a list of tasks."""
    with archive.open(member) as file:
        beginning = file.read(_BEGINNING)
    is_list = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
    has_results = any(key in beginning for key in (b'"annotations"', b'"predictions"'))
    return is_list and b'"data"' in beginning and has_results


def records(archive: Archive, report: Report) -> Iterator[Record]:
    """Every task of every file.

    Raises:
        Invalid: a file is no list of tasks; names file and task.
    """
    files = Files(archive)
    members = json_files(archive)
    if not members:
        refuse("the archive", f"has no JSON file with tasks; {_HOW}")
    for member in members:
        split = word(member.rpartition("/")[2].rpartition(".")[0]) if len(members) > 1 else ""
        with archive.open(member) as file:
            for key, index, value in json_stream.elements(file, member):
                where = f"{member}: [{index}]"
                if key:
                    refuse(member, f"is no list of tasks; {_HOW}")
                if not isinstance(value, dict) or not isinstance(value.get("data"), dict):
                    refuse(where, f"is no task: it has no 'data'; {_HOW}")
                record = _Task(value, files, member, where, report).record(split)
                if record is not None:
                    yield record


@dataclass(slots=True)
class _Said:
    """What one annotation or prediction says, gathered by region."""

    review: str
    model_version: str = ""
    score: float | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """Text of each region."""


class _Task:
    def __init__(
        self, value: dict[str, Any], files: Files, member: str, where: str, report: Report
    ) -> None:
        self._value = value
        self._data: dict[str, Any] = value["data"]
        self._where = where
        self._report = report
        self._member = self._file(files, member)
        self._is_text_member = self._member.lower().endswith(".txt")
        self._text: Text | None = None if self._member else self._inline_text()
        self._read_text: str | None = None
        """What was read or said in all of the file."""

    def record(self, split: str) -> Record | None:
        """The item; None where the archive has nothing of it."""
        if not self._member and self._text is None:
            has_file = any(self._data.get(key) for key in _FILES)
            self._report.skip("missing_file" if has_file else "empty", self._where)
            return None
        marks = tuple(self._marks())
        if len(marks) > MOST_MARKS:
            refuse(self._where, f"has more than {MOST_MARKS} annotations; leave out the others")
        last = self._member.rpartition("/")[2]
        stem = last.removesuffix(".txt") if self._is_text_member else last
        extension = last.rpartition(".")[2].lower() if "." in last else ""
        return Record(
            name=self._string("name") or stem,
            extension=extension if self._member else "txt",
            splits=self._splits(split),
            text=self._read_text if self._text is None else self._text.clean,
            member=self._member,
            is_text_member=self._is_text_member,
            description=self._string("description"),
            metadata=self._string("metadata"),
            state=self._string("state"),
            marks=marks,
            where=self._where,
        )

    def _string(self, key: str) -> str:
        value = self._data.get(key)
        return value if isinstance(value, str) else ""

    def _splits(self, split: str) -> tuple[str, ...]:
        given = self._data.get("splits", self._data.get("split"))
        names = given if isinstance(given, list) else [given]
        found = dict.fromkeys(name for each in names if (name := word(each)))
        return tuple(found) or ((split,) if split else ())

    def _file(self, files: Files, member: str) -> str:
        """The member that the task is about."""
        keys = [*_FILES, "text"]
        # A task of a text may have a file's name among what else is known of it.
        if not self._string("text"):
            keys += self._data
        for key in keys:
            value = self._data.get(key)
            # Any text may be the name of a file, but only a short one with an ending is one.
            if isinstance(value, str) and len(value) <= _MOST_PATH and "." in value:
                found = files.find_address(value, member)
                if found and not found.endswith(".json"):
                    return found
        return ""

    def _inline_text(self) -> Text | None:
        if any(isinstance(self._data.get(key), str) for key in _FILES):
            return None
        texts = [self._data.get("text"), *self._data.values()]
        found = next((text for text in texts if isinstance(text, str) and text.strip()), None)
        return None if found is None else Text(found)

    def _marks(self) -> Iterator[Mark]:
        seen: set[str] = set()
        for mark in [*self._annotated(), *self._predicted()]:
            form = repr((mark.label, mark.kind, mark.geometry))
            # What a person accepted is no suggestion any more; two persons may agree.
            if form in seen:
                self._report.skip("annotation_duplicate", self._where)
            else:
                seen.add(form)
                yield mark

    def _annotated(self) -> list[Mark]:
        found: list[Mark] = []
        key = "annotations" if "annotations" in self._value else "completions"
        for where, annotation in self._objects(self._value.get(key), f"{self._where}.{key}"):
            if annotation.get("was_cancelled"):
                self._report.skip("cancelled", where)
                continue
            found += self._results(annotation, _Said(review="accepted"), where)
        return found

    def _predicted(self) -> list[Mark]:
        found: list[Mark] = []
        predictions = self._value.get("predictions")
        for where, prediction in self._objects(predictions, f"{self._where}.predictions"):
            score, is_score = reading.score_of(prediction.get("score"))
            if not is_score:
                self._report.skip("bad_score", where)
            version = word(prediction.get("model_version"))
            said = _Said(review="suggested", model_version=version, score=score)
            found += self._results(prediction, said, where)
        return found

    def _objects(self, values: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if values is None:
            return
        if not isinstance(values, list):
            refuse(where, f"{shown(values)} is no list; {_HOW}")
        for index, value in enumerate(values):
            if isinstance(value, dict):
                yield f"{where}[{index}]", value
            elif not isinstance(value, int):  # some exports have only the ids of predictions
                refuse(f"{where}[{index}]", f"{shown(value)} is no object; {_HOW}")

    def _results(self, holder: dict[str, Any], said: _Said, where: str) -> list[Mark]:
        results = list(self._objects(holder.get("result"), f"{where}.result"))
        kinds: dict[str, set[str]] = defaultdict(set)
        for _, result in results:
            kinds[word(result.get("id"))].add(word(result.get("type")))
        for place, result in results:
            if result.get("type") == "textarea":
                self._take_text(
                    result, said, place, is_region=len(kinds[word(result.get("id"))]) > 1
                )
        marks: list[Mark] = []
        for place, result in results:
            # The shape of a region that has its labels in a result of their own is said twice.
            is_bare = result.get("type") in {"rectangle", "polygon", "keypoint"}
            if is_bare and kinds[word(result.get("id"))] & set(_LABELS):
                continue
            if result.get("type") != "textarea":
                marks += self._regions(result, said, place)
        return marks

    def _take_text(
        self, result: Mapping[str, Any], said: _Said, where: str, *, is_region: bool
    ) -> None:
        value = result.get("value")
        given = value.get("text") if isinstance(value, dict) else None
        lines = given if isinstance(given, list) else [given]
        text = "\n".join(line for line in lines if isinstance(line, str))
        if is_region:
            said.texts[word(result.get("id"))] = text
        elif self._text is None and not self._is_text_member and self._read_text is None:
            self._read_text = text
        else:
            self._report.skip("attribute", where)

    def _regions(self, result: Mapping[str, Any], said: _Said, where: str) -> Iterator[Mark]:
        """One annotation for each label of a result."""
        type_, value = word(result.get("type")), result.get("value")
        if type_ not in {*_LABELS, "choices"}:
            self._report.skip("annotation_unsupported", f"{where}: {shown(type_)}")
            return
        if not isinstance(value, dict):
            refuse(f"{where}.value", f"{shown(value)} is no object; {_HOW}")
        labels = value.get(type_)
        labels = [labels] if isinstance(labels, str) else labels
        if not isinstance(labels, list) or not labels:
            self._report.skip("annotation_bad_label", where)
            return
        place = self._place(type_, value, result)
        if isinstance(place, str):
            self._report.skip(place, where)
            return
        score, is_score = reading.score_of(result.get("score"))
        if not is_score:
            self._report.skip("bad_score", where)
        for label in labels:
            yield replace(
                place,
                label=label_name(label, f"{where}.value.{type_}"),
                text=said.texts.get(word(result.get("id"))) or None,
                score=said.score if score is None else score,
                review=said.review,
                model_version=said.model_version,
            )

    def _place(self, type_: str, value: dict[str, Any], result: Mapping[str, Any]) -> Mark | str:
        """A mark of the place without label, or why there is none."""
        if type_ == "choices":
            return (
                "annotation_unsupported" if _SHAPES & value.keys() else Mark(label="", kind="class")
            )
        if "start" in value or "end" in value:
            return self._stretch(value)
        if not self._member or self._is_text_member:
            return "annotation_bad_geometry"
        if type_ == "keypointlabels":
            return _keypoint(value)
        return _polygon(value["points"]) if "points" in value else _rectangle(value, result)

    def _stretch(self, value: dict[str, Any]) -> Mark | str:
        """A span of the text, or a segment of the recording."""
        start, end = geo.number(value.get("start")), geo.number(value.get("end"))
        is_text = self._text is not None or self._is_text_member
        if start is None or end is None or (places.is_picture_name(self._member) and not is_text):
            return "annotation_bad_geometry"
        if not is_text:
            return Mark(label="", kind="segment", geometry={"start": start, "end": end})
        if not start.is_integer() or not end.is_integer() or not 0 <= start < end < _MOST_OFFSET:
            return "annotation_bad_geometry"
        span = (int(start), int(end))
        if self._text is not None:
            quoted = value.get("text")
            if isinstance(quoted, str) and quoted and not self._text.quotes(*span, quoted):
                span = self._text.from_utf16(*span)
                if not self._text.quotes(*span, quoted):
                    return "annotation_span_mismatch"
            span = self._text.span(*span)
        return Mark(label="", kind="span", geometry={"start": span[0], "end": span[1]})


def _rectangle(value: Mapping[str, Any], result: Mapping[str, Any]) -> Mark | str:
    """A box; where it is turned, the polygon of its corners."""
    sides = [value.get(side) for side in ("x", "y", "width", "height")]
    box = places.from_corner(sides, _PERCENT)
    if box is None:
        return "annotation_zero_area" if places.is_flat(sides) else "annotation_bad_geometry"
    turn = geo.number(value.get("rotation") or 0)
    if turn == 0:
        return Mark(label="", kind="bbox", geometry={"box": box}, is_relative=True)
    width = geo.number(result.get("original_width"))
    height = geo.number(result.get("original_height"))
    # Percent of two sides cannot be turned without knowing how long these are.
    if turn is None or not width or not height or not 1 <= min(width, height) <= geo.MAX_SIDE_PX:
        return "annotation_turned"
    in_pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    shares = [[x / width, y / height] for x, y in places.turned(in_pixels, turn)]
    return Mark(label="", kind="polygon", geometry={"points": shares}, is_relative=True)


def _keypoint(value: Mapping[str, Any]) -> Mark | str:
    x, y = geo.number(value.get("x")), geo.number(value.get("y"))
    if x is None or y is None:
        return "annotation_bad_geometry"
    points = [[x / _PERCENT, y / _PERCENT, _VISIBLE]]
    return Mark(label="", kind="keypoints", geometry={"points": points}, is_relative=True)


def _polygon(value: Any) -> Mark | str:
    points = geo.read_polygon(value)
    if points is None:
        return "annotation_bad_geometry"
    shares = [[x / _PERCENT, y / _PERCENT] for x, y in points]
    return Mark(label="", kind="polygon", geometry={"points": shares}, is_relative=True)
