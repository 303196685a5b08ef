"""Takes datasets, versions, splits, labels and items away: marked at once, removed step by step.

A mark is a short transaction; whoever reads leaves out what is marked. Removing goes in chunks: the
items of a chunk are locked first, in a statement of its own, and stats stay exact at every commit.
A row that others may point at goes last, locked against them, when nothing points at it any more.
Of a dataset a bare row stays, with its post-processors, for what names them for ever.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk, job_removal, stats
from ppworker.store.db import Tx


def _sql(words: str) -> sa.TextClause:
    """A statement about ``:ids``, which ``AMONG`` compares with."""
    return sa.text(words.replace("AMONG", "= ANY(CAST(:ids AS uuid[]))"))


def _run(tx: Tx, statement: sa.TextClause, ids: Collection[UUID]) -> int:
    return tx.execute(statement, {"ids": bulk.uuids(bulk.in_order(ids))}).rowcount


def _ids(tx: Tx, statement: sa.TextClause, ids: Collection[UUID], limit: int = 0) -> list[UUID]:
    values: dict[str, object] = {"ids": bulk.uuids(bulk.in_order(ids))}
    return list(tx.execute(statement, values | ({"limit": limit} if limit else {})).scalars())


_MARK_DATASETS = [
    _sql(statement)
    for statement in (
        "UPDATE datasets SET deleted_at = now() WHERE id AMONG AND deleted_at IS NULL",
        (
            "UPDATE dataset_versions SET deleted_at = now() "
            "WHERE dataset_id AMONG AND deleted_at IS NULL"
        ),
        (
            "UPDATE dataset_splits s SET deleted_at = now() FROM dataset_versions v "
            "WHERE v.id = s.version_id AND v.dataset_id AMONG AND s.deleted_at IS NULL"
        ),
        # Nobody claims their jobs from now on.
        (
            "UPDATE post_processors SET deleted_at = now(), enabled = false "
            "WHERE dataset_id AMONG AND deleted_at IS NULL"
        ),
    )
]


def mark_datasets(tx: Tx, ids: Collection[UUID]) -> int:
    """Mark datasets with all that is in them; their names are free again. Returns how many were
    not marked yet."""
    marked = [_run(tx, statement, ids) for statement in _MARK_DATASETS]
    return marked[0]


def find_datasets_of(tx: Tx, user_id: UUID) -> list[UUID]:
    """Live datasets of a user."""
    rows = tx.execute(
        _sql("SELECT id FROM datasets WHERE user_id = :user AND deleted_at IS NULL"),
        {"user": user_id},
    )
    return list(rows.scalars())


_MARK_VERSION = [
    _sql(statement)
    for statement in (
        "UPDATE dataset_versions SET deleted_at = now() WHERE id AMONG AND deleted_at IS NULL",
        (
            "UPDATE dataset_splits SET deleted_at = now() "
            "WHERE version_id AMONG AND deleted_at IS NULL"
        ),
    )
]


def mark_version(tx: Tx, version_id: UUID) -> bool:
    """Mark a version with its splits; false where it was marked before."""
    marked = [_run(tx, statement, [version_id]) for statement in _MARK_VERSION]
    return marked[0] > 0


_UNSET_DEFAULT = _sql(
    "UPDATE dataset_versions SET default_split = NULL WHERE default_split AMONG AND id = :version"
)
# No name of a split that people give holds a slash.
_MARK_SPLIT = _sql("""
UPDATE dataset_splits SET deleted_at = now(), name = '/' || CAST(id AS text)
WHERE id AMONG AND deleted_at IS NULL""")


def mark_split(tx: Tx, version_id: UUID, split_id: UUID) -> bool:
    """Mark a split, whose name is free again then; waits for items that are put into it now."""
    tx.execute(_UNSET_DEFAULT, {"ids": bulk.uuids([split_id]), "version": version_id})
    return _run(tx, _MARK_SPLIT, [split_id]) > 0


_LOCK_VERSION = _sql("SELECT id FROM dataset_versions WHERE id AMONG FOR NO KEY UPDATE")
# Its index is taken from below, where no other label has one.
_MARK_LABEL = _sql("""
UPDATE labels l SET deleted_at = now(), normalised_name = chr(1) || CAST(l.id AS text),
  "index" = (SELECT least(min(o."index"), 0) - 1 FROM labels o WHERE o.version_id = l.version_id)
WHERE l.id AMONG AND l.deleted_at IS NULL""")


def mark_label(tx: Tx, version_id: UUID, label_id: UUID) -> bool:
    """Mark a label, whose name and index are free again then; waits for whoever attaches it now."""
    _run(tx, _LOCK_VERSION, [version_id])
    return _run(tx, _MARK_LABEL, [label_id]) > 0


_NEXT_DATASET = _sql(
    "SELECT id FROM datasets WHERE user_id = :user AND deleted_at IS NOT NULL AND name <> '' "
    "ORDER BY id LIMIT 1"
)
_IS_MARKED = {
    "dataset": _sql(
        "SELECT id FROM datasets WHERE id AMONG AND deleted_at IS NOT NULL AND name <> ''"
    ),
    "version": _sql("SELECT id FROM dataset_versions WHERE id AMONG AND deleted_at IS NOT NULL"),
    "split": _sql("SELECT id FROM dataset_splits WHERE id AMONG AND deleted_at IS NOT NULL"),
    "label": _sql("SELECT id FROM labels WHERE id AMONG AND deleted_at IS NOT NULL"),
}
_NEXT_VERSION = _sql("SELECT id FROM dataset_versions WHERE dataset_id AMONG ORDER BY id LIMIT 1")
_SPLITS_OF = _sql("SELECT id FROM dataset_splits WHERE version_id AMONG ORDER BY id")
_SPLITS_OF_DATASET = _sql("""
SELECT s.id FROM dataset_splits s JOIN dataset_versions v ON v.id = s.version_id
WHERE v.dataset_id AMONG ORDER BY s.id""")
_LABELS_OF = _sql("SELECT id FROM labels WHERE version_id AMONG ORDER BY id LIMIT :limit")
_VERSION_OF = _sql("SELECT version_id FROM labels WHERE id AMONG")


def next_dataset(tx: Tx, user_id: UUID) -> UUID | None:
    """A dataset of the user that is marked and not empty yet."""
    found = tx.execute(_NEXT_DATASET, {"user": user_id}).scalar_one_or_none()
    return None if found is None else UUID(str(found))


def is_marked(tx: Tx, kind: str, id_: UUID) -> bool:
    """Whether something marked is still there; of a dataset, whether it is not empty yet."""
    return bool(_ids(tx, _IS_MARKED[kind], [id_]))


def next_version(tx: Tx, dataset_id: UUID) -> UUID | None:
    """A version of a dataset, None when it has none any more."""
    return next(iter(_ids(tx, _NEXT_VERSION, [dataset_id])), None)


def version_of_label(tx: Tx, label_id: UUID) -> UUID | None:
    """The version of a label, marked or not."""
    return next(iter(_ids(tx, _VERSION_OF, [label_id])), None)


def splits_of(tx: Tx, version_id: UUID) -> list[UUID]:
    """All splits of a version, marked ones among them."""
    return _ids(tx, _SPLITS_OF, [version_id])


def splits_of_dataset(tx: Tx, dataset_id: UUID) -> list[UUID]:
    """All splits of all versions of a dataset."""
    return _ids(tx, _SPLITS_OF_DATASET, [dataset_id])


def labels_of(tx: Tx, version_id: UUID, *, limit: int) -> list[UUID]:
    """Some labels of a version, marked ones among them."""
    return _ids(tx, _LABELS_OF, [version_id], limit)


_MEMBERS = _sql("""
SELECT DISTINCT m.item_id FROM unnest(CAST(:ids AS uuid[])) AS s(id) CROSS JOIN LATERAL (
  SELECT p.item_id FROM item_splits p WHERE p.split_id = s.id ORDER BY p.item_id LIMIT :limit) m
ORDER BY 1 LIMIT :limit
""")
_CARRIERS = _sql("""
SELECT DISTINCT m.item_id FROM unnest(CAST(:ids AS uuid[])) AS l(id) CROSS JOIN LATERAL (
  SELECT a.item_id FROM annotations a WHERE a.label_id = l.id ORDER BY a.item_id LIMIT :limit) m
ORDER BY 1 LIMIT :limit
""")
_ITEMS_OF = _sql(
    "SELECT id FROM dataset_items WHERE dataset_id AMONG ORDER BY created_at, id LIMIT :limit"
)


def members(tx: Tx, split_ids: Collection[UUID], *, limit: int) -> list[UUID]:
    """The first items of splits, by id."""
    return _ids(tx, _MEMBERS, split_ids, limit)


def carriers(tx: Tx, label_ids: Collection[UUID], *, limit: int) -> list[UUID]:
    """The first items that have annotations with these labels, tombstones among them."""
    return _ids(tx, _CARRIERS, label_ids, limit)


def items_of(tx: Tx, dataset_id: UUID, *, limit: int) -> list[UUID]:
    """Items of a dataset, whether or not they are in a split."""
    return _ids(tx, _ITEMS_OF, [dataset_id], limit)


class Left(NamedTuple):
    """What a chunk took away."""

    memberships: int
    items: int
    jobs: int


_LEAVE = _sql("""
DELETE FROM item_splits WHERE item_id = ANY(CAST(:items AS uuid[]))
  AND split_id = ANY(CAST(:splits AS uuid[])) RETURNING item_id, version_id
""")
_STAY = _sql("SELECT DISTINCT item_id, version_id FROM item_splits WHERE item_id AMONG")
_PARTS = """ t USING unnest(CAST(:items AS uuid[]), CAST(:versions AS uuid[])) AS w(item, version)
WHERE t.item_id = w.item AND (w.version IS NULL OR t.version_id = w.version)"""
_REMOVE_PARTS = [
    _sql("DELETE FROM annotations" + _PARTS),  # noqa: S608  the constant above
    _sql("DELETE FROM item_states" + _PARTS),  # noqa: S608
    _sql("DELETE FROM job_results" + _PARTS),  # noqa: S608
]
_REMOVE_INFERENCES = _sql("DELETE FROM inferences WHERE item_id AMONG")
_REMOVE_ITEMS = _sql("DELETE FROM dataset_items WHERE id AMONG")


def leave(tx: Tx, item_ids: Sequence[UUID], split_ids: Sequence[UUID]) -> Left:
    """Take locked items out of splits.

    What an item was in a version that it is in no more goes with it: annotations, state, jobs and
    their results. One that is in no split of any version any more goes itself, with its
    inferences; of its file only the reference.
    """
    stats.append_members(tx, item_ids, split_ids, sign=-1)
    values = {"items": bulk.uuids(item_ids), "splits": bulk.uuids(split_ids)}
    left = [(row[0], row[1]) for row in tx.execute(_LEAVE, values)]
    stay = {
        (row[0], row[1]) for row in tx.execute(_STAY, {"ids": bulk.uuids(bulk.in_order(item_ids))})
    }
    gone = set(item_ids) - {item_id for item_id, _ in stay}
    parts: list[tuple[UUID, UUID | None]] = [(id_, None) for id_ in bulk.in_order(gone)]
    parts += sorted(pair for pair in set(left) - stay if pair[0] not in gone)
    jobs = _remove(tx, parts)
    _run(tx, _REMOVE_INFERENCES, gone)
    return Left(memberships=len(left), items=_run(tx, _REMOVE_ITEMS, gone), jobs=jobs)


def _remove(tx: Tx, parts: Sequence[tuple[UUID, UUID | None]]) -> int:
    """Remove what items are in versions, None for all of them; returns how many jobs."""
    values: Mapping[str, str] = {
        "items": bulk.uuids(part[0] for part in parts),
        "versions": bulk.uuids(part[1] for part in parts),
    }
    for statement in _REMOVE_PARTS:
        tx.execute(statement, values)
    return job_removal.delete_jobs(tx, values)


_STRIP = _sql("""
DELETE FROM annotations WHERE item_id = ANY(CAST(:items AS uuid[]))
  AND label_id = ANY(CAST(:labels AS uuid[]))
""")


def strip(tx: Tx, version_id: UUID, item_ids: Sequence[UUID], label_ids: Sequence[UUID]) -> int:
    """Remove the annotations of labels of a version from locked items; returns how many."""
    own = splits_of(tx, version_id)
    stats.append_members(tx, item_ids, own, sign=-1)
    values = {"items": bulk.uuids(item_ids), "labels": bulk.uuids(label_ids)}
    removed = tx.execute(_STRIP, values).rowcount
    stats.append_members(tx, item_ids, own, sign=1)
    return removed


_LOCK_LABELS = _sql("SELECT id FROM labels WHERE id AMONG ORDER BY name, id FOR UPDATE")
# Deltas first: whoever folds some holds them until their base rows are written.
_REMOVE_LABELS = [
    _sql(
        "DELETE FROM label_stat_deltas WHERE split_id = ANY(CAST(:splits AS uuid[])) "
        "AND label_id AMONG"
    ),
    _sql(
        "DELETE FROM label_stats WHERE split_id = ANY(CAST(:splits AS uuid[])) AND label_id AMONG"
    ),
    _sql("DELETE FROM labels WHERE id AMONG"),
]
_LOCK_SPLITS = _sql("SELECT id FROM dataset_splits WHERE id AMONG ORDER BY id FOR UPDATE")
_REMOVE_SPLITS = [
    _sql("DELETE FROM label_stat_deltas WHERE split_id AMONG"),
    _sql("DELETE FROM label_stats WHERE split_id AMONG"),
    _sql("DELETE FROM dataset_splits WHERE id AMONG"),
]
_LOCK_WHOLE_VERSION = _sql("SELECT id FROM dataset_versions WHERE id AMONG FOR UPDATE")
_REMOVE_STATES = _sql("DELETE FROM item_states WHERE version_id AMONG")
_REMOVE_VERSION = _sql("DELETE FROM dataset_versions WHERE id AMONG")


def remove_labels(tx: Tx, version_id: UUID, label_ids: Sequence[UUID]) -> bool:
    """Remove labels of a version that no annotation has; false, and nothing done, while one has."""
    _ids(tx, _LOCK_LABELS, label_ids)
    if carriers(tx, label_ids, limit=1):
        return False
    values = {
        "ids": bulk.uuids(bulk.in_order(label_ids)),
        "splits": bulk.uuids(splits_of(tx, version_id)),
    }
    for statement in _REMOVE_LABELS[:-1]:
        tx.execute(statement, values)
    _run(tx, _REMOVE_LABELS[-1], label_ids)
    return True


def remove_splits(tx: Tx, split_ids: Sequence[UUID]) -> bool:
    """Remove empty splits with their stats; false, and nothing done, while one has items."""
    _ids(tx, _LOCK_SPLITS, split_ids)
    if members(tx, split_ids, limit=1):
        return False
    for statement in _REMOVE_SPLITS:
        _run(tx, statement, split_ids)
    return True


def remove_version(tx: Tx, version_id: UUID) -> bool:
    """Remove a version with its empty splits; false, and nothing done, while it holds more."""
    _ids(tx, _LOCK_WHOLE_VERSION, [version_id])
    if labels_of(tx, version_id, limit=1) or not remove_splits(tx, splits_of(tx, version_id)):
        return False
    _run(tx, _REMOVE_STATES, [version_id])
    _run(tx, _REMOVE_VERSION, [version_id])
    return True


_EMPTY_DATASET = [
    _sql("DELETE FROM shares WHERE dataset_id AMONG"),
    _sql("""UPDATE post_processors SET description = '', runner_config = '{}', label_mapping = '{}'
      WHERE dataset_id AMONG"""),
    _sql("""UPDATE datasets SET name = '', description = '', notes = '', logo_sha256 = NULL,
      logo_media_type = '' WHERE id AMONG"""),
]


def empty_dataset(tx: Tx, dataset_id: UUID) -> bool:
    """Forget what was said of a dataset that has no version and no item; false while it has."""
    if next_version(tx, dataset_id) or items_of(tx, dataset_id, limit=1):
        return False
    for statement in _EMPTY_DATASET:
        _run(tx, statement, [dataset_id])
    return True


_FORGET_INFERENCES = _sql("""
DELETE FROM model_inferences WHERE id = ANY(ARRAY(
  SELECT i.id FROM model_inferences i WHERE i.user_id AMONG ORDER BY i.id LIMIT 1000))
""")
_FORGET_USER = [
    _sql("DELETE FROM model_versions WHERE user_id AMONG"),
    _sql("DELETE FROM models WHERE user_id AMONG"),
    _sql("DELETE FROM blob_owners WHERE user_id AMONG"),
]


def forget_user(tx: Tx, user_id: UUID) -> bool:
    """Forget what a user had beside datasets: models with their configs, what they were asked, and
    which files they stored. False while there may be more."""
    if _run(tx, _FORGET_INFERENCES, [user_id]):
        return False
    for statement in _FORGET_USER:
        _run(tx, statement, [user_id])
    return True
