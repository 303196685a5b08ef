"""Holds items while people's edits change their annotations, and keeps their label stats exact.

The items' locks are the first statement of every edit. What is decided on is read after them, and
the stats change by the difference of what stood before and after: whatever an edit does in
between, it cannot forget a delta.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from uuid import UUID

from ppworker.domain import stats as stat_rule
from ppworker.store import edits, items, stats
from ppworker.store.db import Tx


@contextmanager
def held(tx: Tx, version_id: UUID, item_ids: Collection[UUID]) -> Iterator[None]:
    """Lock items, let their annotations in a version be changed, and record what that did to stats.

    Items that are not there are left out; whether one is there the edit must ask itself, after.
    """
    items.lock_items(tx, list(item_ids))
    with counted(tx, version_id, item_ids):
        yield


@contextmanager
def counted(tx: Tx, version_id: UUID, item_ids: Collection[UUID]) -> Iterator[None]:
    """The same for items that nobody else can see yet, or that are locked already."""
    before = edits.count_labels(tx, version_id, item_ids)
    yield
    after = edits.count_labels(tx, version_id, item_ids)
    if before == after:
        return
    splits = items.read_splits(tx, [(item_id, version_id) for item_id in item_ids])
    by_item = {item_id: found for (item_id, _), found in splits.items()}
    stats.append_deltas(tx, stat_rule.deltas(before, after, by_item))
