"""Suggestions: unreviewed annotations of a version, on the way through its items by their ids."""

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from ppworker.store import bulk
from ppworker.store.db import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestions:
    """Which unreviewed annotations of a version are meant: those that match all that is given."""

    version_id: UUID
    post_processor_id: UUID | None = None
    label_id: UUID | None = None
    source: str | None = None
    min_score: float | None = None
    """Inclusive; what has no score matches no bound."""
    max_score: float | None = None


# Split by split in the order of its key; one read of all splits would sort the rest each time.
_WALK = sa.text("""
SELECT DISTINCT m.item_id FROM dataset_splits s CROSS JOIN LATERAL (
  SELECT i.item_id FROM item_splits i WHERE i.split_id = s.id AND i.item_id > :after
  ORDER BY i.item_id LIMIT :n) m
WHERE s.version_id = :version ORDER BY m.item_id LIMIT :n
""")
_COUNT = sa.text("""
SELECT count(DISTINCT i.item_id) FROM dataset_splits s JOIN item_splits i ON i.split_id = s.id
WHERE s.version_id = :version
""")
_IS_LIVE = sa.text("""
SELECT EXISTS (SELECT 1 FROM dataset_versions v JOIN datasets d ON d.id = v.dataset_id
  WHERE v.id = :version AND v.deleted_at IS NULL AND d.deleted_at IS NULL)
""")
_FILTERS = {
    "post_processor_id": "a.post_processor_id = :post_processor_id",
    "label_id": "a.label_id = :label_id",
    "source": "a.source = :source",
    "min_score": "a.score >= :min_score",
    "max_score": "a.score <= :max_score",
}


def walk(tx: Tx, version_id: UUID, *, after: UUID, limit: int) -> list[UUID]:
    """Items of a version by id behind ``after``."""
    values = {"version": version_id, "after": after, "n": limit}
    return list(tx.execute(_WALK, values).scalars())


def count_walked(tx: Tx, version_id: UUID) -> int:
    """How many items `walk` passes on its whole way."""
    return int(tx.execute(_COUNT, {"version": version_id}).scalar_one())


def is_live(tx: Tx, version_id: UUID) -> bool:
    """Whether neither the version nor its dataset was deleted."""
    return bool(tx.execute(_IS_LIVE, {"version": version_id}).scalar_one())


def find_suggestions(tx: Tx, wanted: Suggestions, item_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """Matching annotations of items, and the item of each; exact when the items are locked."""
    given = {name: getattr(wanted, name) for name in _FILTERS}
    given = {name: value for name, value in given.items() if value is not None}
    also = "".join(f" AND {_FILTERS[name]}" for name in given)
    rows = tx.execute(
        sa.text(
            "SELECT a.id, a.item_id FROM annotations a "  # noqa: S608  the constants above
            "WHERE a.item_id = ANY(CAST(:items AS uuid[])) AND a.version_id = :version "
            f"AND a.review = 'suggested' AND a.deleted_at IS NULL{also}"
        ),
        {"items": bulk.uuids(item_ids), "version": wanted.version_id, **given},
    )
    return {row.id: row.item_id for row in rows}


_LIVE_JOBS = """
FROM post_processor_jobs j WHERE j.version_id = :version AND j.post_processor_id = :processor
  AND j.status IN ('pending', 'processing')
"""
_FIND_BUSY = sa.text(
    f"SELECT DISTINCT j.item_id {_LIVE_JOBS} AND j.item_id = ANY(CAST(:items AS uuid[]))"
)
_COUNT_BUSY = sa.text(f"SELECT count(*) {_LIVE_JOBS}")


def find_busy(
    tx: Tx, version_id: UUID, post_processor_id: UUID, item_ids: Collection[UUID]
) -> set[UUID]:
    """Those of the items for which the post-processor has a live job in the version."""
    values = {
        "version": version_id,
        "processor": post_processor_id,
        "items": bulk.uuids(item_ids),
    }
    return set(tx.execute(_FIND_BUSY, values).scalars())


def count_live_jobs(tx: Tx, version_id: UUID, post_processor_id: UUID) -> int:
    """Live jobs of a post-processor in a version."""
    values = {"version": version_id, "processor": post_processor_id}
    return int(tx.execute(_COUNT_BUSY, values).scalar_one())


def find_any_processor(tx: Tx, dataset_id: UUID, id_: UUID) -> str | None:
    """The name of a dataset's post-processor, be it deleted; None where it has none of that id."""
    return tx.execute(
        sa.text(
            "SELECT p.name FROM post_processors p WHERE p.id = :id AND p.dataset_id = :dataset"
        ),
        {"id": id_, "dataset": dataset_id},
    ).scalar_one_or_none()
