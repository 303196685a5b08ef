"""Versions of datasets: each has its own splits, labels and annotations."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx, by_name
from ppworker.store.tables import dataset_versions, datasets


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    id: UUID
    dataset_id: UUID
    user_id: UUID
    name: str
    description: str
    default_split: UUID | None
    """The split shown first; None where nobody chose one."""
    config: str
    """Text of the client's own; given back as it came."""
    created_at: datetime
    updated_at: datetime


_VERSIONS = (
    sa.select(*(dataset_versions.c[field.name] for field in fields(Version)))
    .join(datasets, datasets.c.id == dataset_versions.c.dataset_id)
    .where(datasets.c.deleted_at.is_(None), dataset_versions.c.deleted_at.is_(None))
)


def find_version(tx: Tx, user_id: UUID, dataset_id: UUID, version_id: UUID) -> Version | None:
    """The version of that dataset of the user's; None where one of the three does not fit."""
    row = tx.execute(
        _VERSIONS.where(
            datasets.c.user_id == user_id,
            datasets.c.id == dataset_id,
            dataset_versions.c.id == version_id,
        )
    ).one_or_none()
    return None if row is None else Version(**by_name(row))


def list_versions(tx: Tx, dataset_ids: Sequence[UUID]) -> list[Version]:
    """Versions of datasets, oldest first; whose they are is the caller's to know."""
    rows = tx.execute(
        _VERSIONS.where(dataset_versions.c.dataset_id.in_(dataset_ids)).order_by(
            dataset_versions.c.created_at, dataset_versions.c.id
        )
    )
    return [Version(**by_name(row)) for row in rows]
