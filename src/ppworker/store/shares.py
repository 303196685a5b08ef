"""Shares: who besides its owner may read a dataset, or write it too."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ppworker.store.db import Tx, by_name
from ppworker.store.tables import datasets, shares, users

OWNER, WRITER, READER = "owner", "writer", "reader"
"""What somebody may do with a dataset: everything, change what is beneath it, look at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A dataset that is open to somebody."""

    dataset_id: UUID
    user_id: UUID
    username: str
    email: str
    role: str
    created_at: datetime
    updated_at: datetime


def role_of(user_id: UUID) -> sa.ColumnElement[str]:
    """The role of a user in the dataset of a query, null for a stranger."""
    given = (
        sa.select(shares.c.role)
        .where(shares.c.dataset_id == datasets.c.id, shares.c.user_id == user_id)
        .scalar_subquery()
    )
    return sa.case((datasets.c.user_id == user_id, OWNER), else_=given)


def open_to(user_id: UUID) -> sa.ColumnElement[bool]:
    """Whether the dataset of a query is a user's own or shared with them."""
    given = sa.select(shares.c.dataset_id).where(shares.c.user_id == user_id)
    return sa.or_(datasets.c.user_id == user_id, datasets.c.id.in_(given))


def put_share(tx: Tx, dataset_id: UUID, user_id: UUID, role: str) -> Share:
    """Open a dataset to somebody, or give them another role in it."""
    row = insert(shares).values(dataset_id=dataset_id, user_id=user_id, role=role)
    tx.execute(
        row.on_conflict_do_update(
            index_elements=["dataset_id", "user_id"],
            set_={"role": row.excluded.role, "updated_at": sa.func.now()},
        )
    )
    (made,) = tx.execute(
        _SHARES.where(shares.c.dataset_id == dataset_id, shares.c.user_id == user_id)
    )
    return Share(**by_name(made))


_SHARES = sa.select(
    shares.c.dataset_id,
    shares.c.user_id,
    users.c.username,
    users.c.email,
    shares.c.role,
    shares.c.created_at,
    shares.c.updated_at,
).join(users, users.c.id == shares.c.user_id)


def list_shares(tx: Tx, dataset_id: UUID) -> list[Share]:
    """Whom a dataset is open to, in the order in which that began."""
    rows = tx.execute(
        _SHARES.where(shares.c.dataset_id == dataset_id).order_by(
            shares.c.created_at, shares.c.user_id
        )
    )
    return [Share(**by_name(row)) for row in rows]


def delete_share(tx: Tx, dataset_id: UUID, user_id: UUID) -> bool:
    """Close a dataset to somebody; false where it was not open to them."""
    gone = tx.execute(
        sa.delete(shares).where(shares.c.dataset_id == dataset_id, shares.c.user_id == user_id)
    )
    return gone.rowcount > 0


def delete_shares_of(tx: Tx, user_id: UUID) -> None:
    """Close every dataset to somebody, and every dataset of theirs to everybody."""
    own = sa.select(datasets.c.id).where(datasets.c.user_id == user_id)
    tx.execute(
        sa.delete(shares).where(sa.or_(shares.c.user_id == user_id, shares.c.dataset_id.in_(own)))
    )
