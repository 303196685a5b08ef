"""Ends an account: in one transaction nobody comes in by it, and nobody finds what was its."""

from uuid import UUID

from ppworker.domain.events import OperationMoved
from ppworker.domain.job import Status
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.transfer import delete
from ppworker.store import accounts, shares
from ppworker.store.db import Tx


def delete_user(deps: Deps, user_id: UUID) -> UUID:
    """End an account with its keys, its shares and its datasets; the operation that removes these.

    Raises:
        NotFound: it is gone already.
    """

    def work(tx: Tx) -> UUID:
        accounts.lock_user(tx, user_id)
        accounts.delete_keys_of(tx, user_id)
        shares.delete_shares_of(tx, user_id)
        operation_id = delete.mark_user(tx, user_id)
        accounts.mark_user_deleted(tx, user_id)
        return operation_id

    begun = deps.db.transact(work)
    deps.emit(
        [
            OperationMoved(
                operation_id=begun,
                kind=delete.KIND,
                source=None,
                to=Status.PENDING,
                cause="planned",
            )
        ]
    )
    return begun
