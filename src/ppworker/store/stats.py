"""Label stats: base counters plus signed deltas that are not folded yet; a read sums both."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.stats import Bucket, StatDelta
from ppworker.store import bulk, db
from ppworker.store.db import Tx, by_name
from ppworker.store.tables import label_stat_deltas


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStat:
    """Counts of one row of a split.

    ``bucket`` is ``label``, ``unlabelled`` (items without any annotation) or ``total``.
    """

    split_id: UUID
    bucket: Bucket
    label_id: UUID | None
    annotation_count: int
    item_count: int


_COLUMNS = ("split_id", "bucket", "label_id", "annotation_count", "item_count")


def append_deltas(tx: Tx, deltas: Sequence[StatDelta]) -> None:
    """Record signed changes in the transaction that makes them."""
    bulk.insert(
        tx,
        label_stat_deltas,
        _COLUMNS,
        [[getattr(delta, name) for name in _COLUMNS] for delta in deltas],
    )


_MEMBERS_DELTAS = sa.text("""
WITH member AS MATERIALIZED (
  SELECT s.split_id, s.item_id, s.version_id FROM item_splits s
  WHERE s.item_id = ANY(CAST(:items AS uuid[])) AND s.split_id = ANY(CAST(:splits AS uuid[]))),
labelled AS MATERIALIZED (
  SELECT m.split_id, m.item_id, a.label_id, count(*) AS n FROM member m
  JOIN annotations a ON a.item_id = m.item_id AND a.version_id = m.version_id
    AND a.deleted_at IS NULL
  GROUP BY 1, 2, 3),
counted AS (
  -- Not a join: whoever guesses that few are labelled would go through all for each.
  SELECT split_id, item_id, sum(n) AS n FROM (
    SELECT split_id, item_id, 0 AS n FROM member
    UNION ALL SELECT split_id, item_id, n FROM labelled) both_kinds GROUP BY 1, 2)
INSERT INTO label_stat_deltas (split_id, bucket, label_id, annotation_count, item_count)
SELECT split_id, bucket, label_id, :sign * annotations, :sign * items FROM (
  SELECT split_id, 'label' AS bucket, label_id, sum(n) AS annotations, count(*) AS items
  FROM labelled GROUP BY 1, 3
  UNION ALL
  SELECT split_id, 'unlabelled', NULL, 0, count(*) FROM counted WHERE n = 0 GROUP BY 1
  UNION ALL
  SELECT split_id, 'total', NULL, sum(n), count(*) FROM counted GROUP BY 1) AS d
""")


def append_members(
    tx: Tx, item_ids: Iterable[UUID], split_ids: Iterable[UUID], *, sign: Literal[1, -1]
) -> None:
    """Record that items count in splits, or cease to, as members that they are at this moment.

    One statement, however many they are. The items must be locked. Whoever changes what members
    carry says -1 before the change and 1 after it.
    """
    tx.execute(
        _MEMBERS_DELTAS,
        {"items": bulk.uuids(item_ids), "splits": bulk.uuids(split_ids), "sign": sign},
    )


_FOLD = sa.text("""
WITH taken AS (
  DELETE FROM label_stat_deltas WHERE id = ANY(ARRAY(
    SELECT id FROM label_stat_deltas ORDER BY id LIMIT :n FOR UPDATE SKIP LOCKED))
  RETURNING split_id, bucket, label_id, annotation_count, item_count),
written AS (
  INSERT INTO label_stats AS s (split_id, bucket, label_id, annotation_count, item_count)
  SELECT split_id, bucket, label_id, sum(annotation_count), sum(item_count)
  FROM taken GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
  ON CONFLICT (split_id, bucket, label_id) DO UPDATE SET
    annotation_count = s.annotation_count + excluded.annotation_count,
    item_count = s.item_count + excluded.item_count, updated_at = now())
SELECT count(*) FROM taken
""")


def fold(tx: Tx, *, limit: int) -> int:
    """Fold up to ``limit`` deltas into the base rows, keys in order; returns how many."""
    return int(tx.execute(_FOLD, {"n": limit}).scalar_one())


_CURRENT = """
SELECT split_id, bucket, label_id,
  sum(annotation_count)::bigint AS annotation_count, sum(item_count)::bigint AS item_count
FROM (
  SELECT split_id, bucket, label_id, annotation_count, item_count FROM label_stats
  WHERE split_id = ANY(:splits)
  UNION ALL
  SELECT split_id, bucket, label_id, annotation_count, item_count FROM label_stat_deltas
  WHERE split_id = ANY(:splits)) both_kinds
GROUP BY 1, 2, 3
"""

_COUNTED = """
SELECT m.split_id, 'total' AS bucket, NULL::uuid AS label_id,
  coalesce(sum(m.n), 0)::bigint AS annotation_count, count(*) AS item_count
FROM members m GROUP BY m.split_id
UNION ALL
SELECT m.split_id, 'unlabelled', NULL, 0, count(*) FILTER (WHERE m.n = 0)
FROM members m GROUP BY m.split_id
UNION ALL
SELECT s.split_id, 'label', a.label_id, count(*), count(DISTINCT a.item_id)
FROM item_splits s JOIN annotations a
  ON a.item_id = s.item_id AND a.version_id = s.version_id AND a.deleted_at IS NULL
WHERE s.split_id = ANY(:splits) GROUP BY s.split_id, a.label_id
"""

_MEMBERS = """
members AS MATERIALIZED (
  SELECT s.split_id, s.item_id, count(a.id) AS n
  FROM item_splits s LEFT JOIN annotations a
    ON a.item_id = s.item_id AND a.version_id = s.version_id AND a.deleted_at IS NULL
  WHERE s.split_id = ANY(:splits) GROUP BY s.split_id, s.item_id)
"""


_READ = sa.text(_CURRENT)
_RECOUNT = sa.text(f"WITH {_MEMBERS} {_COUNTED}")


def read_stats(tx: Tx, split_ids: Sequence[UUID]) -> list[LabelStat]:
    """Exact stats of splits, base and deltas summed in one statement."""
    rows = tx.execute(_READ, {"splits": list(split_ids)})
    return _sorted(LabelStat(**by_name(row)) for row in rows)


def recount(tx: Tx, split_ids: Sequence[UUID]) -> list[LabelStat]:
    """The same figures counted anew from memberships and annotations."""
    rows = tx.execute(_RECOUNT, {"splits": list(split_ids)})
    return _sorted(LabelStat(**by_name(row)) for row in rows)


_DRIFT = f"""
WITH {_MEMBERS},
counted AS ({_COUNTED}),
current AS ({_CURRENT})
SELECT split_id, bucket, label_id,
  sum(annotation_count)::bigint AS annotation_count, sum(item_count)::bigint AS item_count
FROM (
  SELECT * FROM counted
  UNION ALL
  SELECT split_id, bucket, label_id, -annotation_count, -item_count FROM current) d
GROUP BY 1, 2, 3 HAVING sum(annotation_count) <> 0 OR sum(item_count) <> 0
"""  # noqa: S608  its parts are the constants above


_FIND_DRIFT = sa.text(_DRIFT)


def find_drift(tx: Tx, split_ids: Sequence[UUID]) -> list[LabelStat]:
    """What must be added to each row to make it equal a recount; one statement, one snapshot."""
    rows = tx.execute(_FIND_DRIFT, {"splits": list(split_ids)})
    return _sorted(LabelStat(**by_name(row)) for row in rows)


def lock_rebuild(tx: Tx, split_id: UUID) -> None:
    """Let one rebuild of a split run at a time; a statement of its own, before ``find_drift``."""
    tx.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
        {"key": f"ppworker.stats.{split_id}"},
    )


_NEXT_RECOUNT = sa.text("""
UPDATE dataset_splits SET recounted_at = clock_timestamp() WHERE id = (
  SELECT id FROM dataset_splits
  WHERE recounted_at IS NULL OR recounted_at < clock_timestamp() - make_interval(secs => :age)
  ORDER BY recounted_at NULLS FIRST, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING id
""")


def next_recount(tx: Tx, *, age_s: float) -> UUID | None:
    """The split whose last recount is longest ago, if that is longer than ``age_s`` seconds; taken
    by whoever asks, so that of many sweeps one recounts it."""
    found: UUID | None = tx.execute(_NEXT_RECOUNT, {"age": age_s}).scalar_one_or_none()
    return found


_RECOUNT_S = 600
"""Most seconds of one recount."""
_RECOUNT_PLANS = sa.text(
    "SELECT set_config('enable_hashjoin', 'on', true), set_config('enable_seqscan', 'on', true), "
    "set_config('plan_cache_mode', 'force_custom_plan', true)"
)


def allow_recount(tx: Tx) -> None:
    """Let this transaction plan for a whole split, and take the time that it needs."""
    db.allow(tx, statement_s=_RECOUNT_S)
    tx.execute(_RECOUNT_PLANS)


def try_recount(tx: Tx, split_id: UUID) -> bool:
    """Take the right to recount a split until the transaction ends; false while somebody is at it,
    which may last longer than the last recount is believed."""
    return db.try_lock(tx, f"ppworker.recount.{split_id}")


def list_split_ids(tx: Tx) -> list[UUID]:
    """Every split there is."""
    return list(tx.execute(sa.text("SELECT id FROM dataset_splits ORDER BY id")).scalars())


_BUCKET_ORDER = {"label": 0, "unlabelled": 1, "total": 2}


def _sorted(stats: Iterable[LabelStat]) -> list[LabelStat]:
    """Labels first, then the unlabelled row, then the total, split by split.

    Rows that came to nothing are left out, so that a recount compares by ``==``.
    """
    return sorted(
        (s for s in stats if s.annotation_count or s.item_count),
        key=lambda s: (s.split_id, _BUCKET_ORDER[s.bucket], str(s.label_id)),
    )
