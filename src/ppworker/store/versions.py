"""Versions of datasets: each has its own splits, labels and annotations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.shares import OWNER, role_of
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
    role: str = OWNER
    """What whoever asked may do with its dataset; the owner's where nobody asked."""


_OWN = (
    "id", "dataset_id", "name", "description", "default_split", "config", "created_at",
    "updated_at",
)  # fmt: skip
_VERSIONS = (
    sa.select(
        *(dataset_versions.c[name] for name in _OWN),
        # What is beneath a dataset is its owner's, whoever made it.
        datasets.c.user_id,
    )
    .join(datasets, datasets.c.id == dataset_versions.c.dataset_id)
    .where(datasets.c.deleted_at.is_(None), dataset_versions.c.deleted_at.is_(None))
)


def find_version(
    tx: Tx, user_id: UUID, dataset_id: UUID | None, version_id: UUID
) -> Version | None:
    """The version of that dataset, or of any, that is the user's or shared with them; else None."""
    role = role_of(user_id)
    query: sa.Select[Any] = _VERSIONS.add_columns(role.label("role")).where(
        dataset_versions.c.id == version_id, role.is_not(None)
    )
    if dataset_id is not None:
        query = query.where(datasets.c.id == dataset_id)
    row = tx.execute(query).one_or_none()
    return None if row is None else Version(**by_name(row))


def count_versions(tx: Tx, dataset_id: UUID) -> int:
    """How many versions a dataset ever had."""
    counted = sa.select(sa.func.count()).where(dataset_versions.c.dataset_id == dataset_id)
    return int(tx.execute(counted).scalar_one())


def create_version(
    tx: Tx, dataset_id: UUID, user_id: UUID, name: str, *, description: str = "", config: str = ""
) -> UUID:
    """Create an empty version."""
    version_id = new_id()
    tx.execute(
        sa.insert(dataset_versions).values(
            id=version_id,
            dataset_id=dataset_id,
            user_id=user_id,
            name=name,
            description=description,
            config=config,
        )
    )
    return version_id


def update_version(tx: Tx, version_id: UUID, values: Mapping[str, Any]) -> None:
    """Write columns of a version."""
    tx.execute(
        sa.update(dataset_versions)
        .where(dataset_versions.c.id == version_id, dataset_versions.c.deleted_at.is_(None))
        .values(**values, updated_at=sa.func.now())
    )


def list_versions(tx: Tx, dataset_ids: Sequence[UUID]) -> list[Version]:
    """Versions of datasets, oldest first; whose they are is the caller's to know."""
    rows = tx.execute(
        _VERSIONS.where(dataset_versions.c.dataset_id.in_(dataset_ids)).order_by(
            dataset_versions.c.created_at, dataset_versions.c.id
        )
    )
    return [Version(**by_name(row)) for row in rows]
