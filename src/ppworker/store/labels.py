"""Labels of a version: created in short transactions of their own, used under a shared lock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.domain.labels import normalise_label
from ppworker.errors import Conflict, NotFound
from ppworker.store import bulk
from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.tables import labels

PALETTE = (
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
"""Colours of labels for which nobody chose one, by their index."""
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
        .where(labels.c.version_id.in_(version_ids), labels.c.deleted_at.is_(None))
        .order_by(labels.c.index, labels.c.id)
    )
    return [Label(**by_name(row)) for row in rows]


def names_by_version(tx: Tx, version_ids: Sequence[UUID]) -> dict[UUID, dict[str, UUID]]:
    """Label ids by name, for each of several versions."""
    found: dict[UUID, dict[str, UUID]] = {version_id: {} for version_id in version_ids}
    rows = tx.execute(
        sa.select(labels.c.version_id, labels.c.name, labels.c.id)
        .where(labels.c.version_id.in_(version_ids), labels.c.deleted_at.is_(None))
        .order_by(labels.c.index)
    )
    for row in rows:
        found[row.version_id][row.name] = row.id
    return found


def find_label(tx: Tx, version_id: UUID, label_id: UUID) -> Label | None:
    """The label of that version; None where there is none."""
    row = tx.execute(
        sa.select(*(labels.c[field.name] for field in fields(Label))).where(
            labels.c.version_id == version_id,
            labels.c.id == label_id,
            labels.c.deleted_at.is_(None),
        )
    ).one_or_none()
    return None if row is None else Label(**by_name(row))


def create_label(
    tx: Tx, version_id: UUID, user_id: UUID, name: str, values: Mapping[str, Any] | None = None
) -> Label:
    """Create one label, with further columns where there are any.

    Raises:
        Conflict: the version has a label of that name, case and width apart.
        NotFound: the version was deleted.
    """
    ids, created = ensure_labels(tx, version_id, user_id, [name], post_processor_id=None, cap=None)
    if name not in ids:
        raise NotFound(f"version {version_id} was deleted", field="version")
    if name not in created:
        raise label_exists(name)
    if values:
        tx.execute(sa.update(labels).where(labels.c.id == ids[name]).values(**values))
    made = find_label(tx, version_id, ids[name])
    if made is None:
        raise NotFound(f"label {ids[name]} was deleted", field="label")
    return made


def update_label(tx: Tx, version_id: UUID, label_id: UUID, values: Mapping[str, Any]) -> None:
    """Write columns of a label; a name brings its normalised form along.

    Raises:
        Conflict: the version has another label of that name, case and width apart.
    """
    if "name" in values:
        _lock_version(tx, version_id)
        form = normalise_label(values["name"])
        taken = sa.select(sa.literal(1)).where(
            labels.c.version_id == version_id,
            labels.c.normalised_name == form,
            labels.c.id != label_id,
        )
        if tx.execute(taken).first() is not None:
            raise label_exists(values["name"])
        values = {**values, "normalised_name": form}
    tx.execute(
        sa.update(labels)
        .where(labels.c.id == label_id, labels.c.deleted_at.is_(None))
        .values(**values, updated_at=sa.func.now())
    )


def label_exists(name: str) -> Conflict:
    """The error of a name that another label of the version has."""
    return Conflict(
        f"a label named '{name}' exists already, case apart; choose another name", field="name"
    )


def _lock_version(tx: Tx, version_id: UUID) -> bool:
    """Decide on the labels of a version alone; whether it is there."""
    return (
        tx.execute(
            sa.text(
                "SELECT 1 FROM dataset_versions WHERE id = :id AND deleted_at IS NULL "
                "FOR NO KEY UPDATE"
            ),
            {"id": version_id},
        ).first()
        is not None
    )


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
    if not _lock_version(tx, version_id):
        return {}, []  # deleted: there is nothing to label any more
    wanted = {name: normalise_label(name) for name in names}
    rows = tx.execute(
        sa.select(
            labels.c.normalised_name,
            labels.c.id,
            labels.c.index.label("position"),
            labels.c.post_processor_id,
        ).where(labels.c.version_id == version_id, labels.c.deleted_at.is_(None))
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
        color = PALETTE[index % len(PALETTE)]
        keys = (known[normalised], version_id, user_id)
        new.append((*keys, name, normalised, color, index, post_processor_id))
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
                labels.c.deleted_at.is_(None),
            )
        ).scalar_one()
    )


_LOCK_LABELS = sa.text(
    "SELECT id FROM labels WHERE id = ANY(:ids) AND deleted_at IS NULL "
    "ORDER BY name, id FOR KEY SHARE"
)


def lock_labels(tx: Tx, ids: Iterable[UUID]) -> set[UUID]:
    """Hold labels against deletion until the transaction ends; returns those that exist."""
    rows = tx.execute(
        _LOCK_LABELS,
        {"ids": sorted(set(ids))},
    )
    return set(rows.scalars())


def hold_all_labels(tx: Tx, dataset_id: UUID) -> None:
    """Hold every label of a dataset alone: whoever attaches one now is waited for, others wait."""
    tx.execute(
        sa.text(
            "SELECT l.id FROM labels l JOIN dataset_versions v ON v.id = l.version_id "
            "WHERE v.dataset_id = :dataset ORDER BY l.name, l.id FOR UPDATE OF l"
        ),
        {"dataset": dataset_id},
    )
