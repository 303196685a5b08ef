"""One item at a time, as a client makes it: first the item, then its file, then another file.

An item that has neither text nor file plans no job; its first file does. A file in place of
another one has every matching post-processor run again: what runs now is asked to, what waits
sees the new file anyway, and what is over gets a new job.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from ppworker.domain.measurements import JobsDeduplicated
from ppworker.domain.post_processor import ItemFacts, PostProcessor, plan_jobs
from ppworker.domain.text import clean_text
from ppworker.errors import Invalid, NotFound, TooLarge
from ppworker.pipeline.control import operate
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.uploads import ingest
from ppworker.pipeline.uploads.names import extension_of, shown_name
from ppworker.store import blobs, datasets, items, job_operations, jobs, post_processors
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id

_MAX_DESCRIPTION = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An item to be, without its file."""

    name: str = ""
    description: str = ""
    text: str = ""
    extension: str = ""
    """With or without its dot."""


def _nothing(tx: Tx, item_id: UUID) -> None:
    """Nothing else is written."""


def create(
    deps: Deps,
    splits: Sequence[Split],
    draft: Draft,
    *,
    also_write: Callable[[Tx, UUID], None] = _nothing,
) -> UUID:
    """Make an item in splits of one version; with text, its jobs are planned with it.

    Args:
        deps: the collaborators.
        splits: where it goes, one at least.
        draft: what it is.
        also_write: writes what belongs to the new item, in the transaction that makes it.

    Raises:
        Invalid: something of it breaks a rule.
    """
    item = _new_item(deps, splits[0], draft)

    def work(tx: Tx) -> tuple[list[jobs.NewJob], list[PostProcessor]]:
        _, planned, processors = ingest.write_items(tx, splits[0], [item], also=splits[1:])
        also_write(tx, item.id)
        return planned, processors

    planned, processors = deps.db.transact(work)
    ingest.announce_planned(deps, planned, processors)
    return item.id


def _new_item(deps: Deps, split: Split, draft: Draft) -> items.NewItem:
    text = checked_text(deps, draft.text)
    return items.NewItem(
        id=new_id(),
        dataset_id=split.dataset_id,
        user_id=split.user_id,
        name=shown_name(draft.name),
        description=checked_description(draft.description),
        text=text or None,
        extension=checked_extension(draft.extension) or ("txt" if text else ""),
        media_type="text/plain" if text else "",
    )


def checked_text(deps: Deps, given: str) -> str:
    """A text as an item may have it.

    Raises:
        TooLarge: it is longer than a text may be.
    """
    text, _ = clean_text(given)
    size, most = len(text.encode()), deps.settings.max_text_bytes
    if size > most:
        raise TooLarge(
            f"has {size} bytes, more than {most}; cut it up, or raise PPWORKER_MAX_TEXT_BYTES",
            field="text",
        )
    return text


def checked_description(given: str) -> str:
    """A description as an item may have it.

    Raises:
        Invalid: it is too long.
    """
    description, _ = clean_text(given)
    if len(description) > _MAX_DESCRIPTION:
        raise Invalid(f"has at most {_MAX_DESCRIPTION} characters", field="description")
    return description


def checked_extension(given: str) -> str:
    """An extension as it is stored, whether it was given with its dot or without.

    Raises:
        Invalid: it looks like none.
    """
    bare = given.strip().removeprefix(".")
    extension = extension_of(f"item.{bare}")
    if bare and not extension:
        raise Invalid(f"'{bare}' is no extension; write one like png", field="extension")
    return extension


@dataclass(frozen=True, slots=True, kw_only=True)
class _Put:
    """What a file did to an item's jobs."""

    planned: list[jobs.NewJob]
    processors: list[PostProcessor]
    cancelled: list[job_operations.Cancelled]
    woken: set[UUID]
    anew: list[str]
    """Post-processors whose job lived already and runs on the new file."""


def put_file(deps: Deps, version_id: UUID, item_id: UUID, path: Path, *, name: str) -> None:
    """Give an item its file, or another one, and plan the jobs that follow in that version.

    The item may belong to further versions: its file is theirs too, but no job of theirs is made.

    Args:
        deps: the collaborators.
        version_id: through which version the file comes.
        item_id: of an item of that version; whose it is is the caller's to know.
        path: the file, inside the blob store; it is taken away from there.
        name: as the client calls it.

    Raises:
        NotFound: the item is not in the version any more.
        Invalid: its text is longer than a text may be.
    """
    with deps.db.look() as tx:
        splits = _splits(tx, version_id, item_id)
    file = ingest.file_item(deps, splits[0], path, name=name)
    sha256 = str(file.content_sha256)
    deps.blobs.keep(path, sha256)

    def work(tx: Tx) -> _Put:
        locked = items.lock_items(tx, [item_id]).get(item_id)
        if locked is None or locked.deleted_at is not None:
            raise _gone(item_id)
        splits = _splits(tx, version_id, item_id)
        blobs.insert_blobs(tx, {sha256: file.size_bytes or 0})
        before = items.find_media_type(tx, item_id)
        # The text of a file goes with the file; what a person or a model wrote stays.
        was_text = locked.content_sha256 is not None and before in ingest.OWN_TEXT
        has_text = items.put_file(tx, item_id, file, drop_text=was_text)
        facts = ItemFacts(
            extension=file.extension,
            media_type=file.media_type,
            has_file=True,
            has_text=has_text,
            split_names=frozenset(split.name for split in splits),
        )
        return _plan(tx, splits[0], item_id, facts)

    put = deps.db.transact(work)
    anew = [JobsDeduplicated(post_processor=name, jobs=1) for name in put.anew]
    deps.emit([*(operate.cancelled_event(job) for job in put.cancelled), *anew])
    ingest.announce_planned(deps, put.planned, put.processors)
    deps.hint(put.woken)


def _plan(tx: Tx, split: Split, item_id: UUID, facts: ItemFacts) -> _Put:
    """Have everything run that matches the locked item as it is now."""
    processors = post_processors.list_post_processors(tx, split.dataset_id)
    matched = plan_jobs(facts, processors)
    wanted = {processor.id for processor in matched}
    live = job_operations.find_live_of_item(tx, item_id, split.version_id)
    planned = [
        jobs.NewJob(
            id=new_id(),
            post_processor_id=processor.id,
            item_id=item_id,
            version_id=split.version_id,
            user_id=split.user_id,
            order=processor.order,
            ready=False,
            max_attempts=processor.max_attempts,
        )
        for processor in matched
        if processor.id not in live
    ]
    jobs.insert_jobs(tx, planned)
    # Jobs of a disabled post-processor wait for it; those that cannot read the file any more go.
    misfits = [live[p.id] for p in processors if p.enabled and p.id in live.keys() - wanted]
    cancelled = job_operations.cancel(tx, misfits)
    woken = jobs.recompute_ready(tx, [item_id])
    job_operations.begin_anew(tx, [job_id for id_, job_id in live.items() if id_ in wanted])
    return _Put(
        planned=planned,
        processors=processors,
        cancelled=cancelled,
        woken=woken | (live.keys() & wanted),
        anew=[processor.name for processor in matched if processor.id in live],
    )


def _splits(tx: Tx, version_id: UUID, item_id: UUID) -> list[Split]:
    found = datasets.list_splits_of_item(tx, version_id, item_id)
    if not found:
        raise _gone(item_id)
    return found


def _gone(item_id: UUID) -> NotFound:
    return NotFound(f"no item {item_id}", field="item")
