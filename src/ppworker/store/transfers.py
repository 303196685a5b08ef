"""Statements of archives in and out: a version page by page, and what an import creates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.domain.labels import normalise_label
from ppworker.store import bulk, items
from ppworker.store.datasets import Split, list_splits_of
from ppworker.store.db import Tx
from ppworker.store.ids import new_id
from ppworker.store.labels import PALETTE
from ppworker.store.tables import dataset_splits, item_states, labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A version that is imported into or exported."""

    version_id: UUID
    version_name: str
    description: str
    config: str
    default_split: UUID | None
    dataset_id: UUID
    dataset_name: str
    user_id: UUID
    """The dataset's owner."""
    content_type: str
    multi_label: bool


_TARGET = """
SELECT v.id AS version_id, v.name AS version_name, v.description, v.config, v.default_split,
  d.id AS dataset_id, d.name AS dataset_name, d.user_id, d.content_type, d.multi_label
FROM dataset_versions v JOIN datasets d ON d.id = v.dataset_id
WHERE v.id = :version AND v.deleted_at IS NULL AND d.deleted_at IS NULL """
_FIND_TARGET = sa.text(_TARGET)
_HOLD_TARGET = sa.text(_TARGET + "FOR SHARE OF v")


def find_target(tx: Tx, version_id: UUID, *, hold: bool = False) -> Target | None:
    """A version with its dataset; whose it is is the caller's to know.

    ``hold`` keeps it from being deleted until the transaction ends.
    """
    row = tx.execute(_HOLD_TARGET if hold else _FIND_TARGET, {"version": version_id}).one_or_none()
    return None if row is None else Target(**row._mapping)  # noqa: SLF001  public by documentation


def prefer_indexes(tx: Tx) -> None:
    """Have this transaction's statements, and its checks of foreign keys, planned by indexes.

    A plan made while a table is empty would scan it for every row of a large import.
    """
    tx.execute(sa.text("SET LOCAL enable_seqscan = off"))


_HOLD_SPLITS = sa.text(
    "SELECT id FROM dataset_splits WHERE id = ANY(CAST(:ids AS uuid[])) AND deleted_at IS NULL "
    "ORDER BY id FOR SHARE"
)


def hold_splits(tx: Tx, ids: Sequence[UUID]) -> set[UUID]:
    """Hold splits against deletion until the transaction ends; returns those that are there."""
    return set(tx.execute(_HOLD_SPLITS, {"ids": bulk.uuids(bulk.in_order(ids))}).scalars())


def ensure_splits(
    tx: Tx, target: Target, wanted: Mapping[str, str], *, most: int
) -> dict[str, Split]:
    """Splits of a version by name, those missing created (description by name) up to ``most``."""
    tx.execute(
        sa.text("SELECT 1 FROM dataset_versions WHERE id = :id FOR NO KEY UPDATE"),
        {"id": target.version_id},
    )
    there = {split.name for split in list_splits_of(tx, [target.version_id])}
    new = [name for name in wanted if name not in there][: max(0, most - len(there))]
    if new:
        rows = [
            {
                "id": new_id(),
                "version_id": target.version_id,
                "user_id": target.user_id,
                "name": name,
                "description": wanted[name],
            }
            for name in new
        ]
        tx.execute(insert(dataset_splits).values(rows).on_conflict_do_nothing())
    return {split.name: split for split in list_splits_of(tx, [target.version_id])}


@dataclass(frozen=True, slots=True)
class LabelSketch:
    """A label to be made; empty values are chosen here."""

    name: str
    color: str = ""
    index: int | None = None
    shortcut: str = ""
    description: str = ""


def create_labels(tx: Tx, target: Target, sketches: Sequence[LabelSketch], *, most: int) -> int:
    """Create those labels of a version that it has not, by the form in which names are compared.

    What stands already keeps its looks. A sketch's index is kept where nobody has it. Returns how
    many were created; run it in a transaction of its own.
    """
    tx.execute(
        sa.text("SELECT 1 FROM dataset_versions WHERE id = :id FOR NO KEY UPDATE"),
        {"id": target.version_id},
    )
    rows = tx.execute(
        sa.select(labels.c.normalised_name, labels.c.index.label("position")).where(
            labels.c.version_id == target.version_id
        )
    ).all()
    known, used = {row.normalised_name for row in rows}, {row.position for row in rows}
    following = max(used, default=-1) + 1
    new: list[tuple[Any, ...]] = []
    for sketch in sketches:
        form = normalise_label(sketch.name)
        if form in known or len(known) >= most:
            continue
        index = sketch.index
        if index is None or index in used:
            index = following
        used.add(index)
        following = max(following, index + 1)
        known.add(form)
        color = sketch.color or PALETTE[index % len(PALETTE)]
        new.append(
            (new_id(), target.version_id, target.user_id, sketch.name, form, sketch.description,
             color, index, sketch.shortcut)
        )  # fmt: skip
    columns = (
        "id", "version_id", "user_id", "name", "normalised_name", "description", "color", "index",
        "shortcut",
    )  # fmt: skip
    if new:
        bulk.insert(tx, labels, columns, new, after="ON CONFLICT DO NOTHING")
    return len(new)


_LABELS = sa.text(
    "SELECT normalised_name, id FROM labels WHERE version_id = :version AND deleted_at IS NULL "
    "AND normalised_name = ANY(CAST(:forms AS text[]))"
)


def find_labels(tx: Tx, version_id: UUID, forms: Sequence[str]) -> dict[str, UUID]:
    """Labels of a version by the form in which names are compared."""
    rows = tx.execute(_LABELS, {"version": version_id, "forms": bulk.texts(forms)})
    return {row[0]: row[1] for row in rows}


def describe_version(tx: Tx, version_id: UUID, *, config: str, default_split: UUID | None) -> None:
    """Give a version its configuration and its default split, where it has none yet."""
    tx.execute(
        sa.text(
            "UPDATE dataset_versions SET config = CASE WHEN config = '' THEN :config ELSE config "
            "END, default_split = coalesce(default_split, :split), updated_at = now() "
            "WHERE id = :version AND ((config = '' AND :config <> '') OR "
            "(default_split IS NULL AND CAST(:split AS uuid) IS NOT NULL))"
        ),
        {"version": version_id, "config": config, "split": default_split},
    )


def insert_states(tx: Tx, target: Target, states: Mapping[UUID, str]) -> None:
    """What clients keep about new items of a version, by item."""
    columns = ("id", "version_id", "item_id", "user_id", "state", "version")
    rows = [
        (new_id(), target.version_id, item_id, target.user_id, state, 1)
        for item_id, state in states.items()
    ]
    bulk.insert(tx, item_states, columns, rows)


_PAGE = sa.text("""
WITH page AS MATERIALIZED (
  SELECT DISTINCT m.item_id, m.version_id
  FROM unnest(CAST(:splits AS uuid[])) s(id) CROSS JOIN LATERAL (
    SELECT p.item_id, p.version_id FROM item_splits p
    JOIN dataset_items i ON i.id = p.item_id AND i.deleted_at IS NULL
    WHERE p.split_id = s.id AND p.item_id > :after ORDER BY p.item_id LIMIT :limit) m
  ORDER BY 1 LIMIT :limit)
SELECT p.item_id, coalesce(octet_length(i.text), 0) + 500 * (SELECT count(*) FROM annotations a
  WHERE a.item_id = p.item_id AND a.version_id = p.version_id AND a.deleted_at IS NULL)
FROM page p CROSS JOIN LATERAL (
  SELECT text FROM dataset_items d WHERE d.id = p.item_id OFFSET 0) i
ORDER BY 1
""")


def page_of_items(
    tx: Tx, splits: Sequence[UUID], *, after: UUID, limit: int
) -> list[tuple[UUID, int]]:
    """Ids of items of splits behind an id, each with about the bytes that are to be read of it."""
    rows = tx.execute(_PAGE, {"splits": bulk.uuids(splits), "after": after, "limit": limit})
    return [(row[0], row[1]) for row in rows]


_COUNT = sa.text(
    "SELECT count(DISTINCT item_id) FROM item_splits WHERE split_id = ANY(CAST(:splits AS uuid[]))"
)


def count_items(tx: Tx, splits: Sequence[UUID]) -> int:
    """How many items the splits have together."""
    return int(tx.execute(_COUNT, {"splits": bulk.uuids(splits)}).scalar_one())


_ITEMS = sa.text("""
SELECT id, name, description, text, extension, media_type, content_sha256, width, height,
  page_count, duration_s, metadata FROM dataset_items
WHERE id = ANY(CAST(:ids AS uuid[])) AND deleted_at IS NULL ORDER BY id
""")
_STATES = sa.text(
    "SELECT item_id, state FROM item_states WHERE version_id = :version "
    "AND item_id = ANY(CAST(:ids AS uuid[]))"
)
_ANNOTATIONS = sa.text("""
SELECT a.item_id, l.name AS label, a.kind, a.geometry, a.coordinates, a.text, a.page, a.score,
  a.source, a.review, a.model_version, p.name AS post_processor, a.origin
FROM annotations a JOIN labels l ON l.id = a.label_id AND l.deleted_at IS NULL
LEFT JOIN post_processors p ON p.id = a.post_processor_id
WHERE a.version_id = :version AND a.item_id = ANY(CAST(:ids AS uuid[])) AND a.deleted_at IS NULL
ORDER BY a.item_id, a.id
""")


def read_items(tx: Tx, ids: Sequence[UUID]) -> Sequence[sa.Row[Any]]:
    """Items with all that an archive says of them."""
    return tx.execute(_ITEMS, {"ids": bulk.uuids(ids)}).all()


def read_states(tx: Tx, version_id: UUID, ids: Sequence[UUID]) -> dict[UUID, str]:
    """What clients keep about items in a version."""
    rows = tx.execute(_STATES, {"version": version_id, "ids": bulk.uuids(ids)})
    return {row[0]: row[1] for row in rows}


def read_annotations(
    tx: Tx, version_id: UUID, ids: Sequence[UUID]
) -> dict[UUID, list[sa.Row[Any]]]:
    """Live annotations of items in a version, with names, in the order in which they were made."""
    found: dict[UUID, list[sa.Row[Any]]] = {}
    for row in tx.execute(_ANNOTATIONS, {"version": version_id, "ids": bulk.uuids(ids)}):
        found.setdefault(row.item_id, []).append(row)
    return found


def read_memberships(
    tx: Tx, version_id: UUID, ids: Sequence[UUID]
) -> dict[tuple[UUID, UUID], list[UUID]]:
    """Splits of items in a version."""
    return items.read_splits(tx, [(id_, version_id) for id_ in ids])


_HAS_KIND = sa.text("""
SELECT EXISTS (SELECT 1 FROM labels l CROSS JOIN LATERAL (
  SELECT a.kind FROM annotations a WHERE a.label_id = l.id AND a.deleted_at IS NULL LIMIT 20) k
WHERE l.version_id = :version AND k.kind = :kind)
""")


def has_kind(tx: Tx, version_id: UUID, kind: str) -> bool:
    """Whether annotations of a kind are among the first few of each label."""
    return bool(tx.execute(_HAS_KIND, {"version": version_id, "kind": kind}).scalar_one())
