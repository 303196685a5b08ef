"""How many items a list holds, where that is cheap: from label stats, which are exact."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import item_lists
from ppworker.store.db import Tx
from ppworker.store.item_lists import Filters, Scope, Way

COUNTED = 20_000
"""Most items of a version that are counted one by one, where its splits may share some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Items of each split that has any."""

    total: Mapping[UUID, int]
    unlabelled: Mapping[UUID, int]
    labelled: Mapping[UUID, int]
    """Of one label."""
    is_disjoint: bool
    """Whether no item belongs to several splits, so that their counts add up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How long a list is."""

    exactly: int | None = None
    at_most: int | None = None


_READ = sa.text("""
SELECT split_id, bucket, sum(item_count)::bigint AS items FROM (
  SELECT split_id, bucket, label_id, item_count FROM label_stats WHERE split_id = ANY(:splits)
    AND bucket IN ('total', 'unlabelled')
  UNION ALL
  SELECT split_id, bucket, label_id, item_count FROM label_stats
  WHERE split_id = ANY(:splits) AND bucket = 'label' AND label_id = :label
  UNION ALL
  SELECT split_id, bucket, label_id, item_count FROM label_stat_deltas
  WHERE split_id = ANY(:splits) AND (bucket <> 'label' OR label_id = :label)) both_kinds
GROUP BY 1, 2 HAVING sum(item_count) > 0
UNION ALL
(SELECT NULL, 'overlap', 1 FROM split_overlaps WHERE version_id = :version LIMIT 1)
""")


def read_counts(tx: Tx, scope: Scope, label_id: UUID | None) -> Counts:
    """Items of the splits, in all, without annotations, and of that label; one statement."""
    found: dict[str, dict[UUID, int]] = {"total": {}, "unlabelled": {}, "label": {}, "overlap": {}}
    parameters = {
        "splits": list(scope.split_ids), "label": label_id, "version": scope.version_id,
    }  # fmt: skip
    for row in tx.execute(_READ, parameters):
        found[row.bucket][row.split_id] = row.items
    return Counts(
        total=found["total"],
        unlabelled=found["unlabelled"],
        labelled=found["label"],
        is_disjoint=not found["overlap"],
    )


def way_to(counts: Counts, filters: Filters, *, offset: int) -> Way:
    """The cheaper way to a page."""
    split_id = filters.split_id
    here = sum(counts.total.values()) if split_id is None else counts.total.get(split_id, 0)
    # With any filter it is not known how many rows lie behind a page.
    is_whole = filters == Filters(split_id=split_id)
    return Way(
        by_split=split_id is not None and here < sum(counts.labelled.values()),
        is_disjoint=counts.is_disjoint,
        from_end=is_whole and offset > here // 2 and (counts.is_disjoint or split_id is not None),
    )


def size(tx: Tx, scope: Scope, filters: Filters, counts: Counts) -> Size:
    """How many items the filters leave, if that can be told without a walk through many."""
    if filters.is_contradiction:
        return Size(exactly=0)
    if filters.is_bounded:
        return Size()
    found = counts.total
    if filters.only_unlabelled:
        found = counts.unlabelled
    elif filters.label_id is not None:
        found = counts.labelled
    if filters.split_id is not None:
        return Size(exactly=found.get(filters.split_id, 0))
    if counts.is_disjoint or len(found) <= 1:
        return Size(exactly=sum(found.values()))
    if sum(counts.total.values()) <= COUNTED:
        return Size(exactly=item_lists.count_page(tx, scope, filters, most=COUNTED))
    return Size(at_most=sum(found.values()))
