"""What an account leaves behind: marked as gone, so that nobody finds it from then on."""

from uuid import UUID

import sqlalchemy as sa

from ppworker.store.db import Tx
from ppworker.store.tables import datasets, post_processors


def mark_datasets_deleted(tx: Tx, user_id: UUID) -> list[UUID]:
    """Mark every dataset of a user as deleted; returns which."""
    marked = tx.execute(
        sa.update(datasets)
        .where(datasets.c.user_id == user_id, datasets.c.deleted_at.is_(None))
        .values(deleted_at=sa.func.now(), updated_at=sa.func.now())
        .returning(datasets.c.id)
    )
    return [row.id for row in marked]


def mark_processors_deleted(tx: Tx, dataset_ids: list[UUID]) -> list[UUID]:
    """Mark every post-processor of datasets as deleted: their jobs are claimed no more."""
    marked = tx.execute(
        sa.update(post_processors)
        .where(
            post_processors.c.dataset_id.in_(dataset_ids), post_processors.c.deleted_at.is_(None)
        )
        .values(enabled=False, deleted_at=sa.func.now(), updated_at=sa.func.now())
        .returning(post_processors.c.id)
    )
    return [row.id for row in marked]
