"""Exports a version, or one of its splits, as an archive: an operation of kind ``export``.

A chunk adds a page of items to a file beside the archive's other parts, and notes how long they
all are; its place is committed only then. Whoever goes on cuts everything to the lengths that were
noted, so that a chunk which died leaves no trace. The archive is no stored content: it is thrown
away when it is old.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from ppworker.domain.events import OperationMoved
from ppworker.domain.job import Status
from ppworker.errors import Conflict, NotFound
from ppworker.formats import registry
from ppworker.formats.archive_writer import ArchiveWriter
from ppworker.formats.base import Mark, Record, Report
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.transfer import shelf, stage
from ppworker.store import datasets, operations, transfers
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.store.transfers import Target

KIND = "export"
_PAGE_BYTES = 16 * 1024 * 1024
"""About the bytes of texts and annotations that a chunk reads at most, one item at least."""
_MOST_PAGE = 500
_FILES_S = 1.5
"""Seconds that a chunk spends on files; the others come in the next chunk."""
_MOST_RESTARTS = 20
"""Times that an export begins anew because its files were gone."""
_NOTES = "checkpoint-{cursor}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An export that was begun."""

    operation_id: UUID
    format: str
    file_name: str


def begin(
    deps: Deps,
    user_id: UUID,
    version_id: UUID,
    *,
    split: Split | None = None,
    format_name: str | None = None,
) -> Asked:
    """Begin to export a version.

    Args:
        deps: the collaborators.
        user_id: who asks; the operation is theirs.
        version_id: the version; that it may be read is the caller's to know.
        split: only this one of its splits.
        format_name: where it is unknown, or not given, the usual one of the dataset is taken.

    Raises:
        NotFound: the version is gone.
    """
    target = stage.target(deps, version_id)
    with deps.db.look() as tx:
        splits = _splits(tx, target, None if split is None else split.id)
        total = transfers.count_items(tx, [each.id for each in splits])
        has_boxes = transfers.has_kind(tx, version_id, "bbox")
    wanted = registry.FORMATS.get(format_name or "")
    chosen = wanted or registry.usual(target.content_type, has_boxes=has_boxes)
    operation_id = new_id()
    names = [target.dataset_name, target.version_name, *([split.name] if split else [])]
    asked = Asked(
        operation_id=operation_id, format=chosen.name, file_name="-".join(names)[:150] + ".zip"
    )
    with deps.db.begin() as tx:
        operations.insert_operation(
            tx,
            operation_id,
            user_id,
            kind=KIND,
            arguments={
                "version_id": str(version_id),
                "split_id": None if split is None else str(split.id),
                "format": chosen.name,
            },
            dataset_id=target.dataset_id,
            total=total,
            result={"format": chosen.name, "file_name": asked.file_name},
        )
    deps.emit(
        [
            OperationMoved(
                operation_id=operation_id,
                kind=KIND,
                source=None,
                to=Status.PENDING,
                cause="planned",
            )
        ]
    )
    return asked


def archive(deps: Deps, operation: Operation) -> Path:
    """The file of an export that is completed.

    Raises:
        Conflict: it is no export, or is not completed.
        NotFound: its file was thrown away.
    """
    if operation.kind != KIND:
        raise Conflict("only exports have a file to download", field="operation")
    if operation.status != Status.COMPLETED:
        raise Conflict(
            f"the export is {operation.status}; ask again when it is completed", field="operation"
        )
    path = shelf.folder(deps, operation.id) / shelf.ARCHIVE
    if not path.is_file():
        raise NotFound("the archive is too old and gone; export again", field="operation")
    return path


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of an operation of kind ``export``.

    Raises:
        NotFound: the version or the split is gone.
    """
    target = stage.target(deps, UUID(str(operation.arguments["version_id"])))
    split_id = operation.arguments["split_id"]
    with deps.db.look() as tx:
        splits = _splits(tx, target, UUID(str(split_id)) if split_id else None)
    folder = shelf.folder(deps, operation.id)
    with shelf.alone(folder):
        _check_lease(deps, operation)
        chunk = _chunk(deps, operation, target, splits, folder)

    def write(_tx: Tx) -> Chunk:
        return chunk

    return write


def _splits(tx: Tx, target: Target, split_id: UUID | None) -> list[Split]:
    found = datasets.list_splits_of(tx, [target.version_id])
    if split_id is not None:
        found = [split for split in found if split.id == split_id]
        if not found:
            raise NotFound("the split is gone", field="split")
    return found


def _check_lease(deps: Deps, operation: Operation) -> None:
    """Whoever has lost the lease must not touch the files of whoever has it."""
    with deps.db.look() as tx:
        now = operations.find_operation(tx, operation.user_id, operation.id)
    if now is None or (now.lease_token, now.cursor) != (operation.lease_token, operation.cursor):
        raise shelf.BusyError


@dataclass(slots=True)
class _Notes:
    """What is known of the files at a place of the export."""

    writer: dict[str, Any]
    state: dict[str, Any]
    report: dict[str, Any]
    after: str


def _chunk(
    deps: Deps, operation: Operation, target: Target, splits: Sequence[Split], folder: Path
) -> Chunk:
    about = stage.about(deps, target)
    chosen = registry.FORMATS[str(operation.arguments["format"])]
    with _opened(folder, operation.cursor) as (out, parts, notes):
        is_anew = notes is None and operation.cursor > 0
        if is_anew and operation.counts.get("restarts", 0) >= _MOST_RESTARTS:
            raise Conflict(f"its files were lost {_MOST_RESTARTS} times", field="operation")
        report = Report() if notes is None else Report.of(notes.report)
        state = {} if notes is None else notes.state
        writer = chosen.writer(parts, about, _Files(deps), report, state)
        after = UUID(int=0) if notes is None else UUID(notes.after)
        records, last = _page(deps, target, splits, after, most=operation.chunk)
        until = time.monotonic() + min(_FILES_S, deps.settings.lease_s / 6)
        added = 0
        for record in records:
            writer.add(_with_file(deps, record, report))
            added += 1
            if time.monotonic() > until:
                last = UUID(record.id)  # the others come in the next chunk
                break
        done = added - (operation.done if is_anew else 0)
        cursor = operation.done + done
        result: dict[str, Any] = {}
        if last is None:
            writer.finish()
            parts.close()
            result = {"bytes": out.seek(0, 2), **report.as_json()}
        else:
            _note(folder, cursor, _Notes(parts.checkpoint(), state, report.as_json(), str(last)))
    return Chunk(
        cursor=cursor,
        done=done,
        counts={"items": done} | ({"restarts": 1} if is_anew else {}),
        is_last=last is None,
        result=result,
        after=partial(_tidy, folder) if last is None else _nothing,
    )


def _with_file(deps: Deps, record: Record, report: Report) -> Record:
    """The record, without its file where the store has lost that: the others are not to suffer."""
    if not record.content_sha256 or deps.blobs.has(record.content_sha256):
        return record
    report.lose("missing_files", record.name or record.id)
    return replace(record, content_sha256="")


def _nothing() -> None:
    """There is nothing to tidy yet."""


def _page(
    deps: Deps, target: Target, splits: Sequence[Split], after: UUID, *, most: int
) -> tuple[list[Record], UUID | None]:
    """The items behind an id as records, as many as memory should hold, and the id of the last;
    None where there are no more."""
    names = {split.id: split.name for split in splits}
    with deps.db.look() as tx:
        sizes = transfers.page_of_items(tx, list(names), after=after, limit=min(most, _MOST_PAGE))
        ids: list[UUID] = []
        total = 0
        for id_, size in sizes:
            total += size
            if ids and total > _PAGE_BYTES:
                break
            ids.append(id_)
        rows = transfers.read_items(tx, ids)
        members = transfers.read_memberships(tx, target.version_id, ids)
        states = transfers.read_states(tx, target.version_id, ids)
        marks = transfers.read_annotations(tx, target.version_id, ids)
    found = {row.id: row for row in rows}  # what was deleted in this moment is not there
    records = []
    for id_, row in found.items():
        own = [names[each] for each in members.get((id_, target.version_id), []) if each in names]
        records.append(_record(row, own, states.get(id_, ""), marks.get(id_, ())))
    return records, ids[-1] if ids else None


def _record(row: Any, splits: Sequence[str], state: str, marks: Sequence[Any]) -> Record:
    return Record(
        id=str(row.id),
        name=row.name,
        splits=tuple(splits),
        text=row.text,
        extension=row.extension,
        media_type=row.media_type,
        content_sha256=row.content_sha256 or "",
        description=row.description,
        metadata=row.metadata,
        width=row.width,
        height=row.height,
        page_count=row.page_count,
        duration_s=row.duration_s,
        state=state,
        marks=tuple(_mark(mark) for mark in marks),
    )


def _mark(row: Any) -> Mark:
    origin = row.origin or {}
    return Mark(
        label=row.label,
        kind=row.kind,
        coordinates=row.coordinates,
        geometry=row.geometry,
        text=row.text,
        page=row.page,
        score=row.score,
        source=str(origin.get("source") or row.source),
        post_processor=str(origin.get("post_processor") or row.post_processor or ""),
        model_version=row.model_version,
        review=row.review,
    )


@dataclass(frozen=True, slots=True)
class _Files:
    deps: Deps

    @contextmanager
    def __call__(self, record: Record, /) -> Iterator[BinaryIO]:
        with self.deps.blobs.path(record.content_sha256).open("rb") as file:
            yield file


@contextmanager
def _opened(folder: Path, cursor: int) -> Iterator[tuple[BinaryIO, ArchiveWriter, _Notes | None]]:
    """The archive and its parts as they were at a place, or empty where that is not known."""
    path = folder / shelf.ARCHIVE
    path.touch()
    with path.open("r+b") as out:
        notes = _read_notes(folder, cursor)
        parts = None if notes is None else _restored(out, folder, notes)
        if parts is None:
            notes = None
            _tidy(folder)
            out.truncate(0)
            parts = ArchiveWriter(out, folder)
        try:
            yield out, parts, notes
        finally:
            parts.discard()


def _restored(out: BinaryIO, folder: Path, notes: _Notes) -> ArchiveWriter | None:
    parts = ArchiveWriter(out, folder)
    try:
        parts.restore(notes.writer)
    except EOFError:  # a power cut took what was not on the disk yet
        parts.discard()
        return None
    return parts


def _read_notes(folder: Path, cursor: int) -> _Notes | None:
    keep = _NOTES.format(cursor=cursor)
    for each in folder.glob("checkpoint-*"):
        if each.name != keep:
            each.unlink()
    try:
        return _Notes(**json.loads((folder / keep).read_text())) if cursor else None
    except (FileNotFoundError, ValueError):
        return None


def _note(folder: Path, cursor: int, notes: _Notes) -> None:
    path = folder / _NOTES.format(cursor=cursor)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(notes)))
    part.replace(path)


def _tidy(folder: Path) -> None:
    """Throw the parts away: only the archive is needed, or not even what is in it."""
    for each in folder.iterdir():
        if each.name not in {shelf.ARCHIVE, shelf.LOCK}:
            each.unlink(missing_ok=True)
