"""Duplicates a version: labels, splits, memberships, annotations, states, kept answers and stats.

Items and their files are shared with the source, so a text that a model writes later shows in both.
No job is made. The copy is an operation of kind ``duplicate``: nobody sees a part of it, and it is
whole or it is not there.

The source may change meanwhile. Every item that it had at the beginning, and has when its turn
comes, is copied as it is at that moment, under its lock: never half of a change. Items that are
added later are not.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

from ppworker.domain.events import OperationMoved
from ppworker.domain.job import Status
from ppworker.domain.labels import MAX_NAME
from ppworker.errors import NotFound
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import catalogue
from ppworker.pipeline.transfer import delete
from ppworker.store import duplicates, items, operations
from ppworker.store.db import Tx
from ppworker.store.duplicates import Frame
from ppworker.store.ids import new_id
from ppworker.store.operations import Operation
from ppworker.store.versions import Version

KIND = "duplicate"

_SUFFIX = " copy"


def begin(deps: Deps, source: Version, *, name: str = "", description: str | None = None) -> UUID:
    """Begin to duplicate a version; the operation, whose result names the copy.

    Args:
        deps: the collaborators.
        source: which one.
        name: of the copy; by default the source's and the word copy.
        description: of the copy; by default the source's.

    Raises:
        Invalid: the name or the description breaks the rules.
        NotFound: the source was deleted just now.
    """
    called = catalogue.checked_name(name) if name else _copy_of(source.name)
    about = source.description
    if description is not None:
        about = catalogue.checked_text("description", description)
    operation_id = new_id()

    def work(tx: Tx) -> None:
        frame = duplicates.copy_frame(tx, source, name=called, description=about)
        if frame is None:
            raise _source_gone(source.id)
        total, newest = duplicates.extent(tx, list(frame.splits))
        operations.insert_operation(
            tx,
            operation_id,
            source.user_id,
            kind=KIND,
            arguments={
                "source": str(source.id),
                "target": str(frame.target),
                "newest": str(newest or UUID(int=0)),
                "splits": {str(old): str(new) for old, new in frame.splits.items()},
            },
            dataset_id=source.dataset_id,
            total=total,
        )

    deps.db.transact(work)
    event = OperationMoved(
        operation_id=operation_id, kind=KIND, source=None, to=Status.PENDING, cause="planned"
    )
    deps.emit([event])
    return operation_id


def copy_of(operation: Operation) -> UUID:
    """The version that an operation makes, seen once it is completed."""
    return UUID(str(operation.arguments["target"]))


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of an operation of kind ``duplicate``.

    Raises:
        NotFound: the source or the copy was deleted; what there is of the copy goes too.
    """
    source_id = UUID(str(operation.arguments["source"]))
    frame = _frame(operation.arguments)
    newest = UUID(str(operation.arguments["newest"]))
    with deps.db.look() as tx:
        found = duplicates.next_items(tx, frame, newest=newest, limit=operation.chunk)
    if not deps.db.transact(lambda tx: duplicates.hold(tx, source_id, frame.target)):
        _remove(deps, operation, frame.target)
        raise _source_gone(source_id)
    return partial(_write, operation, source_id, frame, found)


def _write(
    operation: Operation, source_id: UUID, frame: Frame, item_ids: list[UUID], tx: Tx
) -> Chunk:
    if not duplicates.hold(tx, source_id, frame.target):
        # Something came in between: the next turn finds it out again, and cleans up.
        return Chunk(cursor=operation.cursor, done=0, counts={}, is_last=False)
    if not item_ids:
        duplicates.show(tx, frame.target)
        return Chunk(
            cursor=operation.cursor,
            done=0,
            counts={},
            is_last=True,
            result={"version_id": str(frame.target)},
        )
    items.lock_items(tx, item_ids)
    copied = duplicates.copy_items(tx, source_id, frame, item_ids)
    counts = {
        "items": copied.items,
        "annotations": copied.annotations,
        "skipped_new_label": copied.unlabelled,
    }
    return Chunk(
        cursor=operation.cursor,
        done=copied.items,
        counts={word: count for word, count in counts.items() if count},
        is_last=False,
    )


def _remove(deps: Deps, operation: Operation, target_id: UUID) -> None:
    """Have the part of a copy removed that will never be whole; nobody has seen it."""
    if operation.dataset_id is None:
        return
    dataset_id = operation.dataset_id
    deps.db.transact(lambda tx: delete.begin_version(tx, operation.user_id, target_id, dataset_id))


def _frame(arguments: Mapping[str, Any]) -> Frame:
    return Frame(
        target=UUID(str(arguments["target"])),
        splits={UUID(old): UUID(new) for old, new in arguments["splits"].items()},
    )


def _copy_of(name: str) -> str:
    return name[: MAX_NAME - len(_SUFFIX)].rstrip() + _SUFFIX


def _source_gone(source_id: UUID) -> NotFound:
    return NotFound(f"version {source_id} was deleted", field="version")
