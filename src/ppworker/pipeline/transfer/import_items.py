"""Imports what was staged: items, files, labels, splits, annotations and jobs, a chunk at a time.

A fixed number of statements per chunk, whatever its size. What concerns many chunks (splits,
labels) is made in short transactions of its own, and is there already when a chunk is repeated.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from ppworker.domain.events import LabelsCreated
from ppworker.domain.labels import MAX_NAME, normalise_label
from ppworker.domain.text import clean_text
from ppworker.errors import Invalid, NotFound
from ppworker.formats.archive import Place, blocks
from ppworker.formats.base import Record, Report
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.transfer import manifest, shelf
from ppworker.pipeline.transfer.arrivals import Arrival, Arrivals
from ppworker.pipeline.transfer.manifest import Lines, Staged
from ppworker.pipeline.uploads import ingest
from ppworker.pipeline.uploads.names import extension_of, shown_name
from ppworker.runners.inspector import Inspection
from ppworker.store import datasets, labels, post_processors, transfers
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.items import NewItem
from ppworker.store.operations import Operation
from ppworker.store.transfers import LabelSketch, Target

KIND = "import_items"
HEADER = "header.json"
MOST_LABELS = 5_000
"""Labels of a version beyond which imports create no more."""
MOST_SPLITS = 1_000
FIRST_SPLIT = "train"
"""Made where a version has none, for items of which the archive names none."""
_CHUNK_BYTES = 8 * 1024 * 1024
_CHUNK_MARKS = 20_000
_FILES_S = 1.5
"""Seconds that a chunk spends on files; the others come in the next chunk."""
_MOST_DESCRIPTION = 10_000
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,60}/[a-z0-9.+-]{1,100}")


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of an operation of kind ``import_items``.

    Raises:
        NotFound: the version is gone, or what was staged.
    """
    folder = shelf.folder(deps, operation.id)
    target = _target(deps, operation)
    try:
        if not operation.cursor:
            _apply_header(deps, target, json.loads((folder / HEADER).read_bytes()))
        lines = manifest.read_lines(
            folder / shelf.MANIFEST,
            operation.cursor,
            most_lines=operation.chunk,
            most_bytes=_CHUNK_BYTES,
            most_marks=_CHUNK_MARKS,
        )
    except FileNotFoundError:
        raise NotFound("what was uploaded is gone; upload it again", field="operation") from None
    report = Report()
    records = [each.record for each in lines.staged]
    splits = _ensure_splits(deps, target, records)
    label_ids = _ensure_labels(deps, target, records)
    lines, arrivals = _arrivals(deps, splits, folder / shelf.ARCHIVE, lines, report)

    def write(tx: Tx) -> Chunk:
        transfers.prefer_indexes(tx)
        found = transfers.find_target(tx, target.version_id, hold=True)
        if found is None:
            raise _gone(deps, operation)
        there = _held(tx, found, splits)
        held = labels.lock_labels(tx, label_ids.values())
        known = {form: id_ for form, id_ in label_ids.items() if id_ in held}
        made = Arrivals(found, operation.user_id, there, known)
        for arrival in arrivals:
            made.take(arrival)
        processors = post_processors.list_post_processors(tx, found.dataset_id)
        made.plan(processors)
        made.write(tx)

        def tell() -> None:
            deps.emit([made.written()])
            ingest.announce_planned(deps, made.jobs, processors, origin="import")
            if lines.is_last:
                shelf.drop(deps, operation.id)

        return Chunk(
            cursor=lines.ends[-1] if lines.ends else operation.cursor,
            done=len(lines.staged),
            counts=+(made.counts),
            is_last=lines.is_last,
            result=_said(report, made.report),
            after=tell,
        )

    return write


def _target(deps: Deps, operation: Operation) -> Target:
    with deps.db.look() as tx:
        found = transfers.find_target(tx, UUID(str(operation.arguments["version_id"])))
    if found is None:
        raise _gone(deps, operation)
    return found


def _gone(deps: Deps, operation: Operation) -> NotFound:
    """The error where no later attempt can help: what was staged need not wait for one."""
    shelf.drop(deps, operation.id)
    return NotFound("the version is gone", field="version")


def _said(*reports: Report) -> dict[str, Any]:
    """What chunks add to the operation's result."""
    whole = Report()
    for report in reports:
        whole.skipped.update(report.skipped)
        for reason, where in report.examples.items():
            whole.examples.setdefault(reason, []).extend(where)
    return {name: value for name, value in whole.as_json().items() if value}


def _apply_header(deps: Deps, target: Target, header: Mapping[str, Any]) -> None:
    """Make the splits and labels that the archive describes, and what it says of the version."""
    notes = {split["name"]: split["description"] for split in header["splits"]}
    sketches = [LabelSketch(**label) for label in header["labels"]]
    by_name: dict[str, Split] = {}
    if notes:
        by_name = deps.db.transact(
            lambda tx: transfers.ensure_splits(tx, target, notes, most=MOST_SPLITS)
        )
    if sketches:
        deps.db.transact(lambda tx: transfers.create_labels(tx, target, sketches, most=MOST_LABELS))
    default = by_name.get(header["default_split"])
    if header["config"] or default:
        with deps.db.begin() as tx:
            transfers.describe_version(
                tx,
                target.version_id,
                config=header["config"],
                default_split=default.id if default else None,
            )


def _ensure_splits(deps: Deps, target: Target, records: Sequence[Record]) -> dict[str, Split]:
    """Splits of the version by name, the default one first; those that records name are made."""
    wanted = {name: "" for record in records for name in record.splits}
    with deps.db.look() as tx:
        there = {split.name: split for split in datasets.list_splits_of(tx, [target.version_id])}
    if not there and not wanted:
        wanted = {FIRST_SPLIT: ""}
    if wanted.keys() - there.keys():
        there = deps.db.transact(
            lambda tx: transfers.ensure_splits(tx, target, wanted, most=MOST_SPLITS)
        )
    # Sorting keeps the order of equal ones.
    return dict(sorted(there.items(), key=lambda each: each[1].id != target.default_split))


def _held(tx: Tx, target: Target, splits: Mapping[str, Split]) -> dict[str, Split]:
    held = transfers.hold_splits(tx, [split.id for split in splits.values()])
    there = {name: split for name, split in splits.items() if split.id in held}
    if not there:
        raise NotFound(f"version '{target.version_name}' has no split any more", field="split")
    return there


def _ensure_labels(deps: Deps, target: Target, records: Sequence[Record]) -> dict[str, UUID]:
    """Labels by the form in which names are compared; missing ones are made."""
    wanted: dict[str, str] = {}
    for name in {mark.label for record in records for mark in record.marks}:
        shown = " ".join(clean_text(name)[0].split())
        if shown and len(shown) <= MAX_NAME:
            wanted.setdefault(normalise_label(shown), shown)
    if not wanted:
        return {}
    with deps.db.look() as tx:
        found = transfers.find_labels(tx, target.version_id, list(wanted))
    new = sorted(name for form, name in wanted.items() if form not in found)
    if not new:
        return found
    sketches = [LabelSketch(name) for name in new]
    made = deps.db.transact(
        lambda tx: transfers.create_labels(tx, target, sketches, most=MOST_LABELS)
    )
    if made:
        deps.emit(
            [LabelsCreated(version_id=target.version_id, post_processor="", names=tuple(new))]
        )
    with deps.db.look() as tx:
        return transfers.find_labels(tx, target.version_id, list(wanted))


def _arrivals(
    deps: Deps, splits: Mapping[str, Split], path: Path, lines: Lines, report: Report
) -> tuple[Lines, list[Arrival]]:
    """The items of as many lines as there is time for, their files stored."""
    made: list[Arrival] = []
    if not lines.staged:
        return lines, made
    until = time.monotonic() + min(_FILES_S, deps.settings.lease_s / 6)
    with ExitStack() as stack:
        making = _Making(
            deps=deps,
            split=next(iter(splits.values())),
            archive=stack.enter_context(path.open("rb")) if _has_files(lines) else None,
            scratch=stack.enter_context(deps.blobs.scratch()) if _has_files(lines) else None,
            inspection=stack.enter_context(Inspection(max_text_bytes=deps.settings.max_text_bytes)),
        )
        for position, staged in enumerate(lines.staged, start=1):
            arrival = making.arrival(staged)
            if arrival is None:
                report.skip("text_too_long", staged.record.where or staged.record.name)
            else:
                made.append(arrival)
            if staged.place is not None and time.monotonic() > until:
                lines = lines.cut(position)
                break
        deps.blobs.keep_all(making.files)
    return lines, made


def _has_files(lines: Lines) -> bool:
    return any(staged.place is not None for staged in lines.staged)


@dataclass(slots=True, kw_only=True)
class _Making:
    """Makes items of records, one after the other."""

    deps: Deps
    split: Split
    """Of it only dataset and owner matter here."""
    archive: BinaryIO | None
    scratch: Path | None
    inspection: Inspection
    files: dict[str, Path] = field(default_factory=dict)
    """Those that are to be kept, by content."""

    def arrival(self, staged: Staged) -> Arrival | None:
        """The item that a record becomes; None where its text is longer than a text may be."""
        record, place = staged.record, staged.place
        text, most = record.text, self.deps.settings.max_text_bytes
        if place is not None and self.archive is not None:
            if not record.is_text_member:
                return self._file(record, self.archive, place)
            if place.size > most:
                return None
            content = b"".join(blocks(self.archive, place))
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                # No text after all, whatever its name says: a file like any other.
                return self._file(record, self.archive, place)
        clean = clean_text(text)[0] if text else ""
        if len(clean.encode()) > most:
            return None
        is_text = bool(clean) or record.is_text_member
        item = NewItem(
            id=new_id(),
            dataset_id=self.split.dataset_id,
            user_id=self.split.user_id,
            name=shown_name(record.name),
            text=clean if text is not None else None,
            extension=_extension(record) or ("txt" if is_text and not record.is_exact else ""),
            media_type=_media_type(record) if record.is_exact else "text/plain" * is_text,
            metadata=clean_text(record.metadata)[0],
            description=clean_text(record.description)[0][:_MOST_DESCRIPTION],
        )
        return Arrival(record=record, item=item, text=text)

    def _file(self, record: Record, archive: BinaryIO, place: Place) -> Arrival | None:
        if self.scratch is None:
            return None
        path = self.scratch / f"{len(self.files)}"
        with path.open("wb") as out:
            for block in blocks(archive, place):
                out.write(block)
        try:
            item = ingest.file_item(
                self.deps,
                self.split,
                path,
                name=record.file_name,
                text=record.text,
                metadata=clean_text(record.metadata)[0],
                inspection=self.inspection,
            )
        except Invalid:
            return None
        # A file that is there already is written over by the next one.
        self.files.setdefault(str(item.content_sha256), path)
        item = replace(
            item,
            name=shown_name(record.name),
            extension=_extension(record) or item.extension,
            description=clean_text(record.description)[0][:_MOST_DESCRIPTION],
        )
        text = item.text if record.text is None else record.text
        return Arrival(record=record, item=item, text=text)


def _media_type(record: Record) -> str:
    return record.media_type if _MEDIA_TYPE.fullmatch(record.media_type) else ""


def _extension(record: Record) -> str:
    return extension_of(f"x.{record.extension}") if record.extension else ""
