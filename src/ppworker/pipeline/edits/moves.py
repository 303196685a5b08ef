"""Moves items from one split of a version to another, annotations and all.

No job is planned by it, and none ends: what a model said, and says yet, stays with the item. A
finish that is under way counts in the splits that the item is in when the finish has its lock.
"""

from collections.abc import Collection
from typing import Literal
from uuid import UUID

from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.store import items, splits, stats
from ppworker.store.datasets import Split
from ppworker.store.db import Tx

MOST = 1_000
"""Most items that one transaction moves."""


def move(deps: Deps, item_ids: Collection[UUID], *, source: Split, to: Split) -> int:
    """Move items out of one split into another of the same version; all of them or none.

    One that is in both already only leaves the first. Moved once more, it is not found.

    Args:
        deps: the collaborators.
        item_ids: at most `MOST`.
        source: where they are.
        to: where they go.

    Returns:
        How many were moved.

    Raises:
        Invalid: the splits are the same, or of two versions.
        NotFound: an item is not in the source, or the target was deleted.
    """
    if source.id == to.id:
        raise Invalid("they are in that split already", field="to")
    if source.version_id != to.version_id:
        raise Invalid("is a split of another version", field="to")
    wanted = set(item_ids)

    def work(tx: Tx) -> None:
        items.lock_items(tx, list(wanted))
        pairs = [(item_id, source.version_id) for item_id in wanted]
        there = items.read_splits(tx, pairs)
        for item_id in sorted(wanted):
            if source.id not in there.get((item_id, source.version_id), ()):
                raise NotFound(f"split '{source.name}' has no item '{item_id}'", field="item_ids")
        splits.hold_splits(tx, [to.id])
        new = [id_ for id_, version_id in pairs if to.id not in there[id_, version_id]]
        # Joined before it is left: an item is in one of them at any moment.
        items.insert_memberships(tx, [(to.id, id_, to.version_id) for id_ in new])
        _count(tx, new, to, 1)
        _count(tx, wanted, source, -1)
        items.remove_memberships(tx, source.id, list(wanted))

    if wanted:
        deps.db.transact(work)
    return len(wanted)


def _count(tx: Tx, item_ids: Collection[UUID], split: Split, sign: Literal[1, -1]) -> None:
    if item_ids:
        stats.append_members(tx, item_ids, [split.id], sign=sign)
