"""Computes what a change does to label stats, as signed deltas that cost no more than the change.

A split's stats count the annotations of its member items. Adding up all deltas ever made gives
what a recount would find.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar
from uuid import UUID

K = TypeVar("K", bound=Hashable)
Bucket = Literal["label", "unlabelled", "total"]
LabelCounts = Mapping[UUID | None, int] | Mapping[UUID, int]
"""Annotations of one item per label; None stands for annotations without a label."""

_NIL = UUID(int=0)
_Frozen = frozenset[tuple[UUID | None, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatDelta:
    """Signed change of one row of label stats.

    Of bucket ``label`` the annotations with the label and the items that carry it; of
    ``unlabelled`` the items without any annotation (annotations stay 0); of ``total`` all
    annotations and all items of the split.
    """

    split_id: UUID
    bucket: Bucket
    label_id: UUID | None = None
    """Set in bucket ``label`` only."""
    annotation_count: int
    item_count: int


def deltas(
    before: Mapping[K, LabelCounts],
    after: Mapping[K, LabelCounts],
    splits: Mapping[K, Sequence[UUID]],
) -> list[StatDelta]:
    """Change of stats when annotations of items change and their splits do not.

    Args:
        before: label counts by item, or by item and version; a missing one has no annotations.
        after: the same once the change is made.
        splits: splits of each item; an item in no split counts nowhere.

    Returns:
        One delta for each row that changes, sorted by split, bucket and label.
    """
    # Most items of a batch change alike, so equal changes are worked out once.
    alike: Counter[tuple[frozenset[UUID], _Frozen, _Frozen]] = Counter(
        (
            frozenset(splits.get(item_id, ())),
            frozenset(before.get(item_id, {}).items()),
            frozenset(after.get(item_id, {}).items()),
        )
        for item_id in before.keys() | after.keys()
    )
    parts: list[StatDelta] = []
    for (split_ids, old, new), times in alike.items():
        for split_id in split_ids:
            parts += _member(split_id, dict(old), sign=-times)
            parts += _member(split_id, dict(new), sign=times)
    return merge(parts)


def joined(
    counts: Mapping[UUID, LabelCounts], splits: Mapping[UUID, Sequence[UUID]]
) -> list[StatDelta]:
    """Change of stats when items become members of splits.

    From nothing, this is the recount.

    Args:
        counts: label counts by item; a missing item has no annotations.
        splits: for each item the splits it joins.
    """
    return _membership(counts, splits, sign=1)


def left(
    counts: Mapping[UUID, LabelCounts], splits: Mapping[UUID, Sequence[UUID]]
) -> list[StatDelta]:
    """Change of stats when items cease to be members of splits; the inverse of `joined`."""
    return _membership(counts, splits, sign=-1)


def merge(parts: Iterable[StatDelta]) -> list[StatDelta]:
    """Sum of deltas per row, without rows that do not change, sorted by split, bucket and label."""
    annotations: Counter[tuple[UUID, Bucket, UUID | None]] = Counter()
    items: Counter[tuple[UUID, Bucket, UUID | None]] = Counter()
    for part in parts:
        key = (part.split_id, part.bucket, part.label_id)
        annotations[key] += part.annotation_count
        items[key] += part.item_count
    return [
        StatDelta(
            split_id=key[0],
            bucket=key[1],
            label_id=key[2],
            annotation_count=annotations[key],
            item_count=items[key],
        )
        for key in sorted(annotations, key=lambda key: (key[0], key[1], key[2] or _NIL))
        if annotations[key] or items[key]
    ]


def _membership(
    counts: Mapping[UUID, LabelCounts], splits: Mapping[UUID, Sequence[UUID]], *, sign: int
) -> list[StatDelta]:
    return merge(
        part
        for item_id, split_ids in splits.items()
        for split_id in set(split_ids)
        for part in _member(split_id, counts.get(item_id, {}), sign=sign)
    )


def _member(split_id: UUID, counts: LabelCounts, *, sign: int) -> Iterator[StatDelta]:
    """All that one item adds to the stats of one of its splits, times the sign."""
    total = 0
    for label_id, count in counts.items():
        if count <= 0:
            continue
        total += count
        if label_id is not None:
            yield StatDelta(
                split_id=split_id,
                bucket="label",
                label_id=label_id,
                annotation_count=sign * count,
                item_count=sign,
            )
    if not total:
        yield StatDelta(split_id=split_id, bucket="unlabelled", annotation_count=0, item_count=sign)
    yield StatDelta(
        split_id=split_id, bucket="total", annotation_count=sign * total, item_count=sign
    )
