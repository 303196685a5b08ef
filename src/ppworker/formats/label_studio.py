"""Writes items as tasks of Label Studio, and reads its exports.

Written: ``tasks.json`` with one task per item, the files in ``files/``, ``label_config.xml`` that
fits them, and ``config.json`` with colours. What is accepted is an annotation; suggestions are
predictions, one for each version of a model. Shapes are percent of the picture, spans code points,
segments seconds.

Read: the same, and what Label Studio exports as JSON if its files lie in the archive: their paths
and addresses may be those of its server or of a bucket.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from ppworker.domain import geometry as geo
from ppworker.formats import colours, label_studio_tasks, ledger, places
from ppworker.formats.archive import Archive
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import (
    About,
    Header,
    LabelNote,
    Mark,
    OpenFile,
    Record,
    Report,
    Writer,
)
from ppworker.formats.reading import MOST_LOOKS

LOSSES = {
    **ledger.NO_CONTENT, **ledger.TEXT_FILES, **ledger.FILE_NAMES, **ledger.ORIGINS,
    **ledger.SPANS, **ledger.SEGMENTS, **ledger.SHAPES, **ledger.KEYPOINTS, **ledger.PAGES,
    **ledger.PLACES, **ledger.LABEL_NOTES, **ledger.LABEL_NAMES, **ledger.SPLIT_NOTES,
    **ledger.SETTINGS, **ledger.MULTI_LABEL, **ledger.EMPTY_SPLITS,
    "edited": "that an accepted annotation was a suggestion that somebody edited",
    "class_texts": "text of a label of a whole item",
}  # fmt: skip
"""What an archive of Label Studio cannot hold."""

_TASKS = "tasks.json"
_CONFIG = "label_config.xml"
_SERVED = "/data/local-files/?d="
_VISIBLE = 2
_DOT = 0.5
"""Percent of the width that a point is drawn as."""
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_CONTROLS = {
    "image": ("Image", ("RectangleLabels", "PolygonLabels", "KeyPointLabels"), True),
    "audio": ("Audio", ("Labels",), True),
    "video": ("Video", ("Labels",), True),
    "text": ("Text", ("Labels",), False),
}
"""By the key of the data: tag that shows it, tags of its labels, whether texts are said of it."""
_NAMES = {
    "RectangleLabels": "box", "PolygonLabels": "polygon", "KeyPointLabels": "keypoint",
    "Labels": "label",
}  # fmt: skip


class LabelStudio:
    """The format."""

    name = "labelstudio"

    def recognises(self, archive: Archive, about: About) -> bool:  # noqa: ARG002
        """Whether a JSON file begins as a list of tasks does."""
        members = label_studio_tasks.json_files(archive)[:MOST_LOOKS]
        return any(label_studio_tasks.looks_like_tasks(archive, member) for member in members)

    def read(
        self,
        archive: Archive,
        about: About,  # noqa: ARG002
        report: Report,
    ) -> tuple[Header, Iterator[Record]]:
        """Every task with its annotations and predictions."""
        given = colours.read(archive)
        header = Header(labels=colours.notes(given, given))
        return header, label_studio_tasks.records(archive, report)

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


def kind_of(record: Record) -> str:
    """Key of an item's content in the data of its task; empty where it has none."""
    if record.content_sha256 and not (record.text and record.media_type.startswith("text/")):
        first = record.media_type.partition("/")[0]
        is_pdf = record.media_type == "application/pdf"
        return "pdf" if is_pdf else first if first in {"image", "audio", "video"} else "file"
    return "text" if record.text else ""


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
        self._ledger = ledger.Ledger(report, LOSSES)
        if not state:
            state |= {
                "tasks": out.reserve(_TASKS), "config": out.reserve(_CONFIG), "count": 0,
                "kinds": [], "splits": [],
            }  # fmt: skip
            self._ledger.version(about)
            colours.write(out, about)
            out.append(state["tasks"], "[")
        self._state = state

    def add(self, record: Record) -> None:
        where = record.name or record.id
        kind = kind_of(record)
        if not kind:
            self._ledger.lose("no_content", where)
            return
        self._ledger.item(record)
        if kind == "text" and record.content_sha256:
            self._ledger.lose("text_files", where)
        made = _Results(record, kind, self._ledger)
        task = {"id": self._state["count"] + 1, "data": self._data(record, kind)} | made.task()
        self._out.append(
            self._state["tasks"], (",\n" if self._state["count"] else "\n") + _to_json(task)
        )
        self._state["count"] += 1
        self._state["kinds"] = sorted({*self._state["kinds"], kind})
        self._state["splits"] = sorted({*self._state["splits"], *record.splits})

    def _data(self, record: Record, kind: str) -> dict[str, Any]:
        said = {"name": record.name, "description": record.description,
                "metadata": record.metadata, "state": record.state}  # fmt: skip
        content = record.text if kind == "text" else self._file(record)
        data: dict[str, Any] = {kind: content} | {
            key: value for key, value in said.items() if value
        }
        return data | {"splits": list(record.splits)}

    def _file(self, record: Record) -> str:
        member = self._out.reserve("files", record.file_name)
        if record.name and member != f"files/{record.file_name}":
            self._ledger.lose("file_names", record.name)
        with self._open_file(record) as file:
            self._out.add(member, file)
        return _SERVED + quote(member)

    def finish(self) -> None:
        self._out.append(self._state["tasks"], "\n]\n")
        self._out.append(
            self._state["config"], label_config(self._about.labels, self._state["kinds"])
        )
        names = [split.name for split in self._about.splits]
        empty = sum(name not in self._state["splits"] for name in names)
        self._ledger.count("empty_splits", empty)


def label_config(labels: Sequence[LabelNote], kinds: Sequence[str]) -> str:
    """The description of a project that shows tasks of these kinds with these labels."""
    lines = ["<View>"]
    for kind in kinds:
        tag, controls, has_text = _CONTROLS.get(kind, ("Text", (), False))
        lines.append(f'  <{tag} name="{kind}" value="${kind}"/>')
        for control in controls:
            lines += _control(control, f"{kind}_{_NAMES[control]}", kind, labels)
        lines += _control("Choices", f"{kind}_class", kind, labels)
        if has_text:
            lines.append(f'  <TextArea name="{kind}_text" toName="{kind}"/>')
            lines.append(f'  <TextArea name="{kind}_said" toName="{kind}" perRegion="true"/>')
    return "\n".join([*lines, "</View>"]) + "\n"


def _control(tag: str, name: str, kind: str, labels: Sequence[LabelNote]) -> list[str]:
    child, more = ("Choice", ' choice="multiple"') if tag == "Choices" else ("Label", "")
    lines = [f'  <{tag} name="{name}" toName="{kind}"{more}>']
    for label in labels:
        colour = f" background={quoteattr(label.color)}" if label.color and not more else ""
        lines.append(f"    <{child} value={quoteattr(label.name)}{colour}/>")
    return [*lines, f"  </{tag}>"]


class _Results:
    """What is said of one item, as annotation and predictions."""

    def __init__(self, record: Record, kind: str, losses: ledger.Ledger) -> None:
        self._record = record
        self._kind = kind
        self._ledger = losses
        self._where = record.name or record.id
        self._ids: Counter[str] = Counter()
        self._accepted: list[dict[str, Any]] = []
        self._suggested: dict[str, list[dict[str, Any]]] = {}

    def task(self) -> dict[str, Any]:
        if self._record.text and self._kind != "text":
            self._accepted.append(self._result("text", "textarea", {"text": [self._record.text]}))
        for mark in self._record.marks:
            self._add(mark)
        annotations = [{"result": self._accepted}] if self._accepted else []
        predictions = [
            {"model_version": version, "result": results}
            for version, results in self._suggested.items()
        ]
        return {"annotations": annotations, "predictions": predictions}

    def _add(self, mark: Mark) -> None:
        is_suggested = mark.review == "suggested"
        results = self._region(mark)
        if not results:
            return
        self._ledger.mark(replace(mark, model_version="") if is_suggested else mark, self._where)
        if mark.review == "edited":
            self._ledger.lose("edited", self._where)
        if mark.score is not None:
            results[0]["score"] = mark.score
        goal = self._accepted
        if is_suggested:
            goal = self._suggested.setdefault(mark.model_version, [])
        if mark.kind != "class" or not _joined(goal, results[0]):
            goal += results

    def _region(self, mark: Mark) -> list[dict[str, Any]]:
        """Results of a mark; none where it cannot be said, which is counted."""
        if mark.kind == "class" and not mark.coordinates:
            if mark.text:
                self._ledger.lose("class_texts", self._where)
            return [self._result("class", "choices", {"choices": [mark.label]})]
        said = self._value(mark)
        if isinstance(said, str):
            self._ledger.lose(said, self._where)
            return []
        name, type_, value = said
        region = self._result(name, type_, value | {type_: [mark.label]})
        if mark.text and mark.kind != "span":
            text = self._result("said", "textarea", value | {"text": [mark.text]})
            return [region, text | {"id": region["id"]}]
        return [region]

    def _value(self, mark: Mark) -> tuple[str, str, dict[str, Any]] | str:
        """Name of the control, type and place; or the loss."""
        place = mark.geometry or {}
        if mark.kind in {"span", "segment"}:
            wanted = {"span": {"text"}, "segment": {"audio", "video"}}[mark.kind]
            start, end = geo.number(place.get("start")), geo.number(place.get("end"))
            if self._kind not in wanted or start is None or end is None:
                return f"{mark.kind}s"
            if mark.kind == "segment":
                return "label", "labels", {"start": start, "end": end, "channel": 0}
            quoted = {} if mark.text is None else {"text": mark.text}
            return "label", "labels", {"start": int(start), "end": int(end), **quoted}
        if self._kind == "pdf":
            return "pages"
        if fault := ledger.no_place_on_picture(mark):
            return fault
        return self._shape(mark) if self._kind == "image" else "shapes"

    def _shape(self, mark: Mark) -> tuple[str, str, dict[str, Any]] | str:
        record = self._record
        if mark.kind == "bbox":
            box = places.box_in_shares(mark, record)
            if box is None:
                return "places"
            x, y, w, h = (100 * side for side in (box[0], box[1], box[2] - box[0], box[3] - box[1]))
            return (
                "box",
                "rectanglelabels",
                {"x": x, "y": y, "width": w, "height": h, "rotation": 0},
            )
        is_polygon = mark.kind == "polygon"
        points = places.points_of(mark) if is_polygon else places.keypoints_of(mark)
        if points is None or not record.width or not record.height:
            return "places"
        across, down = 100 / record.width, 100 / record.height
        percent = [[point[0] * across, point[1] * down] for point in points]
        if is_polygon:
            return "polygon", "polygonlabels", {"points": percent, "closed": True}
        if len(points) != 1 or points[0][2] != _VISIBLE:
            return "keypoints"
        x, y = percent[0]
        return "keypoint", "keypointlabels", {"x": x, "y": y, "width": _DOT}

    def _result(self, name: str, type_: str, value: dict[str, Any]) -> dict[str, Any]:
        self._ids["r"] += 1
        result: dict[str, Any] = {
            "id": f"r{self._ids['r']}", "from_name": f"{self._kind}_{name}",
            "to_name": self._kind, "type": type_, "value": value,
        }  # fmt: skip
        if self._kind == "image" and self._record.width and self._record.height:
            result |= {
                "original_width": self._record.width, "original_height": self._record.height,
                "image_rotation": 0,
            }  # fmt: skip
        return result


def _joined(results: list[dict[str, Any]], result: dict[str, Any]) -> bool:
    """Whether a label of the whole item went to a result that is there, with the same score."""
    for other in results:
        if other["type"] == "choices" and other.get("score") == result.get("score"):
            other["value"]["choices"] += result["value"]["choices"]
            return True
    return False
