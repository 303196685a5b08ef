"""An upload becomes items and their pending jobs, in one transaction: all of it or nothing."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from ppworker.domain import stats as stat_rule
from ppworker.domain.events import Event, JobMoved
from ppworker.domain.job import Status
from ppworker.domain.post_processor import ItemFacts, PostProcessor, first_order, plan_jobs
from ppworker.domain.text import clean_text
from ppworker.errors import Conflict, Invalid
from ppworker.pipeline import media
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.names import clean_name
from ppworker.store import blobs, idempotency, items, jobs, post_processors, stats
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id

TEXT_TYPES = ("text/plain", "text/markdown")
"""Media types whose bytes are the item's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One thing to become an item: a local file, or text, or both."""

    name: str
    path: Path | None = None
    text: str | None = None
    metadata: str = ""


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
    priority: int = 0,
) -> Taken:
    """Store uploads as items of a split and plan a job for each post-processor that matches.

    Args:
        split: where the items go; its owner becomes theirs.
        key: idempotency key; the same key with the same uploads returns the first items.
        priority: 0 for interactive uploads, 1 for bulk.

    Raises:
        Invalid: an upload breaks a limit; names it. Nothing is written.
        Conflict: the key was used for other uploads.
    """
    with ExitStack() as temporary:
        received = [_receive(deps, temporary, split, upload) for upload in uploads]
        digest = _digest(split, received)
        for each in received:
            if each.path and each.item.content_sha256:
                deps.blobs.keep(each.path, each.item.content_sha256)

        def write(tx: Tx) -> tuple[Taken, list[jobs.NewJob], list[PostProcessor]]:
            if key is not None and (first := _first_time(tx, split, key, digest, received)):
                return first, [], []
            return _write(tx, split, [each.item for each in received], priority)

        taken, planned, processors = deps.db.transact(write)
    announce_planned(deps, planned, processors)
    return taken


def announce_planned(
    deps: Deps, planned: Sequence[jobs.NewJob], processors: Iterable[PostProcessor]
) -> None:
    """Say after COMMIT which jobs there are, and wake workers for those that are ready."""
    names = {processor.id: processor.name for processor in processors}
    events: list[Event] = [
        JobMoved(
            job_id=job.id,
            item_id=job.item_id,
            post_processor=names[job.post_processor_id],
            attempt=0,
            lease_token=0,
            source=None,
            to=Status.PENDING,
            cause="planned",
        )
        for job in planned
    ]
    deps.emit(events)
    deps.hint({job.post_processor_id for job in planned if job.ready})


def plan(
    item: items.NewItem, split: Split, processors: Sequence[PostProcessor], *, priority: int
) -> list[jobs.NewJob]:
    """The jobs an item gets; those of the lowest order are ready at once."""
    facts = ItemFacts(
        extension=item.extension,
        media_type=item.media_type,
        has_file=item.content_sha256 is not None,
        has_text=bool(item.text),
        split_names=frozenset({split.name}),
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


def _write(
    tx: Tx, split: Split, new: Sequence[items.NewItem], priority: int
) -> tuple[Taken, list[jobs.NewJob], list[PostProcessor]]:
    processors = post_processors.list_post_processors(tx, split.dataset_id)
    planned = [job for item in new for job in plan(item, split, processors, priority=priority)]
    blobs.insert_blobs(
        tx, {i.content_sha256: i.size_bytes or 0 for i in new if i.content_sha256 is not None}
    )
    items.insert_items(tx, new)
    items.insert_memberships(tx, [(split.id, item.id, split.version_id) for item in new])
    jobs.insert_jobs(tx, planned)
    nothing_yet: dict[UUID, dict[UUID | None, int]] = {item.id: {} for item in new}
    stats.append_deltas(tx, stat_rule.joined(nothing_yet, {item.id: [split.id] for item in new}))
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


def _receive(deps: Deps, temporary: ExitStack, split: Split, upload: Upload) -> _Received:
    text = upload.text
    if upload.path is None:
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
    with upload.path.open("rb") as source:
        path = temporary.enter_context(
            deps.blobs.receive(source, limit=deps.settings.max_file_bytes)
        )
    found = media.inspect(path, upload.name)
    if text is None and found.media_type in TEXT_TYPES:
        text = _text_of(deps, path, upload.name, found.size_bytes)
    item = items.NewItem(
        id=new_id(),
        dataset_id=split.dataset_id,
        user_id=split.user_id,
        name=clean_name(upload.name),
        text=None if text is None else _checked_text(deps, upload.name, text),
        extension=found.extension,
        media_type=found.media_type,
        content_sha256=found.sha256,
        size_bytes=found.size_bytes,
        width=found.width,
        height=found.height,
        page_count=found.page_count,
        metadata=upload.metadata,
    )
    return _Received(item, path)


def _text_of(deps: Deps, path: Path, name: str, size_bytes: int) -> str:
    _check_length(deps, name, size_bytes)
    return path.read_bytes().decode("utf-8-sig")


def _checked_text(deps: Deps, name: str, text: str) -> str:
    clean, _ = clean_text(text)
    _check_length(deps, name, len(clean.encode()))
    return clean


def _check_length(deps: Deps, name: str, size_bytes: int) -> None:
    if size_bytes > deps.settings.max_text_bytes:
        raise Invalid(
            f"the text of '{name}' has {size_bytes} bytes, more than "
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
