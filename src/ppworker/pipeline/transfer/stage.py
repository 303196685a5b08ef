"""Takes an archive or a request of many items: checks all of it, then commits to importing it.

Nothing is imported here; the operation that is created does it, in resumable chunks
(`ppworker.pipeline.transfer.import_items`). What is refused leaves nothing behind.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from ppworker.domain.events import OperationMoved
from ppworker.domain.job import Status
from ppworker.domain.labels import MAX_NAME
from ppworker.domain.text import clean_text
from ppworker.errors import Conflict, Invalid, NotFound
from ppworker.formats import registry
from ppworker.formats.archive import Archive, open_archive
from ppworker.formats.archive_checks import Limits
from ppworker.formats.base import About, Format, Header, LabelNote, Record, Report, SplitNote
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.transfer import manifest, shelf
from ppworker.pipeline.transfer.import_items import HEADER, KIND, MOST_SPLITS
from ppworker.store import datasets, idempotency, labels, operations, transfers
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.transfers import Target

MOST_MARKS = 10_000
"""Annotations of one item."""
_MOST_KEY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What passed the check, and the operation that imports it."""

    operation_id: UUID
    total: int
    """Items it holds."""
    repeated: bool = False
    """The idempotency key was known: this is the operation of the first time."""


def limits(deps: Deps) -> Limits:
    """How large archives may be."""
    settings = deps.settings
    return Limits(
        members=settings.max_archive_members,
        total_bytes=settings.max_archive_bytes,
        member_bytes=settings.max_file_bytes,
    )


def target(deps: Deps, version_id: UUID) -> Target:
    """The version, with its dataset; whose it is is the caller's to know.

    Raises:
        NotFound: it is gone.
    """
    with deps.db.look() as tx:
        found = transfers.find_target(tx, version_id)
    if found is None:
        raise NotFound(f"there is no version '{version_id}' here", field="version")
    return found


def about(deps: Deps, into: Target) -> About:
    """A version as formats know it."""
    with deps.db.look() as tx:
        all_labels = labels.list_labels(tx, into.version_id)
        splits = datasets.list_splits_of(tx, [into.version_id])
    default = next((split.name for split in splits if split.id == into.default_split), "")
    return About(
        version_id=str(into.version_id),
        name=into.version_name,
        description=into.description,
        content_type=into.content_type,
        multi_label=into.multi_label,
        config=into.config,
        labels=tuple(
            LabelNote(
                name=label.name,
                color=label.color,
                index=label.index,
                shortcut=label.shortcut,
                description=label.description,
            )
            for label in all_labels
        ),
        splits=tuple(SplitNote(name=each.name, description=each.description) for each in splits),
        default_split=default,
    )


def known_format(name: str) -> Format:
    """The format that a client names.

    Raises:
        Invalid: there is none of that name.
    """
    found = registry.FORMATS.get(name)
    if found is None:
        raise Invalid(
            f"there is no format '{name}'; there are {', '.join(registry.FORMATS)}",
            field="format",
        )
    return found


def take_archive(
    deps: Deps, user_id: UUID, version_id: UUID, path: Path, format_name: str | None = None
) -> Accepted:
    """Accept an archive for a version.

    Args:
        deps: the collaborators.
        user_id: who brings it.
        version_id: where its items go; that they may is the caller's to know.
        path: the archive, inside the blob store; it is taken away from there.
        format_name: its format; by default it is found out.

    Raises:
        Invalid: the archive breaks a rule; names the member. Nothing is written.
        NotFound: the version is gone.
    """
    into = target(deps, version_id)
    wanted = None if format_name is None else known_format(format_name)
    operation_id, report = new_id(), Report()
    with (
        open_archive(path, limits(deps)) as archive,
        shelf.staging(deps, operation_id) as folder,
    ):
        version = about(deps, into)
        found = wanted or registry.detect(archive, version)
        header, records = found.read(archive, version, report)
        total = write_manifest(deps, folder, header, checked(deps, records, report), archive)
        if not total:
            raise Invalid(
                f"the archive holds nothing that can be imported as {found.name}; its layout is "
                "described in the documentation",
                field="file",
            )
        path.replace(folder / shelf.ARCHIVE)
        result = {"format": found.name, **report.as_json()}
        return accept(deps, user_id, into, operation_id, folder, total=total, result=result)


def checked(deps: Deps, records: Iterator[Record], report: Report) -> Iterator[Record]:
    """Records that can be imported, the names of their splits in order.

    Raises:
        Invalid: one breaks a rule that no skipping mends.
    """
    names: dict[str, str] = {}
    for record in records:
        where = record.where or record.name
        if len(record.marks) > MOST_MARKS:
            raise Invalid(f"{where}: has more than {MOST_MARKS} annotations", field="file")
        if record.text and len(record.text) * 4 > deps.settings.max_text_bytes:
            size = len(clean_text(record.text)[0].encode())
            if size > deps.settings.max_text_bytes:
                report.skip("text_too_long", where)
                continue
        for name in record.splits:
            if name not in names:
                names[name] = split_name(name, where)
                if len(names) > MOST_SPLITS:
                    raise Invalid(f"{where}: names more than {MOST_SPLITS} splits", field="file")
        splits = tuple(dict.fromkeys(names[name] for name in record.splits))
        yield record if splits == record.splits else replace(record, splits=splits)


def split_name(name: str, where: str) -> str:
    """The name of a split as it can be stored.

    Raises:
        Invalid: nothing is left of it, or it is too long.
    """
    kept = " ".join(clean_text(name)[0].split())
    if not kept or len(kept) > MAX_NAME:
        raise Invalid(
            f"{where}: the name of a split has 1 to {MAX_NAME} characters, not blank", field="file"
        )
    return kept


def write_manifest(
    deps: Deps,
    folder: Path,
    header: Header,
    records: Iterator[Record],
    archive: Archive | None,
) -> int:
    """Write down what is to be imported; returns how many items it is."""
    (folder / HEADER).write_text(json.dumps(_header(header)))
    total = 0
    with (folder / shelf.MANIFEST).open("wb") as out:
        for record in records:
            place = archive.place(record.member) if archive and record.member else None
            out.write(manifest.encode(record, place))
            total += 1
            if total > deps.settings.max_archive_members:
                raise Invalid(
                    f"has more than {deps.settings.max_archive_members} items; split it, or raise "
                    "PPWORKER_MAX_ARCHIVE_MEMBERS",
                    field="file",
                )
    return total


def _header(header: Header) -> dict[str, Any]:
    sketches = []
    for label in header.labels:
        name = " ".join(clean_text(label.name)[0].split())
        if name and len(name) <= MAX_NAME:
            said = {key: _clean(value) for key, value in asdict(label).items()}
            sketches.append({**said, "name": name})
    return {
        "labels": sketches,
        "splits": [
            {
                "name": split_name(each.name, "its splits"),
                "description": clean_text(each.description)[0],
            }
            for each in header.splits
        ],
        "default_split": header.default_split,
        "config": clean_text(header.config or "")[0],
    }


def _clean(value: Any) -> Any:
    return clean_text(value)[0] if isinstance(value, str) else value


def accept(
    deps: Deps,
    user_id: UUID,
    into: Target,
    operation_id: UUID,
    folder: Path,
    *,
    total: int,
    result: dict[str, Any],
    key: str | None = None,
) -> Accepted:
    """Create the operation that imports what was staged.

    Raises:
        Conflict: the idempotency key was used for something else.
    """
    if key is not None and not 1 <= len(key) <= _MOST_KEY:
        raise Invalid(f"has 1 to {_MOST_KEY} characters", field="Idempotency-Key")
    digest = "" if key is None else _digest(into, folder)
    shelf.sync(folder)

    def write(tx: Tx) -> Accepted:
        if key is not None:
            known = idempotency.claim_key(tx, user_id, key, digest, [operation_id])
            if known is not None:
                return _first_time(tx, user_id, key, known, digest)
        operations.insert_operation(
            tx,
            operation_id,
            user_id,
            kind=KIND,
            arguments={"version_id": str(into.version_id)},
            dataset_id=into.dataset_id,
            total=total,
            result=result,
        )
        return Accepted(operation_id=operation_id, total=total)

    accepted = deps.db.transact(write)
    if accepted.repeated:
        shelf.drop(deps, operation_id)
    else:
        deps.emit([_planned(operation_id)])
    return accepted


def _digest(into: Target, folder: Path) -> str:
    """Hash of what was sent where, by which a repeated key is recognised."""
    digest = hashlib.sha256(str(into.version_id).encode())
    with (folder / shelf.MANIFEST).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _first_time(
    tx: Tx, user_id: UUID, key: str, known: idempotency.KnownKey, digest: str
) -> Accepted:
    if known.request_sha256 != digest:
        raise Conflict(
            f"key '{key}' was used for something else; choose a new key", field="Idempotency-Key"
        )
    found = operations.find_operation(tx, user_id, known.ids[0])
    if found is None:
        raise NotFound(f"the operation that key '{key}' stood for is gone", field="Idempotency-Key")
    return Accepted(operation_id=found.id, total=found.total or 0, repeated=True)


def _planned(operation_id: UUID) -> OperationMoved:
    return OperationMoved(
        operation_id=operation_id, kind=KIND, source=None, to=Status.PENDING, cause="planned"
    )
