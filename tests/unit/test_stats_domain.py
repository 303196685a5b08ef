"""Deltas of label stats."""

from collections import Counter
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from ppworker.domain.stats import StatDelta, deltas, joined, left, merge

ITEMS = [UUID(int=n) for n in range(1, 4)]
SPLITS = [UUID(int=n) for n in range(11, 13)]
LABELS = [UUID(int=n) for n in range(21, 24)]
ITEM, SPLIT, LABEL = ITEMS[0], SPLITS[0], LABELS[0]

label_counts = st.lists(st.sampled_from([*LABELS, None]), max_size=4).map(Counter)
changes = st.tuples(
    st.sampled_from(["annotate", "join", "leave"]),
    st.dictionaries(st.sampled_from(ITEMS), label_counts, min_size=1),
    st.sampled_from(SPLITS),
)


@given(st.lists(changes, max_size=12))
def test_the_deltas_of_any_history_sum_up_to_a_recount(history):
    annotations: dict[UUID, Counter[UUID | None]] = {item: Counter() for item in ITEMS}
    splits: dict[UUID, set[UUID]] = {item: set() for item in ITEMS}
    written = []
    for action, values, split in history:
        if action == "annotate":
            after = {**annotations, **values}
            written += deltas(annotations, after, {i: list(s) for i, s in splits.items()})
            annotations = after
        elif action == "join":
            moving = {item: [split] for item in values if split not in splits[item]}
            written += joined(annotations, moving)
            for item in moving:
                splits[item].add(split)
        else:
            moving = {item: [split] for item in values if split in splits[item]}
            written += left(annotations, moving)
            for item in moving:
                splits[item].discard(split)
    assert merge(written) == recount(annotations, splits)


def recount(annotations, splits):
    """The same figures found in another way: row by row, from their definition."""
    rows = []
    for split in SPLITS:
        members = [annotations[item] for item in ITEMS if split in splits[item]]
        for label in LABELS:
            carriers = [counts[label] for counts in members if counts[label]]
            rows.append(row(split, "label", sum(carriers), len(carriers), label))
        rows.append(row(split, "total", sum(c.total() for c in members), len(members)))
        rows.append(row(split, "unlabelled", 0, sum(not c.total() for c in members)))
    return [r for r in rows if r.annotation_count or r.item_count]


def row(split, bucket, annotations, items, label=None):
    return StatDelta(
        split_id=split,
        bucket=bucket,
        label_id=label,
        annotation_count=annotations,
        item_count=items,
    )


def test_a_first_annotation_labels_the_item():
    assert deltas({}, {ITEM: {LABEL: 2}}, {ITEM: [SPLIT]}) == [
        row(SPLIT, "label", 2, 1, LABEL),
        row(SPLIT, "total", 2, 0),
        row(SPLIT, "unlabelled", 0, -1),
    ]


def test_an_annotation_without_label_counts_in_the_total_alone():
    assert deltas({ITEM: {LABEL: 1}}, {ITEM: {LABEL: 1, None: 1}}, {ITEM: [SPLIT]}) == [
        row(SPLIT, "total", 1, 0)
    ]


def test_a_change_counts_in_each_split_of_the_item_once():
    found = deltas({}, {ITEM: {LABEL: 1}}, {ITEM: [SPLITS[1], SPLITS[0], SPLITS[1]]})
    assert [d.split_id for d in found] == [SPLITS[0]] * 3 + [SPLITS[1]] * 3
    assert {abs(d.item_count) for d in found if d.bucket != "total"} == {1}


def test_no_change_has_no_delta():
    assert deltas({ITEM: {LABEL: 1}}, {ITEM: {LABEL: 1, LABELS[1]: 0}}, {ITEM: [SPLIT]}) == []


def test_an_item_in_no_split_counts_nowhere():
    assert deltas({}, {ITEM: {LABEL: 1}}, {}) == []


def test_joining_and_leaving_cancel_out():
    counts, splits = {ITEM: {LABEL: 3}}, {ITEM: [SPLIT], ITEMS[1]: SPLITS}
    assert merge([*joined(counts, splits), *left(counts, splits)]) == []
