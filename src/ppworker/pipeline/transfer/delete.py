"""Deletes datasets, versions, splits, labels and items.

Everything but an item is marked in one short transaction, which makes it invisible and its name
free; what is beneath it goes in an operation of kind ``delete``, chunk by chunk. Each chunk looks
anew at what is left, so that any number of them may die: there is no place to lose. Items that
other versions share stay there. An item goes at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import UUID

from ppworker.domain.events import OperationMoved
from ppworker.domain.job import Status
from ppworker.errors import NotFound
from ppworker.pipeline.control.operations import Chunk, Write
from ppworker.pipeline.deps import Deps
from ppworker.store import deletions, items, operations, stats
from ppworker.store.datasets import Dataset, Split
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.labels import Label
from ppworker.store.operations import Operation
from ppworker.store.versions import Version

KIND = "delete"

What = Literal["user", "dataset", "version", "split", "label"]

_LABELS = 100
"""Labels whose annotations one chunk looks for."""


def dataset(deps: Deps, found: Dataset) -> Operation:
    """Delete a dataset with all that is in it; its post-processors run no more.

    Raises:
        NotFound: somebody else just did.
    """

    def mark(tx: Tx) -> UUID:
        total = _count_members(tx, deletions.splits_of_dataset(tx, found.id))
        if not deletions.mark_datasets(tx, [found.id]):
            raise _gone("dataset", found.id)
        return _begin(tx, found.user_id, "dataset", found.id, found.id, total=total)

    return _marked(deps, found.user_id, deps.db.transact(mark))


def version(deps: Deps, found: Version) -> Operation:
    """Delete a version with all that is in it but the items that other versions share.

    Raises:
        NotFound: somebody else just did.
    """

    def mark(tx: Tx) -> UUID:
        total = _count_members(tx, deletions.splits_of(tx, found.id))
        if not deletions.mark_version(tx, found.id):
            raise _gone("version", found.id)
        return _begin(tx, found.user_id, "version", found.id, found.dataset_id, total=total)

    return _marked(deps, found.user_id, deps.db.transact(mark))


def split(deps: Deps, found: Split) -> Operation:
    """Delete a split; items that are in no other one go with it.

    Raises:
        NotFound: somebody else just did.
    """

    def mark(tx: Tx) -> UUID:
        total = _count_members(tx, [found.id])
        if not deletions.mark_split(tx, found.version_id, found.id):
            raise _gone("split", found.id)
        return _begin(tx, found.user_id, "split", found.id, found.dataset_id, total=total)

    return _marked(deps, found.user_id, deps.db.transact(mark))


def label(deps: Deps, parent: Version, found: Label) -> Operation:
    """Delete a label with its annotations.

    Raises:
        NotFound: somebody else just did.
    """

    def mark(tx: Tx) -> UUID:
        if not deletions.mark_label(tx, parent.id, found.id):
            raise _gone("label", found.id)
        return _begin(tx, parent.user_id, "label", found.id, parent.dataset_id)

    return _marked(deps, parent.user_id, deps.db.transact(mark))


def item(deps: Deps, parent: Split, item_id: UUID) -> None:
    """Take an item out of a split.

    In no other split of that version, it loses what it was there; in no split of any version, it
    goes altogether, with its jobs: a model that runs on it is refused its answer.

    Raises:
        NotFound: it is not in that split.
    """

    def work(tx: Tx) -> None:
        items.lock_items(tx, [item_id])
        if not deletions.leave(tx, [item_id], [parent.id]).memberships:
            raise _gone("item", item_id)

    deps.db.transact(work)


def mark_user(tx: Tx, user_id: UUID) -> UUID:
    """Mark all datasets of a user, and begin to delete them and the user's models; the operation.

    For whoever deletes the account, in the same transaction.
    """
    deletions.mark_datasets(tx, deletions.find_datasets_of(tx, user_id))
    return _begin(tx, user_id, "user", user_id, None)


def begin_version(tx: Tx, user_id: UUID, version_id: UUID, dataset_id: UUID) -> UUID:
    """Begin to remove a version that is marked already, such as a copy that was never finished."""
    return _begin(tx, user_id, "version", version_id, dataset_id)


def _begin(
    tx: Tx, user_id: UUID, what: What, id_: UUID, dataset_id: UUID | None, total: int | None = None
) -> UUID:
    operation_id = new_id()
    operations.insert_operation(
        tx,
        operation_id,
        user_id,
        kind=KIND,
        arguments={"what": what, "id": str(id_)},
        dataset_id=dataset_id,
        total=total,
    )
    return operation_id


def _marked(deps: Deps, user_id: UUID, operation_id: UUID) -> Operation:
    event = OperationMoved(
        operation_id=operation_id, kind=KIND, source=None, to=Status.PENDING, cause="planned"
    )
    deps.emit([event])
    with deps.db.look() as tx:
        found = operations.find_operation(tx, user_id, operation_id)
    if found is None:
        raise _gone("operation", operation_id)
    return found


def _count_members(tx: Tx, split_ids: Sequence[UUID]) -> int:
    """Memberships in splits, as their stats know it without counting."""
    rows = stats.read_stats(tx, split_ids)
    return sum(row.item_count for row in rows if row.bucket == "total")


def _gone(what: str, id_: UUID) -> NotFound:
    return NotFound(f"there is no {what} '{id_}' any more", field=what)


# The operation.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """What the next chunk is about: one of these, or nothing."""

    members: tuple[list[UUID], list[UUID]] | None = None
    """Items, and the splits they are taken out of."""
    carriers: tuple[UUID, list[UUID], list[UUID]] | None = None
    """A version, items of it, and the labels they lose."""
    labels: tuple[UUID, list[UUID]] | None = None
    """A version, and labels that nothing has."""
    row: tuple[What, UUID] | None = None
    """What can go itself, with nothing beneath it."""
    is_last: bool = False
    """Whether that ends the operation."""


def step(deps: Deps, operation: Operation) -> Write:
    """Prepare the next chunk of an operation of kind ``delete``."""
    id_ = UUID(str(operation.arguments["id"]))
    what = str(operation.arguments["what"])
    with deps.db.look() as tx:
        left = _FINDERS[what](tx, id_, operation.chunk)
    return partial(_write, operation, left)


def _write(operation: Operation, left: _Left, tx: Tx) -> Chunk:
    done, counts, is_over = _remove(tx, left)
    return Chunk(
        cursor=operation.cursor,
        done=done,
        counts={word: count for word, count in counts.items() if count},
        is_last=left.is_last and is_over,
    )


def _remove(tx: Tx, left: _Left) -> tuple[int, Mapping[str, int], bool]:
    """Units of work, what went by word, and whether nothing came in between."""
    if left.members:
        item_ids, split_ids = left.members
        items.lock_items(tx, item_ids)
        gone = deletions.leave(tx, item_ids, split_ids)
        counts = {"memberships": gone.memberships, "items": gone.items, "jobs": gone.jobs}
        return gone.memberships, counts, True
    if left.carriers:
        version_id, item_ids, label_ids = left.carriers
        items.lock_items(tx, item_ids)
        stripped = deletions.strip(tx, version_id, item_ids, label_ids)
        return len(item_ids), {"annotations": stripped}, True
    if left.labels:
        version_id, label_ids = left.labels
        is_over = deletions.remove_labels(tx, version_id, label_ids)
        return 0, {"labels": len(label_ids) * is_over}, is_over
    if left.row:
        what, id_ = left.row
        is_over = _REMOVERS[what](tx, id_)
        return 0, {f"{what}s": int(is_over)}, is_over
    return 0, {}, True


_REMOVERS = {
    "user": deletions.forget_user,
    "split": lambda tx, id_: deletions.remove_splits(tx, [id_]),
    "version": deletions.remove_version,
    "dataset": deletions.empty_dataset,
}


def _of_user(tx: Tx, id_: UUID, limit: int) -> _Left:
    found = deletions.next_dataset(tx, id_)
    if found is None:
        return _Left(row=("user", id_), is_last=True)
    return _of_dataset(tx, found, limit, is_last=False)


def _of_dataset(tx: Tx, id_: UUID, limit: int, *, is_last: bool = True) -> _Left:
    if not deletions.is_marked(tx, "dataset", id_):
        return _Left(is_last=is_last)
    found = deletions.next_version(tx, id_)
    if found is not None:
        return _of_version(tx, found, limit, is_last=False)
    # Every item is in a split; but should one be lost, it goes all the same.
    if lost := deletions.items_of(tx, id_, limit=limit):
        return _Left(members=(lost, []))
    return _Left(row=("dataset", id_), is_last=is_last)


def _of_version(tx: Tx, id_: UUID, limit: int, *, is_last: bool = True) -> _Left:
    if not deletions.is_marked(tx, "version", id_):
        return _Left(is_last=is_last)
    splits = deletions.splits_of(tx, id_)
    if found := deletions.members(tx, splits, limit=limit):
        return _Left(members=(found, splits))
    labels = deletions.labels_of(tx, id_, limit=_LABELS)
    if found := deletions.carriers(tx, labels, limit=limit):
        return _Left(carriers=(id_, found, labels))
    if labels:
        return _Left(labels=(id_, labels))
    return _Left(row=("version", id_), is_last=is_last)


def _of_split(tx: Tx, id_: UUID, limit: int) -> _Left:
    if not deletions.is_marked(tx, "split", id_):
        return _Left(is_last=True)
    if found := deletions.members(tx, [id_], limit=limit):
        return _Left(members=(found, [id_]))
    return _Left(row=("split", id_), is_last=True)


def _of_label(tx: Tx, id_: UUID, limit: int) -> _Left:
    version_id = deletions.version_of_label(tx, id_)
    if version_id is None:
        return _Left(is_last=True)
    if found := deletions.carriers(tx, [id_], limit=limit):
        return _Left(carriers=(version_id, found, [id_]))
    return _Left(labels=(version_id, [id_]), is_last=True)


_FINDERS = {
    "user": _of_user,
    "dataset": _of_dataset,
    "version": _of_version,
    "split": _of_split,
    "label": _of_label,
}
