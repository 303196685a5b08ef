"""Ends an account: in one transaction nobody comes in by it, and nobody finds what was its."""

from uuid import UUID

from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import processor_changes
from ppworker.store import accounts, closing, shares
from ppworker.store.db import Tx


def delete_user(deps: Deps, user_id: UUID) -> None:
    """End an account with its keys, its shares and its datasets.

    Raises:
        NotFound: it is gone already.
    """

    def work(tx: Tx) -> list[UUID]:
        accounts.lock_user(tx, user_id)
        accounts.delete_keys_of(tx, user_id)
        shares.delete_shares_of(tx, user_id)
        gone = closing.mark_datasets_deleted(tx, user_id)
        closing.mark_processors_deleted(tx, gone)
        accounts.mark_user_deleted(tx, user_id)
        return gone

    if deps.db.transact(work):
        processor_changes.end_jobs_of_deleted(deps)
