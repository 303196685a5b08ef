"""An upload becomes items and their pending jobs, in one transaction: all of it or nothing."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from ppworker import crash_points
from ppworker.domain import stats as stat_rule
from ppworker.domain.events import Event, JobMoved
from ppworker.domain.job import Status
from ppworker.domain.post_processor import (
    TEXT_DOCUMENTS,
    ItemFacts,
    PostProcessor,
    first_order,
    plan_jobs,
)
from ppworker.domain.text import clean_text
from ppworker.errors import Conflict, Invalid
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads import media
from ppworker.pipeline.uploads.names import clean_name
from ppworker.runners.inspector import Inspection
from ppworker.store import blobs, idempotency, items, jobs, post_processors, splits, stats
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id

TEXT_TYPES = ("text/plain", "text/markdown")
"""Media types whose bytes are the item's text."""
OWN_TEXT = (*TEXT_TYPES, *TEXT_DOCUMENTS)
"""Media types of files that bring the item's text with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One thing to become an item: a local file, or text, or both."""

    name: str
    path: Path | None = None
    open: Callable[[], AbstractContextManager[BinaryIO]] | None = None
    """Opens the file, where its path alone would not be safe to open."""
    text: str | None = None
    metadata: str = ""
    field: str = ""
    """What the caller calls the content, for errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What an upload became."""

    item_ids: list[UUID]
    jobs: int
    repeated: bool = False
    """The idempotency key was known: these are the items of the first time."""


@dataclass(frozen=True, slots=True)
class _Received:
    item: items.NewItem
    path: Path | None


def take_upload(
    deps: Deps,
    split: Split,
    uploads: Sequence[Upload],
    *,
    key: str | None = None,
    digest: str | None = None,
    priority: int = 0,
    most_text_bytes: int | None = None,
) -> Taken:
    """Store uploads as items of a split and plan a job for each post-processor that matches.

    Args:
        split: where the items go; its owner becomes theirs.
        key: idempotency key; the same key with the same uploads returns the first items.
        digest: hash by which the same uploads are recognised; by default one of their contents.
        priority: 0 for interactive uploads, 1 for bulk.
        most_text_bytes: of all texts together, where somebody else names the files.

    Raises:
        Invalid: an upload breaks a limit; names it. Nothing is written.
        Conflict: the key was used for other uploads.
    """
    with ExitStack() as temporary:
        inspection = temporary.enter_context(_inspection(deps))
        received: list[_Received] = []
        new: dict[str, Path] = {}
        text_bytes = 0
        for upload in uploads:
            with ExitStack() as copy:
                each = _received(deps, copy, inspection, split, upload)
                text_bytes += len((each.item.text or "").encode())
                if most_text_bytes is not None and text_bytes > most_text_bytes:
                    raise _too_much_text(most_text_bytes)
                sha256 = each.item.content_sha256
                # One copy of each content: an upload may name a large file very often.
                if each.path and sha256 and sha256 not in new and not deps.blobs.has(sha256):
                    new[sha256] = each.path
                    temporary.enter_context(copy.pop_all())
            received.append(each)
        digest = digest or _digest(split, received)
        for sha256, path in new.items():
            deps.blobs.keep(path, sha256)

        def write(tx: Tx) -> tuple[Taken, list[jobs.NewJob], list[PostProcessor]]:
            if key is not None and (first := _first_time(tx, split, key, digest, received)):
                return first, [], []
            return write_items(tx, split, [each.item for each in received], priority=priority)

        taken, planned, processors = deps.db.transact(write)
    announce_planned(deps, planned, processors)
    return taken


def announce_planned(
    deps: Deps,
    planned: Sequence[jobs.NewJob],
    processors: Iterable[PostProcessor],
    *,
    origin: str = "upload",
) -> None:
    """Say after COMMIT which jobs there are, and wake workers for those that are ready."""
    crash_points.reach("after_upload_commit")
    deps.hint({job.post_processor_id for job in planned if job.ready})  # workers wake meanwhile
    names = {processor.id: processor.name for processor in processors}
    deps.emit(planned_events(planned, names, origin=origin))


def planned_events(
    planned: Iterable[jobs.NewJob], names: Mapping[UUID, str], *, origin: str
) -> list[Event]:
    """The facts that jobs were planned.

    Args:
        planned: the jobs.
        names: names of their post-processors.
        origin: what asked for them: upload, import, inference, backfill or rerun.
    """
    return [
        JobMoved(
            job_id=job.id,
            item_id=job.item_id,
            post_processor=names[job.post_processor_id],
            attempt=0,
            lease_token=0,
            source=None,
            to=Status.PENDING,
            cause="planned",
            reason=origin,
        )
        for job in planned
    ]


def plan(
    item: items.NewItem,
    split: Split,
    processors: Sequence[PostProcessor],
    *,
    priority: int,
    also: Sequence[Split] = (),
) -> list[jobs.NewJob]:
    """The jobs an item gets; those of the lowest order are ready at once.

    Args:
        item: to be inserted.
        split: where it goes.
        processors: of its dataset.
        priority: 0 for interactive uploads, 1 for bulk.
        also: further splits of the same version it goes to.
    """
    facts = ItemFacts(
        extension=item.extension,
        media_type=item.media_type,
        has_file=item.content_sha256 is not None,
        has_text=bool(item.text),
        split_names=frozenset({split.name, *(each.name for each in also)}),
    )
    matched = plan_jobs(facts, processors)
    first = first_order(matched)
    return [
        jobs.NewJob(
            id=new_id(),
            post_processor_id=processor.id,
            item_id=item.id,
            version_id=split.version_id,
            user_id=split.user_id,
            order=processor.order,
            ready=processor.order == first,
            max_attempts=processor.max_attempts,
            priority=priority,
        )
        for processor in matched
    ]


def write_items(
    tx: Tx,
    split: Split,
    new: Sequence[items.NewItem],
    *,
    priority: int = 0,
    also: Sequence[Split] = (),
) -> tuple[Taken, list[jobs.NewJob], list[PostProcessor]]:
    """Insert items with their jobs into a split, and into further ones of its version.

    Returns also what `announce_planned` must be told after the COMMIT.
    """
    processors = post_processors.list_post_processors(tx, split.dataset_id)
    planned = [
        job for item in new for job in plan(item, split, processors, priority=priority, also=also)
    ]
    split_ids = list(dict.fromkeys([split.id, *(each.id for each in also)]))
    splits.hold_splits(tx, split_ids)
    blobs.insert_blobs(
        tx, {i.content_sha256: i.size_bytes or 0 for i in new if i.content_sha256 is not None}
    )
    items.insert_items(tx, new)
    items.insert_memberships(
        tx, [(split_id, item.id, split.version_id) for item in new for split_id in split_ids]
    )
    jobs.insert_jobs(tx, planned)
    nothing_yet: dict[UUID, dict[UUID | None, int]] = {item.id: {} for item in new}
    stats.append_deltas(tx, stat_rule.joined(nothing_yet, {item.id: split_ids for item in new}))
    return Taken(item_ids=[item.id for item in new], jobs=len(planned)), planned, processors


def _first_time(
    tx: Tx, split: Split, key: str, digest: str, received: Sequence[_Received]
) -> Taken | None:
    """Claim the key; what it stood for before, if anything."""
    ids = [each.item.id for each in received]
    known = idempotency.claim_key(tx, split.user_id, key, digest, ids)
    if known is None:
        return None
    if known.request_sha256 != digest:
        raise Conflict(f"key '{key}' was used for another upload; choose a new key", field="key")
    return Taken(item_ids=list(known.ids), jobs=0, repeated=True)


def _too_much_text(most_bytes: int) -> Invalid:
    return Invalid(
        f"their texts have more than {most_bytes} bytes together; send several uploads",
        field="items",
    )


def _received(
    deps: Deps, temporary: ExitStack, inspection: Inspection, split: Split, upload: Upload
) -> _Received:
    try:
        return _receive(deps, temporary, inspection, split, upload)
    except Invalid as error:
        error.field = upload.field or error.field
        raise


def _receive(
    deps: Deps, temporary: ExitStack, inspection: Inspection, split: Split, upload: Upload
) -> _Received:
    text, opened = upload.text, _opened(upload)
    if opened is None:
        if text is None:
            raise Invalid(f"'{upload.name}' has neither file nor text", field="text")
        clean = _checked_text(deps, upload.name, text)
        item = items.NewItem(
            id=new_id(),
            dataset_id=split.dataset_id,
            user_id=split.user_id,
            name=clean_name(upload.name),
            text=clean,
            extension="txt",
            media_type="text/plain",
            metadata=upload.metadata,
        )
        return _Received(item, None)
    with opened as source:
        if upload.path is not None and deps.blobs.holds(upload.path):
            path = upload.path
        else:
            copy = deps.blobs.receive(source, limit=deps.settings.max_file_bytes)
            path = temporary.enter_context(copy)
    item = file_item(
        deps, split, path, name=upload.name, text=text, metadata=upload.metadata,
        inspection=inspection,
    )  # fmt: skip
    return _Received(item, path)


def file_item(
    deps: Deps,
    split: Split,
    path: Path,
    *,
    name: str,
    text: str | None = None,
    metadata: str = "",
    inspection: Inspection | None = None,
) -> items.NewItem:
    """The item that a received or stored file becomes; the text of a text or document is its text.

    ``inspection`` is the one of several files; without it, one is made where it is needed.

    Raises:
        Invalid: its text is longer than a text may be.
    """
    with ExitStack() as own:
        if inspection is None:
            inspection = own.enter_context(_inspection(deps))
        found = media.inspect(path, name, inspection)
    if text is None:
        text = _text_of(deps, path, name, found)
    return items.NewItem(
        id=new_id(),
        dataset_id=split.dataset_id,
        user_id=split.user_id,
        name=clean_name(name),
        text=None if text is None else _checked_text(deps, name, text),
        extension=found.extension,
        media_type=found.media_type,
        content_sha256=found.sha256,
        size_bytes=found.size_bytes,
        width=found.width,
        height=found.height,
        page_count=found.page_count,
        duration_s=found.duration_s,
        metadata=metadata,
    )


def _inspection(deps: Deps) -> Inspection:
    return Inspection(max_text_bytes=deps.settings.max_text_bytes)


def _opened(upload: Upload) -> AbstractContextManager[BinaryIO] | None:
    if upload.open is not None:
        return upload.open()
    return None if upload.path is None else upload.path.open("rb")


def _text_of(deps: Deps, path: Path, name: str, found: media.Media) -> str | None:
    if found.media_type in TEXT_TYPES:
        _check_length(deps, name, found.size_bytes)
        return path.read_bytes().decode("utf-8-sig")
    if found.is_text_too_long:
        _check_length(deps, name, deps.settings.max_text_bytes + 1, at_least=True)
    return found.text


def _checked_text(deps: Deps, name: str, text: str) -> str:
    clean, _ = clean_text(text)
    _check_length(deps, name, len(clean.encode()))
    return clean


def _check_length(deps: Deps, name: str, size_bytes: int, *, at_least: bool = False) -> None:
    if size_bytes > deps.settings.max_text_bytes:
        raise Invalid(
            f"the text of '{name}' has {size_bytes} bytes{' at least' * at_least}, more than "
            f"{deps.settings.max_text_bytes}; cut it up, or raise PPWORKER_MAX_TEXT_BYTES",
            field="text",
        )


def _digest(split: Split, received: Sequence[_Received]) -> str:
    """Hash of what was uploaded where, by which a repeated key is recognised."""
    parts = [
        [each.item.name, each.item.content_sha256, each.item.text_sha256, each.item.metadata]
        for each in received
    ]
    return hashlib.sha256(json.dumps([str(split.id), parts]).encode()).hexdigest()
