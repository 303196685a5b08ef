"""Users, datasets, versions and splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from ppworker.errors import Conflict, NotFound
from ppworker.store.db import Tx, by_name
from ppworker.store.ids import new_id
from ppworker.store.shares import open_to, role_of
from ppworker.store.tables import dataset_splits, dataset_versions, datasets, item_splits, users

DEFAULT_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    id: UUID
    user_id: UUID
    name: str
    description: str
    notes: str
    content_type: str
    multi_label: bool
    default_splits: bool
    """Whether its new versions begin with the splits train, valid and test."""
    logo_sha256: str | None
    logo_media_type: str
    created_at: datetime
    updated_at: datetime
    newest_version_id: UUID | None
    """None where every version was deleted."""

    role: str
    """What whoever asked may do with it: owner, writer or reader."""

    @property
    def version_id(self) -> UUID:
        """The newest version.

        Raises:
            Conflict: every version was deleted.
        """
        if self.newest_version_id is None:
            raise Conflict(
                f"dataset '{self.name}' has no version; create one first", field="dataset"
            )
        return self.newest_version_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    id: UUID
    name: str
    description: str
    version_id: UUID
    version_name: str
    dataset_id: UUID
    dataset_name: str
    user_id: UUID
    multi_label: bool
    created_at: datetime
    updated_at: datetime


def ensure_user(tx: Tx, username: str) -> UUID:
    """Id of the user of that name, created when absent."""
    wanted = sa.select(users.c.id).where(users.c.username == username)
    # Looked for first: an insert that does nothing still uses up a public id.
    if (found := tx.execute(wanted).scalar_one_or_none()) is None:
        tx.execute(insert(users).values(id=new_id(), username=username).on_conflict_do_nothing())
        found = tx.execute(wanted).scalar_one()
    return UUID(str(found))


def is_user_gone(tx: Tx, user_id: UUID) -> bool:
    """Whether the account of that user was ended."""
    ended = sa.select(users.c.deleted_at.is_not(None)).where(users.c.id == user_id)
    return bool(tx.execute(ended).scalar_one_or_none())


def create_dataset(
    tx: Tx,
    user_id: UUID,
    name: str,
    *,
    description: str = "",
    notes: str = "",
    content_type: str = "documents",
    multi_label: bool = True,
    default_splits: bool = True,
    splits: Sequence[str] = DEFAULT_SPLITS,
) -> Dataset:
    """Create a dataset with a first version and its splits.

    Raises:
        Conflict: the user has a dataset of that name.
    """
    dataset_id, version_id = new_id(), new_id()
    created = tx.execute(
        insert(datasets)
        .values(
            id=dataset_id,
            user_id=user_id,
            name=name,
            description=description,
            notes=notes,
            content_type=content_type,
            multi_label=multi_label,
            default_splits=default_splits,
        )
        .on_conflict_do_nothing()
        .returning(datasets.c.id)
    )
    if created.first() is None:
        raise dataset_exists(name)
    tx.execute(
        sa.insert(dataset_versions).values(
            id=version_id, dataset_id=dataset_id, user_id=user_id, name="v1"
        )
    )
    for split in splits:
        create_split(tx, version_id, user_id, split)
    return get_dataset(tx, user_id, str(dataset_id))


_DATASETS = (
    sa.select(
        datasets.c.id,
        datasets.c.user_id,
        datasets.c.name,
        datasets.c.description,
        datasets.c.notes,
        datasets.c.content_type,
        datasets.c.multi_label,
        datasets.c.default_splits,
        datasets.c.logo_sha256,
        datasets.c.logo_media_type,
        datasets.c.created_at,
        datasets.c.updated_at,
        dataset_versions.c.id.label("newest_version_id"),
    )
    .outerjoin(
        dataset_versions,
        sa.and_(
            dataset_versions.c.dataset_id == datasets.c.id,
            dataset_versions.c.deleted_at.is_(None),
        ),
    )
    .where(datasets.c.deleted_at.is_(None))
    .ext(distinct_on(datasets.c.id))
    .order_by(datasets.c.id.desc(), dataset_versions.c.created_at.desc(), dataset_versions.c.id)
)


def _asked_by(user_id: UUID) -> sa.Select[Any]:
    return _DATASETS.add_columns(role_of(user_id).label("role"))


def list_datasets(tx: Tx, user_id: UUID) -> list[Dataset]:
    """The user's datasets and those shared with them, newest first, with their newest versions."""
    rows = tx.execute(_asked_by(user_id).where(open_to(user_id)))
    return [Dataset(**by_name(row)) for row in rows]


def get_dataset(tx: Tx, user_id: UUID, reference: str) -> Dataset:
    """The user's dataset by id or by name.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    owned = _asked_by(user_id).where(datasets.c.user_id == user_id)
    id_ = as_id(reference)
    wanted = datasets.c.id == id_ if id_ else datasets.c.name == reference
    row = tx.execute(owned.where(wanted)).one_or_none()
    if row is None:
        raise NotFound(
            f"no dataset '{reference}'; `ppworker datasets list` shows those there are",
            field="dataset",
        )
    return Dataset(**by_name(row))


def find_dataset(tx: Tx, user_id: UUID, dataset_id: UUID) -> Dataset | None:
    """The user's dataset, or one that is shared with them; None when it is neither."""
    row = tx.execute(
        _asked_by(user_id).where(datasets.c.id == dataset_id, role_of(user_id).is_not(None))
    ).one_or_none()
    return None if row is None else Dataset(**by_name(row))


def update_dataset(tx: Tx, dataset_id: UUID, values: Mapping[str, Any]) -> None:
    """Write columns of a dataset.

    Raises:
        Conflict: its owner has another live one of the name; nobody else takes one meanwhile only
            if no error of the store follows.
    """
    held = tx.execute(
        sa.select(datasets.c.user_id)
        .where(datasets.c.id == dataset_id)
        .with_for_update(key_share=True)
    ).scalar_one_or_none()
    if "name" in values:
        taken = sa.select(sa.literal(1)).where(
            datasets.c.user_id == held,
            datasets.c.name == values["name"],
            datasets.c.id != dataset_id,
            datasets.c.deleted_at.is_(None),
        )
        if tx.execute(taken).first() is not None:
            raise dataset_exists(values["name"])
    tx.execute(
        sa.update(datasets)
        .where(datasets.c.id == dataset_id, datasets.c.deleted_at.is_(None))
        .values(**values, updated_at=sa.func.now())
    )


def dataset_exists(name: str) -> Conflict:
    """The error of a name that another dataset of the user has."""
    return Conflict(f"a dataset named '{name}' exists already; choose another name", field="name")


_ANNOTATED = sa.text("""
SELECT EXISTS (SELECT 1 FROM dataset_versions v JOIN labels l ON l.version_id = v.id
    JOIN LATERAL (SELECT 1 FROM annotations a WHERE a.label_id = l.id AND a.deleted_at IS NULL
      LIMIT 1) a ON true WHERE v.dataset_id = :dataset)
  OR EXISTS (SELECT 1 FROM post_processors p JOIN post_processor_jobs j
    ON j.post_processor_id = p.id AND j.status = 'processing' WHERE p.dataset_id = :dataset)
""")


def is_annotated(tx: Tx, dataset_id: UUID) -> bool:
    """Whether any of a dataset's items is annotated, or a model is about to."""
    return bool(tx.execute(_ANNOTATED, {"dataset": dataset_id}).scalar_one())


def create_split(
    tx: Tx, version_id: UUID, user_id: UUID, name: str, *, description: str = ""
) -> UUID:
    """Create a split in a version.

    Raises:
        Conflict: the version has a split of that name.
    """
    split_id = new_id()
    created = tx.execute(
        insert(dataset_splits)
        .values(
            id=split_id,
            version_id=version_id,
            user_id=user_id,
            name=name,
            description=description,
        )
        .on_conflict_do_nothing()
        .returning(dataset_splits.c.id)
    )
    if created.first() is None:
        raise split_exists(name)
    return split_id


def split_exists(name: str) -> Conflict:
    """The error of a name that another split of the version has."""
    return Conflict(f"a split named '{name}' exists already; choose another name", field="name")


_SPLITS = (
    sa.select(
        dataset_splits.c.id,
        dataset_splits.c.name,
        dataset_splits.c.description,
        dataset_splits.c.version_id,
        dataset_versions.c.name.label("version_name"),
        datasets.c.id.label("dataset_id"),
        datasets.c.name.label("dataset_name"),
        datasets.c.user_id,
        datasets.c.multi_label,
        dataset_splits.c.created_at,
        dataset_splits.c.updated_at,
    )
    .join(dataset_versions, dataset_versions.c.id == dataset_splits.c.version_id)
    .join(datasets, datasets.c.id == dataset_versions.c.dataset_id)
    .where(
        datasets.c.deleted_at.is_(None),
        dataset_versions.c.deleted_at.is_(None),
        dataset_splits.c.deleted_at.is_(None),
    )
    .order_by(dataset_splits.c.created_at, dataset_splits.c.id)
)


def list_splits(tx: Tx, user_id: UUID, version_id: UUID) -> list[Split]:
    """The splits of a version, oldest first."""
    rows = tx.execute(
        _SPLITS.where(datasets.c.user_id == user_id, dataset_splits.c.version_id == version_id)
    )
    return [Split(**by_name(row)) for row in rows]


def list_splits_of(tx: Tx, version_ids: Sequence[UUID]) -> list[Split]:
    """The splits of several versions, oldest first; whose they are is the caller's to know."""
    rows = tx.execute(_SPLITS.where(dataset_splits.c.version_id.in_(version_ids)))
    return [Split(**by_name(row)) for row in rows]


def find_split(tx: Tx, version_id: UUID, split_id: UUID) -> Split | None:
    """The split of that version; whose it is is the caller's to know."""
    row = tx.execute(
        _SPLITS.where(dataset_splits.c.version_id == version_id, dataset_splits.c.id == split_id)
    ).one_or_none()
    return None if row is None else Split(**by_name(row))


def list_splits_of_item(tx: Tx, version_id: UUID, item_id: UUID) -> list[Split]:
    """The splits of a version that an item belongs to, oldest first."""
    rows = tx.execute(
        _SPLITS.join(item_splits, item_splits.c.split_id == dataset_splits.c.id).where(
            item_splits.c.item_id == item_id, item_splits.c.version_id == version_id
        )
    )
    return [Split(**by_name(row)) for row in rows]


def get_split(tx: Tx, user_id: UUID, reference: str) -> Split:
    """The user's split by id, or as ``DATASET/SPLIT`` in the dataset's newest version.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    owned = _SPLITS.where(datasets.c.user_id == user_id)
    if id_ := as_id(reference):
        row = tx.execute(owned.where(dataset_splits.c.id == id_)).one_or_none()
    else:
        dataset_name, _, split_name = reference.rpartition("/")
        if not dataset_name:
            raise NotFound(
                f"no split '{reference}'; name it DATASET/SPLIT or by its id", field="split"
            )
        dataset = get_dataset(tx, user_id, dataset_name)
        row = tx.execute(
            owned.where(
                dataset_splits.c.version_id == dataset.version_id,
                dataset_splits.c.name == split_name,
            )
        ).one_or_none()
    if row is None:
        raise NotFound(
            f"no split '{reference}'; `ppworker splits list DATASET` shows those there are",
            field="split",
        )
    return Split(**by_name(row))


def is_multi_label(tx: Tx, version_ids: Sequence[UUID]) -> dict[UUID, bool]:
    """Whether items may carry several class labels, per version."""
    rows = tx.execute(
        sa.select(dataset_versions.c.id, datasets.c.multi_label)
        .join(datasets, datasets.c.id == dataset_versions.c.dataset_id)
        .where(dataset_versions.c.id.in_(version_ids))
    )
    return {row.id: row.multi_label for row in rows}


def as_id(reference: str) -> UUID | None:
    """The reference as a UUID, None when it is not written as one."""
    try:
        return UUID(reference)
    except ValueError:
        return None
