"""Post-processors of datasets."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.domain.post_processor import PostProcessor
from ppworker.errors import Conflict, NotFound
from ppworker.store import bulk
from ppworker.store.datasets import as_id
from ppworker.store.db import Tx, by_name
from ppworker.store.tables import models, post_processor_circuits, post_processors

_PAUSES = (
    post_processors.c.paused_by_operator,
    post_processor_circuits.c.open_until.label("circuit_until"),
    sa.func.coalesce(post_processor_circuits.c.reason, "").label("circuit_reason"),
)
_FIELDS = tuple(f.name for f in fields(PostProcessor) if f.compare)
_TUPLES = ("media_types", "file_types", "splits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Who keeps a post-processor from running."""

    paused_by_operator: bool
    circuit_until: datetime | None
    """When its pause by failures ends, or ended without an answer since."""
    circuit_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A post-processor with what the table knows about it beside its settings."""

    processor: PostProcessor
    user_id: UUID
    created_at: datetime
    updated_at: datetime
    model_name: str | None
    """Of the person's model that it was made from, which may be deleted since."""
    model_kind: str | None
    pauses: Pauses


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


def list_stored(tx: Tx, dataset_id: UUID) -> list[Stored]:
    """Post-processors of a dataset in their order of execution, with what the table knows."""
    rows = tx.execute(
        _select_stored()
        .where(post_processors.c.dataset_id == dataset_id)
        .order_by(post_processors.c.order, post_processors.c.created_at, post_processors.c.id)
    )
    return [_stored(row) for row in rows]


def find_stored(tx: Tx, dataset_id: UUID, id_: UUID) -> Stored | None:
    """A live post-processor of a dataset, with what the table knows."""
    row = tx.execute(_one(dataset_id, id_)).one_or_none()
    return None if row is None else _stored(row)


def lock_stored(tx: Tx, dataset_id: UUID, id_: UUID) -> Stored | None:
    """The same, held against other changes of it until the transaction ends."""
    row = tx.execute(
        _one(dataset_id, id_).with_for_update(key_share=True, of=post_processors)
    ).one_or_none()
    return None if row is None else _stored(row)


def has_name(tx: Tx, dataset_id: UUID, name: str, *, but: UUID) -> bool:
    """Whether another live post-processor of the dataset has that name."""
    return bool(
        tx.execute(
            sa.select(
                sa.exists().where(
                    post_processors.c.dataset_id == dataset_id,
                    post_processors.c.name == name,
                    post_processors.c.id != but,
                    post_processors.c.deleted_at.is_(None),
                )
            )
        ).scalar_one()
    )


def update_post_processor(tx: Tx, processor: PostProcessor) -> None:
    """Write every setting of a post-processor that exists and is held."""
    values = {name: _plain(getattr(processor, name)) for name in _FIELDS if name != "id"}
    tx.execute(
        sa.update(post_processors)
        .where(post_processors.c.id == processor.id)
        .values(**values, updated_at=sa.func.now())
    )


def mark_deleted(tx: Tx, id_: UUID) -> None:
    """Take a post-processor out of its dataset; its row stays, for the jobs that name it."""
    tx.execute(
        sa.update(post_processors)
        .where(post_processors.c.id == id_, post_processors.c.deleted_at.is_(None))
        .values(enabled=False, deleted_at=sa.func.now(), updated_at=sa.func.now())
    )


def find_deleted_with_jobs(tx: Tx) -> list[UUID]:
    """Deleted post-processors that still have live jobs."""
    return list(tx.execute(_DELETED_WITH_JOBS).scalars())


# Two looks at an index for each: no one index tells pending and processing jobs together.
_DELETED_WITH_JOBS = sa.text("""
SELECT p.id FROM post_processors p CROSS JOIN LATERAL (
  (SELECT 1 FROM post_processor_jobs j WHERE j.post_processor_id = p.id
     AND j.status = 'pending' ORDER BY j.id LIMIT 1)
  UNION ALL
  (SELECT 1 FROM post_processor_jobs j WHERE j.post_processor_id = p.id
     AND j.status = 'processing' ORDER BY j.id LIMIT 1)
  LIMIT 1) AS live
WHERE p.deleted_at IS NOT NULL ORDER BY p.id
""")


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
        sa.select(post_processors.c.id, *_PAUSES)
        .outerjoin_from(post_processors, post_processor_circuits)
        .where(post_processors.c.id.in_(ids))
    )
    found = (by_name(row) for row in rows)
    return {values.pop("id"): Pauses(**values) for values in found}


def read_today(tx: Tx, id_: UUID) -> tuple[str, bool] | None:
    """What mapping depends on: ``PostProcessor.revision``, and whether items of the dataset may
    carry several class labels. None when the post-processor is gone, or its dataset is."""
    row = tx.execute(_TODAY, {"wanted": id_}).one_or_none()
    return (row[0], row[1]) if row else None


_TODAY = sa.text(
    "SELECT CAST(p.xmin AS text), d.multi_label FROM post_processors p "
    "JOIN datasets d ON d.id = p.dataset_id "
    "WHERE p.id = :wanted AND p.deleted_at IS NULL AND d.deleted_at IS NULL"
)


def _select() -> sa.Select[Any]:
    columns = [post_processors.c[name] for name in _FIELDS]
    # PostgreSQL's own mark of who wrote the row last: no writer can forget to change it.
    revision = sa.cast(sa.literal_column("post_processors.xmin"), sa.Text).label("revision")
    return sa.select(*columns, revision).where(post_processors.c.deleted_at.is_(None))


def _select_stored() -> sa.Select[Any]:
    model = sa.select(models).where(models.c.id == post_processors.c.model_id).lateral()
    return (
        _select()
        .add_columns(
            post_processors.c.user_id,
            post_processors.c.created_at,
            post_processors.c.updated_at,
            model.c.name.label("model_name"),
            model.c.kind.label("model_kind"),
            *_PAUSES,
        )
        .select_from(
            post_processors.outerjoin(model, sa.true()).outerjoin(
                post_processor_circuits,
                post_processor_circuits.c.post_processor_id == post_processors.c.id,
            )
        )
    )


def _one(dataset_id: UUID, id_: UUID) -> sa.Select[Any]:
    return _select_stored().where(
        post_processors.c.dataset_id == dataset_id, post_processors.c.id == id_
    )


def _stored(row: sa.Row[Any]) -> Stored:
    own = ("user_id", "created_at", "updated_at", "model_name", "model_kind")
    values = by_name(row)
    about = {name: values.pop(name) for name in own}
    pauses = Pauses(**{f.name: values.pop(f.name) for f in fields(Pauses)})
    return Stored(processor=_from_values(values), pauses=pauses, **about)


def _from_row(row: sa.Row[Any]) -> PostProcessor:
    return _from_values(by_name(row))


def _from_values(values: dict[str, Any]) -> PostProcessor:
    for name in _TUPLES:
        values[name] = tuple(values[name])
    return PostProcessor(**values)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return json.loads(json.dumps(value)) if isinstance(value, dict) else value


# Built once: a worker asks it at each turn.
_FIND = (
    _select()
    .add_columns(
        (post_processor_circuits.c.open_until <= sa.func.now()).is_(True).label("half_open")
    )
    .select_from(post_processors.outerjoin(post_processor_circuits))
    .where(post_processors.c.id == sa.bindparam("wanted"))
)


def datasets_of(tx: Tx, post_processor_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """The dataset of each of these post-processors; it never changes."""
    rows = tx.execute(
        sa.text("SELECT id, dataset_id FROM post_processors WHERE id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": bulk.uuids(post_processor_ids)},
    )
    return {row.id: row.dataset_id for row in rows}
