"""People's own models and their versions; the built-in ones have no rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.tables import model_versions, models


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as its owner described it."""

    id: UUID
    user_id: UUID
    name: str
    description: str
    notes: str
    kind: str
    config: str
    application_id: str
    active_version_id: UUID | None
    active_config: str
    """Of its active version, empty where there is none."""
    auto_convert: bool
    privacy_enabled: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A version of a model."""

    id: UUID
    model_id: UUID
    user_id: UUID
    name: str
    description: str
    version: str
    version_number: int
    config: str
    application_id: str
    dataset_id: str
    dataset_version_id: str
    job_id: str
    metrics: Sequence[Mapping[str, Any]]
    created_at: datetime
    updated_at: datetime


def insert_model(tx: Tx, user_id: UUID, values: Mapping[str, Any]) -> UUID:
    """A new model; returns its id."""
    id_ = new_id()
    tx.execute(sa.insert(models).values(id=id_, user_id=user_id, **values))
    return id_


def count_models(tx: Tx, user_id: UUID) -> int:
    """How many models a user has."""
    query = sa.select(sa.func.count()).select_from(models).where(_is_own(user_id))
    return int(tx.execute(query).scalar_one())


def list_models(tx: Tx, user_id: UUID, *, limit: int) -> list[Model]:
    """A user's models, newest first."""
    query = _MODELS.where(_is_own(user_id)).order_by(models.c.id.desc()).limit(limit)
    return [Model(**by_name(row)) for row in tx.execute(query)]


def find_model(tx: Tx, user_id: UUID, id_: UUID, *, lock: bool = False) -> Model | None:
    """A user's model; held against other changes until the transaction ends if asked."""
    query = _MODELS.where(_is_own(user_id), models.c.id == id_)
    row = tx.execute(
        query.with_for_update(key_share=True, of=models) if lock else query
    ).one_or_none()
    return None if row is None else Model(**by_name(row))


def update_model(tx: Tx, id_: UUID, values: Mapping[str, Any]) -> None:
    """Change a model that is held."""
    tx.execute(
        sa.update(models).where(models.c.id == id_).values(**values, updated_at=sa.func.now())
    )


def mark_model_deleted(tx: Tx, id_: UUID) -> None:
    """Take a model away; its row stays, for what names it."""
    update_model(tx, id_, {"deleted_at": sa.func.now()})


def insert_version(tx: Tx, model: Model, values: Mapping[str, Any]) -> UUID:
    """A new version of a model that is held; returns its id."""
    id_ = new_id()
    # Deleted ones count too: a number is given once.
    last = sa.select(sa.func.coalesce(sa.func.max(model_versions.c.version_number), 0)).where(
        model_versions.c.model_id == model.id
    )
    number = int(tx.execute(last).scalar_one()) + 1
    filled = {"name": f"v{number}", "version": str(number)}
    filled |= {name: value for name, value in values.items() if value or name not in filled}
    tx.execute(
        sa.insert(model_versions).values(
            id=id_, model_id=model.id, user_id=model.user_id, version_number=number, **filled
        )
    )
    return id_


def list_versions(tx: Tx, model_id: UUID, *, limit: int) -> list[ModelVersion]:
    """Versions of a model, oldest first."""
    query = (
        _VERSIONS.where(model_versions.c.model_id == model_id)
        .order_by(model_versions.c.version_number)
        .limit(limit)
    )
    return [ModelVersion(**by_name(row)) for row in tx.execute(query)]


def find_version(tx: Tx, model_id: UUID, id_: UUID, *, lock: bool = False) -> ModelVersion | None:
    """A version of a model."""
    query = _VERSIONS.where(model_versions.c.model_id == model_id, model_versions.c.id == id_)
    row = tx.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else ModelVersion(**by_name(row))


def update_version(tx: Tx, id_: UUID, values: Mapping[str, Any]) -> None:
    """Change a version that is held."""
    tx.execute(
        sa.update(model_versions)
        .where(model_versions.c.id == id_)
        .values(**values, updated_at=sa.func.now())
    )


def mark_version_deleted(tx: Tx, id_: UUID) -> None:
    """Take a version away."""
    update_version(tx, id_, {"deleted_at": sa.func.now()})


def _is_own(user_id: UUID) -> sa.ColumnElement[bool]:
    return sa.and_(models.c.user_id == user_id, models.c.deleted_at.is_(None))


_ACTIVE = (
    sa.select(model_versions.c.config)
    .where(model_versions.c.id == models.c.active_version_id, model_versions.c.deleted_at.is_(None))
    .scalar_subquery()
)
_MODELS = sa.select(
    *[models.c[name] for name in Model.__dataclass_fields__ if name != "active_config"],
    sa.func.coalesce(_ACTIVE, "").label("active_config"),
)
_VERSIONS = sa.select(
    *[model_versions.c[name] for name in ModelVersion.__dataclass_fields__]
).where(model_versions.c.deleted_at.is_(None))
