"""Copies a version: its labels and splits at once, its items chunk by chunk.

A copy is marked as deleted until it is whole, so that nobody sees a part of it. Items and files are
shared; memberships, annotations, states and kept answers are copied with new ids. Where the next
chunk begins is read from what is there already.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk, stats
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.versions import Version


class Copied(NamedTuple):
    """What a chunk copied."""

    items: int
    annotations: int
    unlabelled: int
    """Annotations left out: their labels are newer than the copy."""


_VERSION = sa.text("""
INSERT INTO dataset_versions
  (id, dataset_id, user_id, name, description, default_split, config, deleted_at)
SELECT :target, v.dataset_id, v.user_id, :name, :description, CAST(:default AS uuid), v.config,
  now()
FROM dataset_versions v WHERE v.id = :source AND v.deleted_at IS NULL
""")
_LOCK_SOURCE = sa.text("""
SELECT v.id FROM dataset_versions v JOIN datasets d ON d.id = v.dataset_id
WHERE v.id = :source AND v.deleted_at IS NULL AND d.deleted_at IS NULL FOR NO KEY UPDATE OF v
""")
_OWN_LABELS = sa.text(
    'SELECT id FROM labels WHERE version_id = :version AND deleted_at IS NULL ORDER BY "index", id'
)
_OWN_SPLITS = sa.text(
    "SELECT id FROM dataset_splits WHERE version_id = :version AND deleted_at IS NULL "
    "ORDER BY created_at, id FOR KEY SHARE"
)
# Their times are kept: lists go by them.
_LABELS = sa.text("""
INSERT INTO labels (id, version_id, user_id, name, normalised_name, description, color, "index",
  shortcut, post_processor_id, created_at, updated_at)
SELECT w.new, :target, l.user_id, l.name, l.normalised_name, l.description, l.color, l."index",
  l.shortcut, l.post_processor_id, l.created_at, l.updated_at
FROM unnest(CAST(:olds AS uuid[]), CAST(:news AS uuid[])) AS w(old, new)
JOIN labels l ON l.id = w.old
""")
_SPLITS = sa.text("""
INSERT INTO dataset_splits (id, version_id, user_id, name, description, created_at, updated_at)
SELECT w.new, :target, s.user_id, s.name, s.description, s.created_at, s.updated_at
FROM unnest(CAST(:olds AS uuid[]), CAST(:news AS uuid[])) AS w(old, new)
JOIN dataset_splits s ON s.id = w.old
""")


class Frame(NamedTuple):
    """A copy without items: which of its splits stands for which.

    A label stands for that of the same index and time: an index alone may be given anew.
    """

    target: UUID
    splits: dict[UUID, UUID]


def copy_frame(tx: Tx, source: Version, *, name: str, description: str) -> Frame | None:
    """Begin a copy with all labels and splits of the source; None where that was deleted."""
    if tx.execute(_LOCK_SOURCE, {"source": source.id}).first() is None:
        return None
    frame = Frame(
        target=new_id(),
        splits={id_: new_id() for id_ in _own(tx, _OWN_SPLITS, source.id)},
    )
    labels = {id_: new_id() for id_ in _own(tx, _OWN_LABELS, source.id)}
    default = frame.splits.get(source.default_split) if source.default_split else None
    tx.execute(
        _VERSION,
        {
            "source": source.id,
            "target": frame.target,
            "name": name,
            "description": description,
            "default": default,
        },
    )
    for statement, ids in ((_LABELS, labels), (_SPLITS, frame.splits)):
        tx.execute(
            statement,
            {"target": frame.target, "olds": bulk.uuids(ids), "news": bulk.uuids(ids.values())},
        )
    return frame


def _own(tx: Tx, statement: sa.TextClause, version_id: UUID) -> list[UUID]:
    return list(tx.execute(statement, {"version": version_id}).scalars())


_COUNT_ITEMS = sa.text(
    "SELECT count(DISTINCT item_id) FROM item_splits WHERE split_id = ANY(CAST(:splits AS uuid[]))"
)
_NEWEST = sa.text("""
SELECT m.item_id FROM unnest(CAST(:splits AS uuid[])) AS s(id) CROSS JOIN LATERAL (
  SELECT p.item_id FROM item_splits p WHERE p.split_id = s.id ORDER BY p.item_id DESC LIMIT 1) m
ORDER BY m.item_id DESC LIMIT 1
""")
_NEXT = sa.text("""
SELECT DISTINCT m.item_id FROM unnest(CAST(:splits AS uuid[])) AS s(id) CROSS JOIN LATERAL (
  SELECT p.item_id FROM item_splits p
  WHERE p.split_id = s.id AND p.item_id > :after AND p.item_id <= :newest
  ORDER BY p.item_id LIMIT :limit) m
ORDER BY 1 LIMIT :limit
""")


def extent(tx: Tx, split_ids: Sequence[UUID]) -> tuple[int, UUID | None]:
    """How many items splits have together, and the newest of them."""
    values = {"splits": bulk.uuids(split_ids)}
    # In this order: an item that comes in between is copied too, not cut off.
    total = int(tx.execute(_COUNT_ITEMS, values).scalar_one())
    return total, tx.execute(_NEWEST, values).scalar_one_or_none()


def next_items(tx: Tx, frame: Frame, *, newest: UUID, limit: int) -> list[UUID]:
    """The items that the next chunk copies, by id, none of them behind ``newest``."""
    place = {"splits": bulk.uuids(frame.splits.values())}
    after = tx.execute(_NEWEST, place).scalar_one_or_none()
    rows = tx.execute(
        _NEXT,
        {
            "splits": bulk.uuids(frame.splits),
            "after": after or UUID(int=0),
            "newest": newest,
            "limit": limit,
        },
    )
    return list(rows.scalars())


_HOLD = sa.text("""
SELECT t.id FROM dataset_versions t JOIN dataset_versions s ON s.id = :source
JOIN datasets d ON d.id = t.dataset_id
WHERE t.id = :target AND t.deleted_at IS NOT NULL AND s.deleted_at IS NULL AND d.deleted_at IS NULL
FOR NO KEY UPDATE OF t
""")


def hold(tx: Tx, source_id: UUID, target_id: UUID) -> bool:
    """Hold a copy that is being made against its removal; false where it, its source or their
    dataset was deleted."""
    values = {"source": source_id, "target": target_id}
    return tx.execute(_HOLD, values).first() is not None


_MEMBERSHIPS = sa.text("""
INSERT INTO item_splits (split_id, item_id, version_id)
SELECT w.new, p.item_id, :target
FROM unnest(CAST(:old_splits AS uuid[]), CAST(:new_splits AS uuid[])) AS w(old, new)
JOIN item_splits p ON p.split_id = w.old AND p.item_id = ANY(CAST(:items AS uuid[]))
""")
# A UUIDv7 as `store.ids` makes them, in the order of the rows that are copied: a millisecond for
# each 4096 of them, and the number among these where that has a fraction.
_NEW_ID = """CAST(
  lpad(to_hex(CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint) + n / 4096), 12, '0')
  || '7' || lpad(to_hex(n % 4096), 3, '0')
  || substr(replace(CAST(gen_random_uuid() AS text), '-', ''), 17) AS uuid)"""
_ANNOTATIONS = sa.text(f"""
INSERT INTO annotations (id, version_id, item_id, label_id, split_id, user_id, kind, geometry,
  coordinates, text, page, score, source, post_processor_id, job_id, inference_id, model_version,
  review, fingerprint, origin, created_at, updated_at, deleted_at)
SELECT {_NEW_ID}, :target, item_id, new_label, new_split, user_id, kind, geometry,
  coordinates, text, page, score, source, post_processor_id, job_id, inference_id, model_version,
  review, fingerprint, origin, created_at, updated_at, deleted_at
FROM (
  SELECT a.*, l.id AS new_label, s.new AS new_split, row_number() OVER (ORDER BY a.id) AS n
  FROM annotations a
  JOIN labels own ON own.id = a.label_id AND own.deleted_at IS NULL
  JOIN labels l ON l.version_id = :target AND l."index" = own."index"
    AND l.created_at = own.created_at
  LEFT JOIN unnest(CAST(:old_splits AS uuid[]), CAST(:new_splits AS uuid[])) AS s(old, new)
    ON s.old = a.split_id
  WHERE a.item_id = ANY(CAST(:items AS uuid[])) AND a.version_id = :source) copied
""")  # noqa: S608  the constant above
_STATES = sa.text(f"""
INSERT INTO item_states (version_id, item_id, id, user_id, state, version, created_at, updated_at)
SELECT :target, item_id, {_NEW_ID}, user_id, state, version, created_at, updated_at
FROM (SELECT s.*, row_number() OVER (ORDER BY s.item_id) AS n FROM item_states s
  WHERE s.item_id = ANY(CAST(:items AS uuid[])) AND s.version_id = :source) copied
""")  # noqa: S608  likewise
_RESULTS = sa.text("""
INSERT INTO job_results (version_id, item_id, post_processor_id, job_id, raw, model_version,
  input_revision, text_sha256, refused, created_at)
SELECT :target, item_id, post_processor_id, job_id, raw, model_version, input_revision,
  text_sha256, refused, created_at
FROM job_results WHERE item_id = ANY(CAST(:items AS uuid[])) AND version_id = :source
""")
_UNLABELLED = sa.text("""
SELECT count(*) FROM annotations a JOIN labels own ON own.id = a.label_id AND own.deleted_at IS NULL
WHERE a.item_id = ANY(CAST(:items AS uuid[])) AND a.version_id = :source AND a.deleted_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM labels l WHERE l.version_id = :target
    AND l."index" = own."index" AND l.created_at = own.created_at)
""")
_COUNT = sa.text("""
SELECT count(DISTINCT item_id) FROM item_splits
WHERE split_id = ANY(CAST(:new_splits AS uuid[])) AND item_id = ANY(CAST(:items AS uuid[]))
""")


def copy_items(tx: Tx, source_id: UUID, frame: Frame, item_ids: Sequence[UUID]) -> Copied:
    """Copy what locked items are in the source, as it is at this moment.

    Those that left it meanwhile are left out.
    """
    values: Mapping[str, object] = {
        "source": source_id,
        "target": frame.target,
        "items": bulk.uuids(item_ids),
        "old_splits": bulk.uuids(frame.splits),
        "new_splits": bulk.uuids(frame.splits.values()),
    }
    tx.execute(_MEMBERSHIPS, values)
    there = int(tx.execute(_COUNT, values).scalar_one())
    copied = tx.execute(_ANNOTATIONS, values).rowcount
    tx.execute(_STATES, values)
    tx.execute(_RESULTS, values)
    left_out = int(tx.execute(_UNLABELLED, values).scalar_one())
    stats.append_members(tx, item_ids, frame.splits.values(), sign=1)
    return Copied(items=there, annotations=copied, unlabelled=left_out)


_SHOW = sa.text(
    "UPDATE dataset_versions SET deleted_at = NULL, created_at = now(), updated_at = now() "
    "WHERE id = :target"
)


def show(tx: Tx, target_id: UUID) -> None:
    """Let everybody see a copy that is whole and held."""
    tx.execute(_SHOW, {"target": target_id})
