"""Splits that exist: changed by people, held while items are put into them."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ppworker.errors import NotFound
from ppworker.store import bulk, datasets
from ppworker.store.datasets import Split
from ppworker.store.db import Tx
from ppworker.store.tables import dataset_splits


def update_split(tx: Tx, split: Split, values: Mapping[str, Any]) -> None:
    """Write columns of a split.

    Raises:
        Conflict: its version has another one of the name; as ``datasets.update_dataset``.
    """
    if "name" in values:
        taken = sa.select(sa.literal(1)).where(
            dataset_splits.c.version_id == split.version_id,
            dataset_splits.c.name == values["name"],
            dataset_splits.c.id != split.id,
        )
        if tx.execute(taken).first() is not None:
            raise datasets.split_exists(values["name"])
    tx.execute(
        sa.update(dataset_splits)
        .where(dataset_splits.c.id == split.id, dataset_splits.c.deleted_at.is_(None))
        .values(**values, updated_at=sa.func.now())
    )


_HOLD_SPLITS = sa.text("""
SELECT s.id FROM dataset_splits s JOIN dataset_versions v ON v.id = s.version_id
WHERE s.id = ANY(CAST(:ids AS uuid[])) AND s.deleted_at IS NULL AND v.deleted_at IS NULL
FOR KEY SHARE OF s
""")


def hold_splits(tx: Tx, ids: Sequence[UUID]) -> None:
    """Hold splits against deletion while items are put into them.

    Raises:
        NotFound: one was deleted since it was looked up.
    """
    there = set(tx.execute(_HOLD_SPLITS, {"ids": bulk.uuids(ids)}).scalars())
    for id_ in ids:
        if id_ not in there:
            raise NotFound(f"split {id_} was deleted", field="split")
