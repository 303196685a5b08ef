"""Opens a dataset to other people, and closes it again; ends an account with all that is its."""

from uuid import UUID

from ppworker.errors import Invalid, NotFound
from ppworker.pipeline.deps import Deps
from ppworker.store import accounts, shares
from ppworker.store.datasets import Dataset
from ppworker.store.db import Tx
from ppworker.store.shares import READER, WRITER, Share

ROLES = {"": READER, "reader": READER, "viewer": READER, "writer": WRITER, "editor": WRITER}
"""What each word for a role means."""


def share(deps: Deps, dataset: Dataset, email: str, role: str) -> Share:
    """Open a dataset to whoever has that address, or give them another role in it.

    Raises:
        Invalid: nobody is found by the address, it is the owner's, or there is no such role.
    """
    meant = ROLES.get(role.strip().lower())
    if meant is None:
        known = ", ".join(word for word in ROLES if word)
        raise Invalid(f"is no role; there are {known}", field="role_id")

    def work(tx: Tx) -> Share:
        found = accounts.find_user_by_email(tx, email.strip()) if email.isprintable() else None
        if found is None:
            raise Invalid(
                "nobody is found by this address; it must be the one of their account",
                field="email",
            )
        if found.id == dataset.user_id:
            raise Invalid("is your own; name somebody else", field="email")
        return shares.put_share(tx, dataset.id, found.id, meant)

    return deps.db.transact(work)


def unshare(deps: Deps, dataset: Dataset, user_id: UUID) -> None:
    """Close a dataset to somebody.

    Raises:
        NotFound: it was not open to them.
    """
    with deps.db.begin() as tx:
        if not shares.delete_share(tx, dataset.id, user_id):
            raise NotFound(f"the dataset is not shared with '{user_id}'", field="user")
