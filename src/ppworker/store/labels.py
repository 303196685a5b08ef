"""Labels of a version: created in short transactions of their own, used under a shared lock."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.labels import normalise_label
from ppworker.errors import Conflict, Invalid
from ppworker.store import bulk
from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.tables import labels

_PALETTE = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
_COLUMNS = (
    "id",
    "version_id",
    "user_id",
    "name",
    "normalised_name",
    "color",
    "index",
    "post_processor_id",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    id: UUID
    version_id: UUID
    user_id: UUID
    name: str
    description: str
    color: str
    index: int
    shortcut: str
    created_at: datetime
    updated_at: datetime


def list_labels(tx: Tx, version_id: UUID) -> list[Label]:
    """Labels of a version by their index."""
    return list_labels_of(tx, [version_id])


def list_labels_of(tx: Tx, version_ids: Sequence[UUID]) -> list[Label]:
    """Labels of several versions, each version's by their index."""
    rows = tx.execute(
        sa.select(*(labels.c[field.name] for field in fields(Label)))
        .where(labels.c.version_id.in_(version_ids))
        .order_by(labels.c.index, labels.c.id)
    )
    return [Label(**by_name(row)) for row in rows]


def names_by_version(tx: Tx, version_ids: Sequence[UUID]) -> dict[UUID, dict[str, UUID]]:
    """Label ids by name, for each of several versions."""
    found: dict[UUID, dict[str, UUID]] = {version_id: {} for version_id in version_ids}
    rows = tx.execute(
        sa.select(labels.c.version_id, labels.c.name, labels.c.id)
        .where(labels.c.version_id.in_(version_ids))
        .order_by(labels.c.index)
    )
    for row in rows:
        found[row.version_id][row.name] = row.id
    return found


def create_label(tx: Tx, version_id: UUID, user_id: UUID, name: str) -> Label:
    """Create one label.

    Raises:
        Conflict: the version has a label of that name, case and width apart.
        Invalid: the name is empty.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > 200:  # noqa: PLR2004  the limit of names everywhere
        raise Invalid("a label's name has 1 to 200 characters", field="name")
    ids, created = ensure_labels(tx, version_id, user_id, [name], post_processor_id=None, cap=None)
    if name not in created:
        raise Conflict(
            f"a label named '{name}' exists already, case apart; choose another name", field="name"
        )
    return next(label for label in list_labels(tx, version_id) if label.id == ids[name])


def ensure_labels(
    tx: Tx,
    version_id: UUID,
    user_id: UUID,
    names: Sequence[str],
    *,
    post_processor_id: UUID | None,
    cap: int | None,
) -> tuple[dict[str, UUID], list[str]]:
    """Ids of the named labels, creating those that are missing; run it in its own transaction.

    Returns the ids by name, and the names that were created.

    The version row is locked, so index, cap and case-folded uniqueness are decided here. Names
    beyond ``cap`` (labels that this post-processor created in the version; without one, labels of
    the version) are left out of the answer.
    """
    tx.execute(
        sa.text("SELECT 1 FROM dataset_versions WHERE id = :id FOR NO KEY UPDATE"),
        {"id": version_id},
    )
    wanted = {name: normalise_label(name) for name in names}
    rows = tx.execute(
        sa.select(
            labels.c.normalised_name,
            labels.c.id,
            labels.c.index.label("position"),
            labels.c.post_processor_id,
        ).where(labels.c.version_id == version_id)
    ).all()
    known: dict[str, UUID] = {row.normalised_name: row.id for row in rows}
    next_index = max((row.position for row in rows), default=-1) + 1
    own = sum(1 for row in rows if post_processor_id in {None, row.post_processor_id})
    new: list[tuple[object, ...]] = []
    created: list[str] = []
    for name, normalised in wanted.items():
        if normalised in known or (cap is not None and own + len(new) >= cap):
            continue
        known[normalised] = new_id()
        index = next_index + len(new)
        created.append(name)
        color = _PALETTE[index % len(_PALETTE)]
        new.append(
            (
                known[normalised],
                version_id,
                user_id,
                name,
                normalised,
                color,
                index,
                post_processor_id,
            )
        )
    if new:
        bulk.insert(tx, labels, _COLUMNS, new)
    ids = {name: known[normalised] for name, normalised in wanted.items() if normalised in known}
    return ids, created


def count_created(tx: Tx, version_id: UUID, post_processor_id: UUID) -> int:
    """How many labels of a version a post-processor has created: what its cap is held against."""
    return int(
        tx.execute(
            sa.select(sa.func.count()).where(
                labels.c.version_id == version_id,
                labels.c.post_processor_id == post_processor_id,
            )
        ).scalar_one()
    )


_LOCK_LABELS = sa.text("SELECT id FROM labels WHERE id = ANY(:ids) ORDER BY name, id FOR KEY SHARE")


def lock_labels(tx: Tx, ids: Iterable[UUID]) -> set[UUID]:
    """Hold labels against deletion until the transaction ends; returns those that exist."""
    rows = tx.execute(
        _LOCK_LABELS,
        {"ids": sorted(set(ids))},
    )
    return set(rows.scalars())
