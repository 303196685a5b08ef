"""Post-processors of datasets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Conflict, NotFound
from ppworker.store.datasets import as_id
from ppworker.store.db import Tx
from ppworker.store.tables import post_processors

_FIELDS = tuple(f.name for f in fields(PostProcessor))
_TUPLES = ("media_types", "file_types", "splits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Who keeps a post-processor from running."""

    paused_by_operator: bool
    circuit_until: datetime | None


def create_post_processor(tx: Tx, user_id: UUID, processor: PostProcessor) -> None:
    """Insert a post-processor.

    Raises:
        Conflict: the dataset has one of that name.
    """
    values = {name: _plain(getattr(processor, name)) for name in _FIELDS}
    created = tx.execute(
        insert(post_processors)
        .values(user_id=user_id, **values)
        .on_conflict_do_nothing()
        .returning(post_processors.c.id)
    )
    if created.first() is None:
        raise Conflict(
            f"a post-processor named '{processor.name}' exists already; choose another name",
            field="name",
        )


def list_post_processors(tx: Tx, dataset_id: UUID) -> list[PostProcessor]:
    """Post-processors of a dataset in their order of execution, disabled ones included."""
    rows = tx.execute(
        _select()
        .where(post_processors.c.dataset_id == dataset_id)
        .order_by(post_processors.c.order, post_processors.c.id)
    )
    return [_from_row(row) for row in rows]


def find_post_processor(tx: Tx, id_: UUID) -> PostProcessor | None:
    """A live post-processor by id, whoever owns it: for workers only."""
    row = tx.execute(_FIND, {"wanted": id_}).one_or_none()
    return _from_row(row) if row else None


def get_post_processor(
    tx: Tx, user_id: UUID, reference: str, *, dataset_id: UUID | None = None
) -> PostProcessor:
    """The user's post-processor by id, or by name within a dataset.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    query = _select().where(post_processors.c.user_id == user_id)
    if id_ := as_id(reference):
        query = query.where(post_processors.c.id == id_)
    else:
        query = query.where(post_processors.c.name == reference)
        if dataset_id:
            query = query.where(post_processors.c.dataset_id == dataset_id)
    rows = tx.execute(query.limit(2)).all()
    if not rows:
        raise NotFound(
            f"no post-processor '{reference}'; `ppworker processors list DATASET` shows those "
            "there are",
            field="processor",
        )
    if len(rows) > 1:
        raise NotFound(
            f"several datasets have a post-processor '{reference}'; give its id",
            field="processor",
        )
    return _from_row(rows[0])


def set_paused(tx: Tx, id_: UUID, *, paused: bool) -> None:
    """Pause or resume by an operator; leaves a pause by failures as it is."""
    tx.execute(
        sa.update(post_processors)
        .where(post_processors.c.id == id_)
        .values(paused_by_operator=paused, updated_at=sa.func.now())
    )


def read_pauses(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, Pauses]:
    """The pauses of several post-processors."""
    rows = tx.execute(
        sa.select(
            post_processors.c.id,
            post_processors.c.paused_by_operator,
            post_processors.c.circuit_until,
        ).where(post_processors.c.id.in_(ids))
    )
    return {
        row.id: Pauses(paused_by_operator=row.paused_by_operator, circuit_until=row.circuit_until)
        for row in rows
    }


def _select() -> sa.Select[Any]:
    columns = [post_processors.c[name] for name in _FIELDS]
    return sa.select(*columns).where(post_processors.c.deleted_at.is_(None))


def _from_row(row: sa.Row[Any]) -> PostProcessor:
    values = dict(row._mapping)  # noqa: SLF001  public by documentation
    for name in _TUPLES:
        values[name] = tuple(values[name])
    return PostProcessor(**values)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return json.loads(json.dumps(value)) if isinstance(value, dict) else value


# Built once: a worker asks it at each turn.
_FIND = _select().where(post_processors.c.id == sa.bindparam("wanted"))
