"""Keeps the lease of an operation while its next chunk is prepared, however long that takes.

Chunks are sized so that several fit into a lease. But one file may be so large, or the disk so
slow, that a chunk of it alone lasts longer than a lease; without this nobody would get it done.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from ppworker.errors import StoreUnavailable
from ppworker.pipeline.deps import Deps
from ppworker.store import operations
from ppworker.store.operations import Operation

log = logging.getLogger(__name__)

_LONGEST_S = 1800.0
"""Seconds after which a preparation is taken for hung: its lease may run out then."""
_BEATS = 3
"""Renewals in the life of a lease."""


@contextmanager
def kept(deps: Deps, operation: Operation) -> Iterator[None]:
    """Renew the lease again and again during the block; what else is written stays fenced."""
    over = Event()
    thread = Thread(
        target=_renew, args=(deps, operation, over), name="operation-lease", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()  # a renewal that is under way is fenced too, and nobody need wait for it


def _renew(deps: Deps, operation: Operation, over: Event) -> None:
    lease_s = deps.settings.lease_s
    until = time.monotonic() + _LONGEST_S
    while not over.wait(lease_s / _BEATS) and time.monotonic() < until:
        try:
            with deps.db.begin(limit_s=lease_s) as tx:
                operations.renew(tx, operation.id, operation.lease_token, lease_s=lease_s)
        except StoreUnavailable as error:
            log.debug("operation %s: its lease was not renewed: %s", operation.id, error)
