"""Folders: ``<split>/<label>/<name>.<ext>``; what has no label lies in ``<split>/``.

For pictures and texts with one label each. Items without a file are ``.txt``. An item of several
splits lies in each of them; of several labels it keeps the first.
"""

from collections.abc import Iterator
from typing import Any

from ppworker.domain.labels import MAX_NAME
from ppworker.errors import Invalid
from ppworker.formats import ledger
from ppworker.formats.archive import Archive
from ppworker.formats.archive_checks import FIELD, shown
from ppworker.formats.archive_writer import ArchiveWriter, clean_part
from ppworker.formats.base import About, Header, Mark, OpenFile, Record, Report, Writer

LOSSES = {
    **ledger.ITEM_TEXTS, **ledger.DESCRIPTIONS, **ledger.METADATA, **ledger.STATES,
    **ledger.FILE_NAMES, **ledger.SCORES, **ledger.REVIEWS, **ledger.ORIGINS, **ledger.KEYPOINTS,
    **ledger.SPANS, **ledger.SEGMENTS, **ledger.LABEL_NOTES, **ledger.LABEL_NAMES,
    **ledger.SPLIT_NAMES, **ledger.SPLIT_NOTES, **ledger.SETTINGS, **ledger.MULTI_LABEL,
    "boxes": "box on a picture or page",
    "polygons": "polygon on a picture or page",
    "places": "coordinates of a label that are a client's own",
    "further_labels": "label of an item that has another one already",
    "further_splits": "that what lies in several splits is one item",
    "label_colours": "colour and index of a label",
}  # fmt: skip
"""What folders cannot hold."""

_OTHER_KINDS = {
    "bbox": "boxes", "polygon": "polygons", "keypoints": "keypoints", "span": "spans",
    "segment": "segments",
}  # fmt: skip
_IN_SPLIT, _IN_LABEL = 2, 3


class Folders:
    """The format."""

    name = "folders"

    def recognises(self, archive: Archive, about: About) -> bool:  # noqa: ARG002
        """Always: any archive is folders."""
        return True

    def read(
        self,
        archive: Archive,
        about: About,  # noqa: ARG002
        report: Report,
    ) -> tuple[Header, Iterator[Record]]:
        """Every file, its split and label by its folders."""
        return Header(), _records(archive, report)

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


def _records(archive: Archive, report: Report) -> Iterator[Record]:
    above = _folders_above(archive)
    for member in archive:
        *folders, name = member.split("/")[above:]
        if len(folders) >= _IN_LABEL:
            report.skip("too_deep", shown(member))
            continue
        if len(folders) == _IN_LABEL - 1 and len(folders[1]) > MAX_NAME:
            raise Invalid(
                f"{shown(member)}: the name of a label has at most {MAX_NAME} characters",
                field=FIELD,
            )
        stem, _, ending = name.rpartition(".")
        is_text = bool(stem) and ending.lower() == "txt"
        yield Record(
            name=stem if is_text else name,
            splits=tuple(folders[:1]),
            member=member,
            is_text_member=is_text,
            extension=ending.lower() if stem and not is_text else "",
            marks=(Mark(label=folders[1], kind="class"),) if len(folders) > 1 else (),
            where=shown(member),
        )


def _folders_above(archive: Archive) -> int:
    """One where everything lies in one folder that somebody packed whole, else none."""
    roots, deepest = set(), 0
    for member in archive:
        parts = member.split("/")
        roots.add(parts[0] if len(parts) > 1 else "")
        deepest = max(deepest, len(parts))
    return int(len(roots) == 1 and deepest > _IN_LABEL)


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
        if not state:
            state["begun"] = True
            self._ledger.version(about)
            self._ledger.lose("label_colours", count=len(about.labels))
            self._note_names(about)

    def add(self, record: Record) -> None:
        """Write an item into its folders."""
        where = record.name or record.id
        self._ledger.item(record)
        label = self._label(record, where)
        self._ledger.lose("further_splits", where, max(0, len(record.splits) - 1))
        for split in record.splits:
            folders = (split,) if label is None else (split, label)
            wanted = record.file_name
            name = self._out.reserve(*folders, wanted)
            if name.rpartition("/")[2] != wanted:
                self._ledger.lose("file_names", where)
            if record.content_sha256:
                with self._open_file(record) as file:
                    self._out.add(name, file)
            else:
                self._out.add(name, record.text or "")

    def finish(self) -> None:
        """Nothing stands behind the items."""

    def _label(self, record: Record, where: str) -> str | None:
        label: str | None = None
        for mark in record.marks:
            if mark.kind in _OTHER_KINDS:
                self._ledger.lose(_OTHER_KINDS[mark.kind], where)
            elif label is None:
                label = mark.label
                self._ledger.mark(mark, where)
                self._ledger.lose("places", where, int(bool(mark.coordinates)))
            else:
                self._ledger.lose("further_labels", where)
        return label

    def _note_names(self, about: About) -> None:
        for label in about.labels:
            self._ledger.lose("label_names", label.name, int(clean_part(label.name) != label.name))
        for split in about.splits:
            self._ledger.lose("split_names", split.name, int(clean_part(split.name) != split.name))
